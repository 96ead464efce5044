"""A user who can be asked: what the user would say is a table of the world, and `ask_user` reads it.

A request that can be read in several ways is settled by asking, and by nothing else that the tools show. What
the user says is a sentence; a planner looks in it for the names that it knows from its own observations.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

from envs.task import Call, Clause
from envs.tools import Param, Tool
from envs.world import Table
from synthesis.clauses import read_before
from synthesis.grammar import Client

TABLE = "user_says"
ASK = "ask_user"


def ask_user(topics: Sequence[str]) -> Tool:
    """The tool; on a topic that the user has no wish about, the reply says so."""
    return Tool(
        name=ASK,
        description="Asks the user who wrote the request one question and gives the reply.",
        parameters=(Param(name="topic", description="What to ask about.", enum=tuple(topics)),),
        query=f"SELECT said FROM {TABLE} WHERE topic = :topic",
        row_format="{said}",
        empty="That is all the same to me.",
        reads=(TABLE,),
    )


def user_table(said: Mapping[str, str]) -> Table:
    """`said`: what the user replies by topic."""
    return Table(name=TABLE, columns=(("topic", "TEXT"), ("said", "TEXT")), rows=sorted(said.items()))


def ask_call(topic: str) -> Call:
    return Call(tool=ASK, arguments={"topic": topic})


def asked_before(topic: str, writes: Sequence[str]) -> Clause:
    """The user was asked about `topic` before the first write."""
    return read_before(ASK, {"topic": topic}, writes, name=f"the user was asked about the {topic} first")


def named_in_reply(client: Client, topic: str, names: Iterable[str]) -> str:
    """Asks, and gives the first of `names` that stands in the reply. Raises ValueError when none does."""
    said = str(client.values(ASK, topic=topic)[0])
    for name in names:
        if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", said):
            return name
    raise ValueError(f"the user's reply {said!r} names nothing known")

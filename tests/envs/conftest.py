"""A hand-made task in a world of two rows: sell one apple of three, after looking, and answer done."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from envs.task import (
    AnswerSpec,
    Call,
    Clause,
    FrameRule,
    GuessSpace,
    Message,
    Plan,
    Provenance,
    Task,
    WorldRef,
)  # fmt: skip
from envs.tools import Param, Requirement, Tool, Write
from envs.world import Table, build_image, image_hash

ITEM = Param(name="item", description="The item.")
LOOK = Tool(
    name="look",
    description="How many there are.",
    parameters=(ITEM,),
    query="SELECT amount FROM stock WHERE item = :item",
    row_format="{amount}",
    reads=("stock",),
)
SELL = Tool(
    name="sell",
    description="Sells some.",
    parameters=(ITEM, Param(name="count", description="How many.", type="integer")),
    requires=(
        Requirement(
            sql="SELECT 1 FROM stock WHERE item = :item AND amount >= :count", error="error: too few {item}"
        ),
    ),
    statements=("UPDATE stock SET amount = amount - :count WHERE item = :item",),
    done="sold",
    reads=("stock",),
    writes=(Write(table="stock", operation="update", columns=("amount",)),),
)
GOAL = Clause(
    name="two apples are left",
    part="goal",
    sql="SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM stock WHERE item = 'apple' AND amount = 2)",
)
POLICY = Clause(
    name="looked before selling",
    part="policy",
    sql="SELECT 1 FROM journal s WHERE s.tool = 'sell' AND NOT EXISTS "
    "(SELECT 1 FROM journal l WHERE l.tool = 'look' AND l.step < s.step)",
)
ANSWER = Clause(name="the answer is done", part="answer", sql="SELECT 1 FROM answer WHERE choice <> 'done'")
LOOK_APPLE = Call(tool="look", arguments={"item": "apple"})
SELL_APPLE = Call(tool="sell", arguments={"item": "apple", "count": 1})


@pytest.fixture
def image() -> bytes:
    rows = [("apple", 3, 10), ("pear", 5, 20)]
    columns = (("item", "TEXT"), ("amount", "INTEGER"), ("price", "INTEGER"))
    return build_image([Table(name="stock", columns=columns, rows=rows)])


@pytest.fixture
def task(image: bytes) -> Task:
    return Task(
        task_id="tiny",
        family="general",
        domain="tiny",
        level=1,
        world=WorldRef(generator="tiny", generator_version=1, seed=0, content_hash=image_hash(image)),
        prompt=(Message(role="user", content="Sell one apple, then answer done."),),
        tools=(LOOK, SELL),
        clauses=(GOAL, POLICY, ANSWER),
        frame=(FrameRule(table="stock", key="apple", columns=("amount",)),),
        answer=AnswerSpec(kind="choice", choices=("done", "refused")),
        gold=Plan(calls=(LOOK_APPLE, SELL_APPLE), answer="done"),
        guess=GuessSpace(
            plans=(Plan(calls=(), answer="done"), Plan(calls=(LOOK_APPLE, SELL_APPLE), answer="done"))
        ),
        max_turns=5,
        provenance=Provenance(generator="tiny", generator_version=1, seed=0),
    )


@pytest.fixture
def with_tools(task: Task) -> Callable[..., Task]:
    return lambda *tools: replace(task, tools=tools)

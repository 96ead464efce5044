"""Clauses that many domains share: what was decided, what was read before it, what was done but once.

Each is SQL over the last tables, the first ones (`initial`), the journal and the answer; see
`envs.task.Clause`.
"""

from collections.abc import Mapping, Sequence

from envs.task import Clause
from synthesis.grammar import quote

_NEVER = 1_000_000
"""A step after every step of an episode."""


def right_word(sql: str) -> Clause:
    """The answer is the word that `sql`, a scalar SELECT over the first tables, gives."""
    return Clause(
        name="the right decision is answered",
        part="answer",
        sql=f"SELECT 1 FROM answer WHERE choice IS NOT ({sql})",
    )


def all_rows(name: str, table: str, where: str, condition: str) -> Clause:
    """Each row of the last `table` that meets `where` meets `condition`."""
    return Clause(
        name=name, part="goal", sql=f"SELECT 1 FROM {table} WHERE ({where}) AND NOT coalesce({condition}, 0)"
    )


def read_before(
    tool: str, arguments: Mapping[str, str], writes: Sequence[str], *, name: str, phrase: str = ""
) -> Clause:
    """A call of `tool` with these arguments succeeded before the first call of any of `writes`, or at all
    where none was called.
    """
    named = "".join(
        f" AND json_extract(arguments, '$.{key}') = {quote(value)}" for key, value in arguments.items()
    )
    first = f"SELECT min(step) FROM journal WHERE tool IN ({_list(writes)}) AND NOT error"
    return Clause(
        name=name,
        part="policy",
        phrase=phrase,
        sql=f"SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM journal WHERE tool = {quote(tool)} AND NOT "
        f"error{named} "
        f"AND step < coalesce(({first}), {_NEVER}))",
    )


def once_each(writes: Sequence[str], parameter: str) -> Clause:
    """No two calls of `writes` are about the same thing."""
    return Clause(
        name="nothing was decided twice",
        part="policy",
        sql=f"SELECT 1 FROM journal WHERE tool IN ({_list(writes)}) AND NOT error "
        f"GROUP BY json_extract(arguments, '$.{parameter}') HAVING count(*) > 1",
    )


def _list(names: Sequence[str]) -> str:
    return ", ".join(quote(name) for name in names)

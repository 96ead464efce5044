"""Which tools a goal needs: the smallest addition to a list of tools, by what they read and write."""

import re
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from itertools import combinations

from envs.tools import Tool


def smallest_extension(
    tools: Sequence[Tool],
    available: Sequence[Tool],
    *,
    reads: AbstractSet[str] = frozenset(),
    writes: AbstractSet[tuple[str, str]] = frozenset(),
    shows: AbstractSet[str] = frozenset(),
) -> tuple[Tool, ...]:
    """`tools` and the fewest of `available` with which every table of `reads` can be read, every column of
    `shows` is shown and every (table, column) of `writes` written; in the order of `available`, the first
    such of equally many.

    Raises ValueError when even all of them do not suffice.
    """
    have = {tool.name for tool in tools}
    more = [tool for tool in available if tool.name not in have]
    for count in range(len(more) + 1):
        for added in combinations(more, count):
            extended = (*tools, *added)
            if reads <= _read(extended) and writes <= _written(extended) and shows <= _shown(extended):
                names = {tool.name for tool in extended}
                kept = {tool.name: tool for tool in tools}
                return tuple(kept.get(tool.name, tool) for tool in available if tool.name in names)
    every = [*tools, *more]
    lacking = sorted(reads - _read(every)) + sorted(shows - _shown(every))
    lacking += sorted(".".join(pair) for pair in writes - _written(every))
    raise ValueError(f"no tool has the effect that the goal needs: {', '.join(lacking)}")


def _read(tools: Sequence[Tool]) -> set[str]:
    return {table for tool in tools if tool.query is not None for table in tool.reads}


def _written(tools: Sequence[Tool]) -> set[tuple[str, str]]:
    return {(write.table, column) for tool in tools for write in tool.writes for column in write.columns}


def shown_by(tool: Tool) -> frozenset[str]:
    """The columns that a row of the tool's reply names."""
    return frozenset(re.findall(r"{(\w+)}", tool.row_format or "")) if tool.query is not None else frozenset()


def _shown(tools: Sequence[Tool]) -> set[str]:
    return {column for tool in tools for column in shown_by(tool)}

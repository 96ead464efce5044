"""Levels that are raised step by step: each is the one before in the same world, from the same seed, with a
dial turned up, and with the fewest tools added that its goal needs beyond those that there were.

A domain says what its dials are, a record of whole numbers, what each raised level sets them to, and which
columns an agent must be shown at a setting. `synthesis.general` makes the easier tasks first, keeps their ids
as the lineage, and a task stands only with all of them.
"""

from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import astuple, dataclass
from itertools import pairwise
from typing import Any, Generic, TypeVar

from envs.tools import Tool
from synthesis.toolsets import shown_by, smallest_extension

Dials = TypeVar("Dials")


@dataclass(frozen=True, kw_only=True, slots=True)
class Ladder(Generic[Dials]):
    """rungs: the dials by level, the easiest first. needs: which columns an agent must be shown at a setting.

    Raises ValueError where a rung is not harder than the one before: no dial lower, one higher.
    """

    rungs: Mapping[int, Dials]
    needs: Callable[[Dials], AbstractSet[str]]

    def __post_init__(self) -> None:
        for (level, low), (next_level, high) in pairwise(self.rungs.items()):
            if next_level != level + 1 or not is_harder(low, high):
                raise ValueError(f"level {next_level} with {high} is not level {level} with {low} raised")

    def raised_from(self, level: int) -> int | None:
        """The easier level, or None where the ladder begins and for the other levels."""
        return level - 1 if level in self.rungs and level - 1 in self.rungs else None

    def tools(self, available: tuple[Tool, ...], dials: Dials) -> tuple[Tool, ...]:
        """Those of `available` that no harder goal alone asks for, and the smallest addition for this one."""
        wanted = self.needs(dials)
        later = {column for rung in self.rungs.values() for column in self.needs(rung)} - wanted
        known = tuple(tool for tool in available if not shown_by(tool) & later)
        return smallest_extension(known, available, shows=wanted)

    def toolsets(self, surfaces: Iterable[tuple[Tool, ...]]) -> tuple[tuple[Tool, ...], ...]:
        """Every list of tools that a rung may have, each once, in the order of the rungs."""
        every = [self.tools(tools, dials) for dials in self.rungs.values() for tools in surfaces]
        return tuple(dict.fromkeys(every))


def is_harder(low: Any, high: Any) -> bool:
    """No dial of `high` is lower than of `low`, and one is higher."""
    pairs = list(zip(astuple(low), astuple(high), strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def check_range(dials: Any, **ends: tuple[int, int]) -> None:
    """Raises ValueError for a dial outside its ends, (lowest, highest) by name."""
    for name, (low, high) in ends.items():
        if not low <= getattr(dials, name) <= high:
            raise ValueError(f"the dial {name} goes from {low} to {high}, got {getattr(dials, name)}")

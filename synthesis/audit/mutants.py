"""Damaged reference solutions, as lists of tool calls: the operators of gate G5 on a foreign task's gold.

Values for wrong arguments come from the task's own database: those that stand under the same name, and the
keys of the table that a value is a key of.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from envs.task import canonical_json, stable_seed
from synthesis.gates.solution_mutants import near_values

SWAPPED = "writes swapped"
MAX_OTHERS = 3
"""Other values of the database for one argument."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GoldCall:
    """`requestor`: `assistant`, or `user` where a format's gold acts for the user too."""

    tool: str
    arguments: dict[str, Any]
    requestor: str = "assistant"


@dataclass(frozen=True, kw_only=True, slots=True)
class Play:
    """What an agent does: its calls, what it says, and harm then done behind the tools.

    damage: (index, count) of `boxed.damage.damaged`.
    """

    name: str
    operator: str = ""
    calls: tuple[GoldCall, ...] = ()
    says: tuple[str, ...] = ()
    damage: tuple[int, int] | None = None

    def as_request(self) -> dict[str, Any]:
        calls = [[call.requestor, call.tool, call.arguments] for call in self.calls]
        return {
            "name": self.name,
            "calls": calls,
            "says": list(self.says),
            "damage": self.damage,
            "needs_content": self.operator == SWAPPED or self.name == "gold 0",
        }


class Neighbours:
    """Scalars of a database by the name of the field that holds them, and keys of its tables."""

    def __init__(self, database: Any) -> None:
        self._groups: dict[str, dict[Any, None]] = {}
        self._walk(database, "", 0)

    def _walk(self, value: Any, name: str, depth: int) -> None:
        if depth > 12:
            return
        if isinstance(value, dict):
            if len(value) > 1 and {type(inner) for inner in value.values()} in ({dict}, {int}, {float}):
                self._groups.setdefault(f"keys of {name}", {}).update(dict.fromkeys(value))
            for key, inner in value.items():
                self._walk(inner, str(key), depth + 1)
        elif isinstance(value, list):
            for inner in value:
                self._walk(inner, name, depth + 1)
        elif isinstance(value, str | int | float):
            self._groups.setdefault(name, {})[value] = None

    def of(self, value: object, *, seed: str) -> list[Any]:
        """Up to MAX_OTHERS other values from the smallest groups that hold `value`, the same each time."""
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            return []
        groups = sorted((group for group in self._groups.values() if value in group), key=len)
        others = list(dict.fromkeys(other for group in groups for other in group if other != value))[:200]
        random.Random(stable_seed(seed, str(value))).shuffle(others)
        return others[:MAX_OTHERS]


def call_mutants(
    gold: Sequence[GoldCall], writes: Sequence[bool], says: Sequence[str], neighbours: Neighbours, limit: int
) -> list[Play]:
    """At most `limit` damaged plays, spread over the operators. writes: which calls change anything."""
    made = [*_dropped(gold, writes), *_arguments(gold, writes, neighbours), *_said(gold, says)]
    unique: dict[str, Play] = {}
    for number, (operator, calls, spoken) in enumerate(made):
        if calls == tuple(gold) and spoken == tuple(says):
            continue
        play = Play(name=f"mutant {number}", operator=operator, calls=calls, says=spoken or tuple(says))
        key = canonical_json([play.as_request()[part] for part in ("calls", "says")])
        unique.setdefault(key, play)
    return spread(list(unique.values()), limit)


def extra_writes(
    gold: Sequence[GoldCall], writes: Sequence[bool], says: Sequence[str], neighbours: Neighbours, limit: int
) -> list[Play]:
    """The gold, then one more write to something else: collateral damage through the agent's own tools."""
    plays = []
    for index, call in enumerate(gold):
        for name, value in call.arguments.items() if writes[index] else ():
            for other in neighbours.of(value, seed=f"extra {index} {name}")[:1]:
                more = replace(call, arguments={**call.arguments, name: other})
                operator = f"extra write {call.tool} {name}"
                calls = (*gold, more)
                plays.append(
                    Play(name=f"extra {len(plays)}", operator=operator, calls=calls, says=tuple(says))
                )
    return spread(plays, limit)


def spread(plays: list[Play], limit: int) -> list[Play]:
    """Evenly over the list, so that no operator is cut off."""
    if len(plays) <= limit:
        return plays
    return [plays[index * len(plays) // limit] for index in range(limit)]


_Made = tuple[str, tuple[GoldCall, ...], tuple[str, ...]]


def _dropped(gold: Sequence[GoldCall], writes: Sequence[bool]) -> Iterator[_Made]:
    places = [index for index, is_write in enumerate(writes) if is_write]
    for index in places:
        before, call, after = tuple(gold[:index]), gold[index], tuple(gold[index + 1 :])
        yield "write dropped", (*before, *after), ()
        yield "write repeated", (*before, call, call, *after), ()
        yield "stopped before a write", before, ()
    for first, second in pairwise(places):
        swapped = list(gold)
        swapped[first], swapped[second] = swapped[second], swapped[first]
        yield SWAPPED, tuple(swapped), ()


def _arguments(gold: Sequence[GoldCall], writes: Sequence[bool], neighbours: Neighbours) -> Iterator[_Made]:
    for index, call in enumerate(gold):
        if not writes[index]:
            continue
        for name, value in call.arguments.items():
            others = [("wrong value", other) for other in neighbours.of(value, seed=f"{index} {name}")]
            if not isinstance(value, bool):
                others += [(slip, type(value)(other)) for slip, other in list(near_values(value))[:2]]
            if isinstance(value, list) and len(value) > 1:
                others += [("item dropped", value[1:]), ("item dropped", value[:-1])]
            for operator, other in others:
                changed = replace(call, arguments={**call.arguments, name: other})
                yield f"{operator}: {name}", (*gold[:index], changed, *gold[index + 1 :]), ()


def _said(gold: Sequence[GoldCall], says: Sequence[str]) -> Iterator[_Made]:
    for index, text in enumerate(says):
        rest = (*says[:index], *says[index + 1 :]) or ("done",)
        yield "not said", tuple(gold), rest
        if text.strip().isdigit():
            yield "another number said", tuple(gold), (*rest, f"1{text.strip()}7")

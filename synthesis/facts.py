"""Worlds that differ from a world by one fact: what counterfactual twins are made from."""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import copy
from dataclasses import replace
from typing import Any, TypeVar

from synthesis.grammar import Draft

World = TypeVar("World")
Facts = Mapping[str, Callable[[Any], Iterable[Any]]]
"""By "field.column" of a world: what else may stand in that column of a row. The field holds the rows, in a
sequence or by key; a row is a record, a dict by column, or a tuple, whose columns are numbers.
"""


def twin_drafts(
    make: Callable[[random.Random, World], Draft | None],
    rng: random.Random,
    world: World,
    facts: Facts,
) -> Iterator[Draft]:
    """What `make` drafts in each world that differs from `world` by one of the facts, with the same draws.

    rng: as it is when `make` drafts the task itself.
    """
    for other in otherwise(world, facts, copy(rng)):
        draft = make(copy(rng), other)
        if draft is not None:
            yield draft


def otherwise(world: World, facts: Facts, rng: random.Random) -> Iterator[World]:
    """The worlds that differ by one fact: each fact once, with one other value, in a random order."""
    changes = []
    for name, others in facts.items():
        field, column = name.split(".")
        for key, row in _items(getattr(world, field)):
            values = [value for value in others(row) if value != _cell(row, column)]
            if values:
                changes.append((field, key, _changed(row, column, rng.choice(values))))
    rng.shuffle(changes)
    for field, key, row in changes:
        rows = getattr(world, field)
        if isinstance(rows, Mapping):
            yield replace(world, **{field: {**rows, key: row}})  # pyright: ignore[reportArgumentType]
        else:
            edited = [row if index == key else each for index, each in enumerate(rows)]
            yield replace(world, **{field: type(rows)(edited)})  # pyright: ignore[reportArgumentType]


def _items(rows: Any) -> Iterable[tuple[Any, Any]]:
    return rows.items() if isinstance(rows, Mapping) else enumerate(rows)


def _cell(row: Any, column: str) -> Any:
    if isinstance(row, Mapping):
        return row[column]
    return row[int(column)] if isinstance(row, tuple) else getattr(row, column)


def _changed(row: Any, column: str, value: Any) -> Any:
    if isinstance(row, Mapping):
        return {**row, column: value}
    if isinstance(row, tuple):
        return tuple(value if index == int(column) else each for index, each in enumerate(row))
    return replace(row, **{column: value})

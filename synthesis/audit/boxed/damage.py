"""A database's content apart from the order of its lists; harm to a value that an episode has left alone."""

import copy
import hashlib
import json
from typing import Any


def unordered_hash(value: Any) -> str:
    """The same for databases that differ in the order of lists alone."""
    return hashlib.sha256(json.dumps(_unordered(value), sort_keys=True, default=str).encode()).hexdigest()


def _unordered(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _unordered(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return sorted((_unordered(inner) for inner in value), key=lambda one: json.dumps(one, default=str))
    return value


def damaged(before: Any, after: Any, index: int, count: int) -> tuple[Any, str] | None:
    """A copy of `after` with the index-th of `count` evenly spread untouched scalars changed, and its path.

    Untouched: the same, at the same path, in `before`. None where there are none.
    """
    paths: list[tuple[Any, ...]] = []
    _collect(before, after, (), paths)
    if not paths:
        return None
    path = paths[min(len(paths) - 1, (2 * index + 1) * len(paths) // (2 * count))]
    result = copy.deepcopy(after)
    inner = result
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = _other(inner[path[-1]])
    return result, ".".join(map(str, path))


def _collect(before: Any, after: Any, path: tuple[Any, ...], paths: list[tuple[Any, ...]]) -> None:
    if isinstance(before, dict) and isinstance(after, dict):
        for key in after:
            if key in before:
                _collect(before[key], after[key], (*path, key), paths)
    elif isinstance(before, list) and isinstance(after, list):
        for position, (old, new) in enumerate(zip(before, after)):  # noqa: B905 (what both have)
            _collect(old, new, (*path, position), paths)
    elif path and before == after and isinstance(after, str | int | float):
        paths.append(path)


def _other(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    return value + "~" if isinstance(value, str) else value + 1

"""Reads a run's directory as it is: finished, half way, or just begun.

A run writes `run.json`, `metrics.jsonl` (one object a line, told apart by "kind") and `trajectories/*.jsonl`.
The last line may be half written and any file still be missing; what cannot be read is counted, not fatal. No
field is trusted to be there or to be of its type: `number` and `interval` give None for anything else.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Record = dict[str, Any]

LARGEST = 1e100
"""A number beyond it is none that a run measures, and JSON knows no bound."""

SCRIPTED_POLICIES = ("null", "random", "greedy", "oracle")
"""The policies that bound a score from below and from above; every other is the one that learns."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    path: Path
    info: Record
    """run.json."""
    cold_start: list[Record] = field(default_factory=list)
    rl: list[Record] = field(default_factory=list)
    evaluations: list[Record] = field(default_factory=list)
    """Of the policy that learns, in the order of writing."""
    baselines: list[Record] = field(default_factory=list)
    """Of the scripted policies."""
    compute: Record = field(default_factory=dict)
    distill: list[Record] = field(default_factory=list)
    """What became of each specialist's episodes."""
    figures: Record = field(default_factory=dict)
    """What a pipeline came to."""
    unreadable_lines: int = 0

    @property
    def finished(self) -> bool:
        return bool(self.info.get("finished"))

    def evaluation(self, when: str) -> Record | None:
        return next((record for record in reversed(self.evaluations) if record.get("when") == when), None)


def read_run(path: Path) -> Run:
    """The run in `path`. Raises ValueError when there is no such directory."""
    if not path.is_dir():
        raise ValueError(f"{path} is no directory; name a run's, as `worldsmith train` or `demo` wrote it")
    info, bad_info = _read_info(path / "run.json")
    kinds = ("cold_start", "rl", "eval", "compute", "distill", "figures")
    by_kind: dict[str, list[Record]] = {kind: [] for kind in kinds}
    unreadable = bad_info
    for record in _read_lines(path / "metrics.jsonl"):
        if record is None:
            unreadable += 1
        else:
            by_kind.get(str(record.get("kind")), []).append(record)
    scripted = [record for record in by_kind["eval"] if record.get("policy") in SCRIPTED_POLICIES]
    return Run(
        path=path,
        info=info,
        cold_start=_by_step(by_kind["cold_start"]),
        rl=_by_step(by_kind["rl"]),
        evaluations=[record for record in by_kind["eval"] if record.get("policy") not in SCRIPTED_POLICIES],
        baselines=scripted,
        compute=by_kind["compute"][-1] if by_kind["compute"] else {},
        distill=_by_step(by_kind["distill"]),
        figures=by_kind["figures"][-1] if by_kind["figures"] else {},
        unreadable_lines=unreadable,
    )


def read_trajectories(path: Path, *, limit_per_file: int) -> Iterator[Record]:
    """The run's trajectories, the first ones of every file."""
    for file in sorted((path / "trajectories").glob("*.jsonl")):
        count = 0
        for record in _read_lines(file):
            if record is not None:
                yield record
                count += 1
            if count == limit_per_file:
                break


def number(record: Record | None, key: str) -> float | None:
    """The finite number under `key`, else None."""
    value = (record or {}).get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < LARGEST else None  # which NaN is not either


def interval(record: Record | None) -> tuple[float, float] | None:
    """The two finite numbers under "interval", lower first, else None."""
    value = (record or {}).get("interval")
    if not isinstance(value, list | tuple) or len(value) != 2:
        return None
    low, high = number({"low": value[0]}, "low"), number({"high": value[1]}, "high")
    return None if low is None or high is None else (min(low, high), max(low, high))


def mapping(record: Record | None, key: str) -> Record:
    value = (record or {}).get(key)
    return value if isinstance(value, dict) else {}


def items(record: Record | None, key: str) -> list[Any]:
    value = (record or {}).get(key)
    return value if isinstance(value, list) else []


def _read_info(file: Path) -> tuple[Record, int]:
    try:
        info = json.loads(file.read_text())
    except FileNotFoundError:
        return {}, 0
    except ValueError:
        return {}, 1
    return (info, 0) if isinstance(info, dict) else ({}, 1)


def _read_lines(file: Path) -> Iterator[Record | None]:
    """Each line's object; None for a line that is none."""
    if not file.exists():
        return
    with file.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                record = json.loads(line)
            except ValueError:
                record = None
            if line.strip():
                yield record if isinstance(record, dict) else None


def _by_step(records: list[Record]) -> list[Record]:
    """In order of step, the last writing of each: a resumed run writes again what it had not saved."""
    steps = {step: record for record in records if (step := number(record, "step")) is not None}
    return [steps[step] for step in sorted(steps)]

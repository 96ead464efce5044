"""Trajectories as a person reads them: who said what, which tools were called, what the verifier found."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from worldsmith.run_directory import Record, items, mapping, number

LONGEST_TEXT = 4000


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    role: str
    text: str
    calls: tuple[tuple[str, str], ...]
    """Tool name and arguments as text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Transcript:
    task_id: str
    domain: str
    level: str
    when: str
    cause: str
    reward: float
    sample: str
    turns: tuple[Turn, ...]
    verdict: tuple[tuple[str, str], ...]

    @property
    def solved(self) -> bool:
        return self.reward >= 1.0


def transcript(record: Record) -> Transcript:
    """Whatever the record holds, as text: nothing in it is trusted to have the right type."""
    verdict = mapping(record, "verdict")
    return Transcript(
        task_id=_text(record.get("task_id")),
        domain=_text(record.get("domain")),
        level=_text(record.get("level")),
        when=_text(record.get("when")),
        cause=_text(record.get("cause")),
        reward=number(record, "reward") or 0.0,
        sample=_text(record.get("sample")),
        turns=tuple(_turn(message) for message in items(record, "messages") if isinstance(message, dict)),
        verdict=tuple((_text(part), _text(found)) for part, found in verdict.items()),
    )


def three_to_read(records: Iterable[Record]) -> list[tuple[str, Transcript]]:
    """The same task failed before and solved after, and a failure that is left; or the nearest there is."""
    all_records = [transcript(record) for record in records]
    before = [one for one in all_records if one.when == "before"]
    after = [one for one in all_records if one.when == "after"]
    failed = {one.task_id: one for one in reversed(before) if not one.solved}
    solved = {one.task_id: one for one in reversed(after) if one.solved}
    chosen: list[tuple[str, Transcript]] = []
    both = [task_id for task_id in failed if task_id in solved]
    if both:
        # The longest of the solved ones shows most of what was learned.
        task_id = max(both, key=lambda one: len(solved[one].turns))
        chosen.append(("Before: not solved", failed[task_id]))
        chosen.append(("After: the same task, solved", solved[task_id]))
    else:
        chosen += [("Before: not solved", one) for one in list(failed.values())[:1]]
        chosen += [("After: solved", one) for one in list(solved.values())[:1]]
    chosen += [("After: still not solved", one) for one in after if not one.solved][:1]
    shown = {id(one) for _, one in chosen}
    chosen += [(_title(one), one) for one in all_records if id(one) not in shown]
    return chosen[:3]


def _title(one: Transcript) -> str:
    outcome = "solved" if one.solved else "not solved"
    return f"{one.when.capitalize()}: {outcome}" if one.when else outcome.capitalize()


def _turn(message: Record) -> Turn:
    calls = [call for call in items(message, "tool_calls") if isinstance(call, dict)]
    return Turn(
        role=_text(message.get("role")),
        text=_text(message.get("content")),
        calls=tuple((_text(call.get("name", call.get("tool"))), _arguments(call)) for call in calls),
    )


def _arguments(call: Record) -> str:
    arguments = call.get("arguments")
    if isinstance(arguments, dict):
        return ", ".join(f"{name}={_text(value)}" for name, value in arguments.items())
    return _text(arguments)


def _text(value: Any) -> str:
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if len(text) > LONGEST_TEXT:
        return f"{text[:LONGEST_TEXT]} … ({len(text) - LONGEST_TEXT:,} more characters)"
    return text

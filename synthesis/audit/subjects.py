"""Foreign tasks whose solution is a list of tool calls: played in boxes in two rounds.

The first round plays the null agent and the reference solution and learns which calls write; the second plays
damaged solutions and the reference solution with harm beside it. A batch shares one box, in which each task
and each play is a process of its own.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from envs.sandbox.contract import SandboxError
from synthesis.audit.boxes import Boxes, put_files
from synthesis.audit.mutants import SWAPPED, GoldCall, Neighbours, Play, call_mutants, extra_writes
from synthesis.audit.records import TaskAudit

GOLD_PLAYS = 3
DAMAGES = 3
SECONDS_A_PLAY = 4.0
RUNNER = """import runpy, sys
sys.path.insert(0, "/tmp/audit")
runpy.run_module("synthesis.audit.boxed.run", run_name="__main__")"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """One task as the audit plays it. `raw`: what the box needs of it; `database`: its rows, as data."""

    task: str
    format: str
    prompt: str
    """All that the agent reads before its first call."""
    gold: tuple[GoldCall, ...] | None
    """None: the task has no reference solution."""
    says: tuple[str, ...] = ()
    raw: Mapping[str, Any] = field(default_factory=dict)
    neighbours: Neighbours
    wrong: tuple[GoldCall, ...] | None = None
    """A solution that its author holds to be wrong."""
    full_reward: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """What a batch's box holds (by path below /tmp/audit) and what it is asked, but for the tasks."""

    files: Mapping[str, bytes]
    request: Mapping[str, Any]


_Lines = dict[str, dict[str, Any]]
"""By the name of the play, what the box said of it."""


def audit_subjects(
    subjects: Sequence[Subject], stage: Stage, boxes: Boxes, *, mutants: int, batch: int = 8
) -> Iterator[TaskAudit]:
    """The audits in order. A batch that cannot be played at all is `not run`, with what the box said."""
    for start in range(0, len(subjects), batch):
        chunk = subjects[start : start + batch]
        first = _round({one.task: (one, _first_plays(one)) for one in chunk}, stage, boxes)
        seconds: dict[str, tuple[Subject, list[Play]]] = {}
        for one in chunk:
            writes = _writes(one, first[one.task])
            if writes is not None:
                seconds[one.task] = (one, _second_plays(one, writes, mutants))
        second = _round(seconds, stage, boxes) if seconds else {}
        for one in chunk:
            plays = seconds[one.task][1] if one.task in seconds else []
            yield _audit(one, first[one.task], plays, second.get(one.task, {}))


def _first_plays(one: Subject) -> list[Play]:
    plays = [Play(name="null")]
    if one.gold is not None:
        plays += [Play(name=f"gold {n}", calls=one.gold, says=one.says) for n in range(GOLD_PLAYS)]
    if one.wrong is not None:
        plays.append(Play(name="wrong", operator="the author's wrong solution", calls=one.wrong))
    return plays


def _second_plays(one: Subject, writes: list[bool], mutants: int) -> list[Play]:
    gold = one.gold or ()
    plays = call_mutants(gold, writes, one.says, one.neighbours, mutants)
    plays += extra_writes(gold, writes, one.says, one.neighbours, DAMAGES)
    return plays + [
        Play(name=f"damage {n}", operator="a value edited", calls=gold, says=one.says, damage=(n, DAMAGES))
        for n in range(DAMAGES)
    ]


def _round(wanted: dict[str, tuple[Subject, list[Play]]], stage: Stage, boxes: Boxes) -> dict[str, _Lines]:
    found = _played(wanted, stage, boxes)
    # A task that took the whole batch down with it, or kept it waiting, is played by itself.
    for name, entry in wanted.items():
        if len(wanted) > 1 and not found[name]:
            found[name] = _played({name: entry}, stage, boxes)[name]
    return found


def _played(wanted: dict[str, tuple[Subject, list[Play]]], stage: Stage, boxes: Boxes) -> dict[str, _Lines]:
    tasks = [
        {"task": name, "raw": dict(one.raw), "plans": [play.as_request() for play in plays]}
        for name, (one, plays) in wanted.items()
    ]
    found: dict[str, _Lines] = {name: {} for name in wanted}
    timeout_s = 30.0 + SECONDS_A_PLAY * sum(len(plays) for _, plays in wanted.values())
    try:
        with closing(boxes.make()) as box:
            box.start()
            put_files(box, "/tmp/audit", stage.files)
            request = json.dumps({**stage.request, "tasks": tasks}).encode()
            done = box.exec(["python3", "-c", RUNNER], stdin=request, timeout_s=timeout_s)
    except SandboxError as error:
        return {name: {"fault": {"fault": f"the box: {error}"}} for name in wanted}
    for line in done.stdout.splitlines():
        _take(line, found)
    if not any(found.values()):
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:] or ["nothing"]
        end = "ran out of time" if done.timed_out else f"ended with exit code {done.exit_code}"
        return {name: {"fault": {"fault": f"the box {end} and said {said[0][:200]}"}} for name in wanted}
    return found


def _take(line: bytes, found: dict[str, _Lines]) -> None:
    """One line from the box, which is not trusted to have any form."""
    try:
        said = json.loads(line)
    except (ValueError, RecursionError):
        return
    if not isinstance(said, dict):
        return
    name = said.get("task")
    if name is None and isinstance(said.get("fault"), str):
        for lines in found.values():
            lines["fault"] = said
    elif isinstance(name, str) and name in found:
        found[name][str(said.get("plan", "fault"))] = said


def _reward(lines: _Lines, name: str) -> float | None:
    value = lines.get(name, {}).get("reward")
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _calls(lines: _Lines, name: str) -> list[dict[str, Any]]:
    calls = lines.get(name, {}).get("calls")
    return [call for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []


def _writes(one: Subject, lines: _Lines) -> list[bool] | None:
    """Which of the gold's calls write; None where the gold was not played."""
    calls = _calls(lines, "gold 0")
    if one.gold is None or _reward(lines, "gold 0") is None or len(calls) != len(one.gold):
        return None
    return [call.get("writes") is True for call in calls]


def _audit(one: Subject, first: _Lines, plays: list[Play], second: _Lines) -> TaskAudit:
    golds = [_reward(first, f"gold {n}") for n in range(GOLD_PLAYS)]
    measured = [reward for reward in golds if reward is not None]
    null = _reward(first, "null")
    if null is None and not measured:
        return TaskAudit(task=one.task, format=one.format, not_run=_fault(first), leaks=_leaks(one))
    unmeasured = first.get("null", {}).get("unmeasured")
    tally = _tally(one, first, plays, second)
    notes = [str(note)[:200] for note in _list(first.get("gold 0", first.get("null", {})).get("notes"))]
    if one.gold is None:
        notes.append("no reference solution")
    elif len(measured) < GOLD_PLAYS:
        notes.append(f"the gold was not played {GOLD_PLAYS} times: {_fault(first)}")
    return TaskAudit(
        task=one.task,
        format=one.format,
        null_reward=null,
        gold_reward=min(measured) if measured else None,
        gold_error=_gold_error(one, first),
        full_reward=one.full_reward,
        leaks=_leaks(one),
        unmeasured=tuple(str(name)[:40] for name in _list(unmeasured)),
        notes=tuple(dict.fromkeys([*notes, *tally.pop("notes", ())])),
        **tally,
    )


def _tally(one: Subject, first: _Lines, plays: list[Play], second: _Lines) -> dict[str, Any]:
    """Mutants and damages, as TaskAudit names them; nothing where the gold itself is not paid."""
    paid = _reward(first, "gold 0")
    if paid is None or paid < one.full_reward:
        return {}
    names = ("equivalent", "killed", "paid", "refused", "accepted", "left")
    fates: dict[str, list[str]] = {name: [] for name in names}
    judged = _list(first.get("null", {}).get("unmeasured"))
    notes: list[str] = []
    for play in plays:
        reward, said = _reward(second, play.name), second.get(play.name, {})
        if reward is None:
            continue
        is_same = _is_same(one, play, said, first["gold 0"])
        if is_same and reward < paid:
            notes.append("refuses the reference solution with two independent writes swapped")
        fate = _fate(one, play, is_same=is_same, is_paid=reward >= paid, is_judged=bool(judged))
        if fate:
            fates[fate].append(f"{play.operator} {said.get('harmed') or ''}".strip()[:160])
    if one.wrong is not None:
        is_paid = (_reward(first, "wrong") or 0.0) >= paid
        fates["paid" if is_paid else "killed"].append("the author's wrong solution")
    if fates["left"]:
        notes.append(f"{len(fates['left'])} damaged answers are left to {', '.join(map(str, judged))}"[:200])
    return {
        "mutants": len(fates["killed"]) + len(fates["paid"]),
        "killed": len(fates["killed"]),
        "equivalent": len(fates["equivalent"]),
        "survivors": tuple(fates["paid"]),
        "damages": len(fates["refused"]) + len(fates["accepted"]),
        "damage_accepted": tuple(fates["accepted"]),
        "notes": tuple(notes),
    }


def _fate(one: Subject, play: Play, *, is_same: bool, is_paid: bool, is_judged: bool) -> str:
    """Where a play is counted; empty for harm that leaves what the reference solution leaves. left: damage to
    what is said alone, which a part of the verifier that is not measured may mind.
    """
    if play.damage is not None or play.name.startswith("extra"):
        return "" if is_same else ("accepted" if is_paid else "refused")
    if is_same:
        return "equivalent"
    if is_paid and is_judged and play.calls == one.gold:
        return "left"
    return "paid" if is_paid else "killed"


def _is_same(one: Subject, play: Play, said: dict[str, Any], gold: dict[str, Any]) -> bool:
    """The play ends as the gold does; for two swapped writes, up to the order of lists."""
    if play.says != one.says:
        return False
    if play.operator == SWAPPED and said.get("content") == gold.get("content"):
        return True
    return said.get("state") == gold.get("state")


def _gold_error(one: Subject, lines: _Lines) -> str:
    """The gold's first failing call, by an agent or when the verifier replays it for its target."""
    for call, said in zip(one.gold or (), _calls(lines, "gold 0"), strict=False):
        if said.get("error"):
            return f"{call.tool}: {said['error']}"[:200]
    errors = _list(lines.get("gold 0", {}).get("reference_errors"))
    return str(errors[0])[:200] if errors else ""


def _fault(lines: _Lines) -> str:
    for said in lines.values():
        if isinstance(said.get("fault"), str):
            return said["fault"][:200]
    return "the box said nothing of it"


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _leaks(one: Subject) -> tuple[str, ...]:
    """Calls of the gold that the prompt spells out: in one line the tool's name and each argument."""
    lines = one.prompt.splitlines()
    found = []
    for call in one.gold or ():
        values = [str(value) for value in call.arguments.values() if isinstance(value, str | int | float)]
        if not values or len(call.tool) < 4:
            continue
        for line in lines:
            if call.tool in line and all(value in line for value in values):
                found.append(f"the prompt spells out {call.tool}({', '.join(values)})"[:160])
                break
    return tuple(dict.fromkeys(found))

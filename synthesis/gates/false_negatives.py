"""G9: other ways of doing the same thing right score 1: reads in another order, again, or more of them; a
read that fails; independent writes the other way round; the answer spelled otherwise.

What counts as the same is the same last state and the same answer. There is no other right answer to try: G12
proves that.
"""

import itertools
import json
from collections.abc import Iterator

from envs.task import Call, GateRecord
from envs.tools import Tool
from envs.verifier import parse_answer
from synthesis.gates.trial import Trial, image_state

GATE, TITLE, VERSION = "G9", "false negatives", 1
MAX_EXTRA = 8
_OTHER_ROW = "Nowhere"

Calls = tuple[Call, ...]


def check(trial: Trial) -> GateRecord:
    refused: list[str] = []
    num_tried = 0
    for name, calls, answer in variants(trial):
        num_tried += 1
        (verdict,) = trial.verdicts(calls, [answer], gate=GATE)
        if verdict.score != 1.0:
            refused.append(f"{name} ({verdict.reason})")
    accepted = num_tried - len(refused)
    return GateRecord(
        gate=GATE,
        passed=not refused,
        value=accepted / num_tried,
        evidence=f"accepted {accepted} of {num_tried} variants"
        + (f"; refused: {refused[0]}" if refused else ""),
        version=VERSION,
    )


def variants(trial: Trial) -> Iterator[tuple[str, Calls, str]]:
    gold = trial.task.gold
    for name, answer in _spellings(trial):
        yield name, gold.calls, answer
    for name, calls in (*_other_reads(trial), *_swapped_writes(trial)):
        if calls != gold.calls:
            yield name, calls, gold.answer


def _spellings(trial: Trial) -> Iterator[tuple[str, str]]:
    spec, answer = trial.task.answer, trial.task.gold.answer
    if spec.kind == "choice":
        word = answer.strip().removesuffix(".")
        yield "capital letters", word.upper()
        yield "a full stop", f" {word}.\n"
        return
    rows = parse_answer(spec, answer) or []
    yield "indented JSON", json.dumps(rows, indent=2)
    yield "keys the other way round", json.dumps([dict(reversed(row.items())) for row in rows])
    yield "no spaces, no escapes", json.dumps(rows, separators=(",", ":"), ensure_ascii=False)


def _other_reads(trial: Trial) -> Iterator[tuple[str, Calls]]:
    calls = trial.task.gold.calls
    runs = [tuple(run) for _, run in itertools.groupby(calls, key=lambda call: trial.has_write([call]))]
    yield (
        "reads the other way round",
        tuple(call for run in runs for call in (run if trial.has_write(run) else run[::-1])),
    )
    yield (
        "every read twice",
        tuple(call for call in calls for _ in range(1 if trial.has_write([call]) else 2)),
    )
    extra = extra_reads(trial)
    yield "looked around first", (*extra, *calls)
    yield "looked around afterwards", (*calls, *extra)
    writes = [index for index, call in enumerate(calls) if trial.has_write([call])]
    if writes:
        yield "looked around before acting", (*calls[: writes[0]], *extra, *calls[writes[0] :])
    if (failing := _failing_read(trial)) is not None:
        yield "a read that fails", (failing, *calls)


def extra_reads(trial: Trial) -> Calls:
    """Reads that the gold does not need: lists without arguments, and its own reads of other rows."""
    found: list[Call] = [
        Call(tool=tool.name, arguments={}) for tool in _readers(trial) if not tool.parameters
    ]
    for call in trial.task.gold.calls:
        tool = trial.task.tool(call.tool)
        if tool is None or tool.writes or not tool.parameters:
            continue
        param = tool.parameters[-1]
        if not param.enum:
            others = trial.alternatives(call.arguments[param.name])[:2]
            found += [Call(tool=call.tool, arguments={**call.arguments, param.name: o}) for o in others]
        if len(found) >= MAX_EXTRA:
            break
    return tuple(found[:MAX_EXTRA])


def _readers(trial: Trial) -> list[Tool]:
    return [tool for tool in trial.task.tools if not tool.writes and not tool.ends_episode]


def _failing_read(trial: Trial) -> Call | None:
    """A look at a row that there is not; an error where a tool has one for it."""
    for tool in sorted(_readers(trial), key=lambda tool: not tool.requires):
        if tool.parameters and all(param.type == "string" and not param.enum for param in tool.parameters):
            return Call(
                tool=tool.name, arguments=dict.fromkeys((p.name for p in tool.parameters), _OTHER_ROW)
            )
    return None


def _swapped_writes(trial: Trial) -> Iterator[tuple[str, Calls]]:
    """Two writes of one tool next to each other, where the order leaves no trace in the state."""
    calls = trial.task.gold.calls
    for index, (a, b) in enumerate(itertools.pairwise(calls)):
        if a.tool == b.tool and trial.has_write([a]):
            swapped = (*calls[:index], b, a, *calls[index + 2 :])
            if image_state(trial.play_calls(swapped).final) == trial.gold_state:
                yield "independent writes swapped", swapped

"""G5: every small damage to the gold, made through the agent's own tools or in its answer, scores 0.

The operators: a write dropped (M1), repeated (M2), two swapped (M3); a neighbour's id (M4); a number or a
date off by one (M5) or in another unit (M6); one write more (M7); done and undone (M8); stopped half way
(M9); done, then an unrelated row changed (M10, with M7's calls); and every place of the answer filled
otherwise.

A mutant that leaves the gold's final state and gives its answer is equivalent and does not count; any other
that scores is a hole in the verifier.
"""

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date, timedelta
from typing import Any

from envs.task import Call, GateRecord
from envs.tools import Tool
from envs.verifier import parse_answer
from synthesis.gates.trial import Trial, image_state

GATE, TITLE, VERSION = "G5", "solution mutants", 2
MAX_OTHERS = 40
"""At most so many other values of the world stand in for one of the gold's."""
MAX_PAIRS = 200
MADE_UP = "Nowhere"
_NUMBER = re.compile(r"-?\d{1,12}(?:\.\d{1,6})?")


@dataclass(frozen=True, kw_only=True, slots=True)
class Mutant:
    operator: str
    calls: tuple[Call, ...]
    answer: str


def check(trial: Trial) -> GateRecord:
    killed: Counter[str] = Counter()
    survivors: list[Mutant] = []
    num_equivalent = 0
    groups: dict[tuple[str, ...], list[Mutant]] = {}
    for mutant in mutants(trial):
        groups.setdefault(tuple(map(repr, mutant.calls)), []).append(mutant)
    for group in groups.values():  # one play for all answers that follow the same calls
        scores = trial.scores(group[0].calls, [mutant.answer for mutant in group], gate=GATE)
        for mutant, score in zip(group, scores, strict=True):
            if score == 0.0:
                killed[mutant.operator] += 1
            elif _is_equivalent(trial, mutant):
                num_equivalent += 1
            else:
                survivors.append(mutant)
    total = killed.total() + len(survivors)
    found = ", ".join(f"{name} {count}" for name, count in sorted(killed.items()))
    evidence = f"killed {killed.total()} of {total} ({found}); {num_equivalent} equivalent"
    if survivors:
        first = survivors[0]
        last = first.calls[-1] if first.calls else None
        evidence = f"accepted: {first.operator}, last call {last}, answer {first.answer[:120]}; {evidence}"
    return GateRecord(
        gate=GATE,
        passed=total > 0 and not survivors,
        value=killed.total() / total if total else 0.0,
        evidence=evidence,
        version=VERSION,
    )


def _is_equivalent(trial: Trial, mutant: Mutant) -> bool:
    spec, gold = trial.task.answer, trial.task.gold
    if parse_answer(spec, mutant.answer) != parse_answer(spec, gold.answer):
        return False
    return (
        mutant.calls == gold.calls
        or image_state(trial.play(replace(gold, calls=mutant.calls)).final) == trial.gold_state
    )


def mutants(trial: Trial) -> Iterator[Mutant]:
    gold = trial.task.gold
    for operator, answer in answer_mutants(trial):
        yield Mutant(operator=operator, calls=gold.calls, answer=answer)
    for operator, calls in itertools.chain(_damaged_writes(trial), _added_writes(trial), _reordered(trial)):
        if calls != gold.calls:
            yield Mutant(operator=operator, calls=calls, answer=gold.answer)


def answer_mutants(trial: Trial) -> Iterator[tuple[str, str]]:
    spec = trial.task.answer
    yield "no answer", ""
    if spec.kind == "choice":
        gold_word = (parse_answer(spec, trial.task.gold.answer) or [{}])[0].get("choice")
        yield from (("other choice", choice) for choice in spec.choices if choice != gold_word)
        yield "both choices", " ".join(spec.choices)
        return
    rows = parse_answer(spec, trial.task.gold.answer) or []
    for index, row in enumerate(rows):
        for column, value in row.items():
            for other in [*trial.alternatives(value)[:MAX_OTHERS], MADE_UP, "", value.lower(), f"{value} "]:
                yield "other cell", _with_row(rows, index, {**row, column: str(other)})
            for operator, other in near_values(value):
                yield operator, _with_row(rows, index, {**row, column: str(other)})
        for a, b in itertools.combinations(row, 2):
            yield "swapped cells", _with_row(rows, index, {**row, a: row[b], b: row[a]})
        yield from _two_cells(trial, rows, index)
        yield "missing key", _with_row(rows, index, dict(list(row.items())[1:]))
        yield "extra key", _with_row(rows, index, {**row, "note": ""})
    yield "missing row", json.dumps(rows[1:])
    yield "extra row", json.dumps([*rows, rows[-1]])
    if len(rows) > 1:
        yield "rows reversed", json.dumps(rows[::-1])
        yield "row repeated", json.dumps([rows[0]] * len(rows))


def _two_cells(trial: Trial, rows: list[dict[str, str]], index: int) -> Iterator[tuple[str, str]]:
    """Two cells of a row replaced at once.

    A condition that another rule backs up at one wrong cell may be all that stops two.
    """
    row = rows[index]
    options = {slot.column: slot.options for slot in trial.task.guess.slots if slot.row == index}
    changes = [
        {a: x, b: y}
        for a, b in itertools.combinations(options, 2)
        for x in options[a]
        for y in options[b]
        if x != row[a] and y != row[b]
    ]
    for change in changes[:: len(changes) // MAX_PAIRS + 1]:
        yield "two other cells", _with_row(rows, index, row | change)


def _with_row(rows: list[dict[str, str]], index: int, row: dict[str, str]) -> str:
    return json.dumps([*rows[:index], row, *rows[index + 1 :]])


def _writes(trial: Trial) -> list[int]:
    """The positions of the gold's writes."""
    tools = {tool.name for tool in trial.task.tools if tool.writes}
    return [index for index, call in enumerate(trial.task.gold.calls) if call.tool in tools]


def _damaged_writes(trial: Trial) -> Iterator[tuple[str, tuple[Call, ...]]]:
    calls = trial.task.gold.calls
    writes = _writes(trial)
    for index in writes:
        before, call, after = calls[:index], calls[index], calls[index + 1 :]
        yield "write dropped", (*before, *after)
        yield "write repeated", (*before, call, call, *after)
        yield "stopped before a write", before
        yield "stopped after a write", (*before, call)
        for name, other in _other_arguments(trial, call):
            yield name, (*before, replace(call, arguments={**call.arguments, **other}), *after)
        for other_call in write_calls(trial):
            if other_call.tool != call.tool and _overlap(other_call, call):
                yield "other tool", (*before, other_call, *after)
                yield "write then undone", (*before, call, other_call, *after)
    for a, b in itertools.pairwise(writes):
        yield "writes swapped", (*calls[:a], calls[b], *calls[a + 1 : b], calls[a], *calls[b + 1 :])


def _overlap(a: Call, b: Call) -> bool:
    return bool(set(a.arguments.items()) & set(b.arguments.items()))


def _other_arguments(trial: Trial, call: Call) -> Iterator[tuple[str, dict[str, Any]]]:
    tool = trial.task.tool(call.tool)
    assert tool is not None, f"the gold calls {call.tool}, which the task lacks"
    for param in tool.parameters:
        value = call.arguments[param.name]
        if param.enum:
            yield from (("other choice", {param.name: other}) for other in param.enum if other != value)
        elif isinstance(value, bool):
            yield "other flag", {param.name: not value}
        elif isinstance(value, str):
            yield from (
                ("other row", {param.name: other}) for other in trial.alternatives(value)[:MAX_OTHERS]
            )
            yield "other row", {param.name: MADE_UP}
            yield from ((operator, {param.name: str(other)}) for operator, other in near_values(value))
        else:
            yield from ((operator, {param.name: other}) for operator, other in near_values(value))
            yield "other amount", {param.name: -value}


def near_values(value: object) -> Iterator[tuple[str, object]]:
    """What a slip makes of a number or a date, be it a text: off by one, or in another unit."""
    if isinstance(value, str):
        if _NUMBER.fullmatch(value):
            value = float(value) if "." in value else int(value)
        else:
            yield from (("date off by one", other) for other in _near_dates(value))
            return
    if isinstance(value, int | float):
        yield from (("off by one", value + step) for step in (-1, 1))
        yield from (("other unit", value * 100) for _ in range(value != 0))


def _near_dates(text: str) -> Iterator[str]:
    try:
        day = date.fromisoformat(text)
        yield from ((day + timedelta(days=step)).isoformat() for step in (-1, 1))
    except (ValueError, OverflowError):
        return


def _added_writes(trial: Trial) -> Iterator[tuple[str, tuple[Call, ...]]]:
    """The gold, then one more write to any row."""
    for call in write_calls(trial):
        if call not in trial.task.gold.calls:
            yield "one write more", (*trial.task.gold.calls, call)


def _reordered(trial: Trial) -> Iterator[tuple[str, tuple[Call, ...]]]:
    """Acting before looking, where a policy forbids it."""
    if any(clause.part == "policy" for clause in trial.task.clauses) and (writes := _writes(trial)):
        calls = trial.task.gold.calls
        acting = tuple(calls[index] for index in writes)
        yield "acted first", (*acting, *(call for index, call in enumerate(calls) if index not in writes))
        yield "never looked", acting


def write_calls(trial: Trial) -> list[Call]:
    """Calls of every writing tool on every row that the world has: a parameter takes the column of its own
    name.
    """
    return [call for tool in trial.task.tools if tool.writes for call in _calls_of(trial, tool)]


def _calls_of(trial: Trial, tool: Tool) -> Iterator[Call]:
    names = [param.name for param in tool.parameters]
    options = [list(param.enum) or _column_values(trial, param.name) for param in tool.parameters]
    for values in itertools.islice(itertools.product(*options), MAX_OTHERS):
        yield Call(tool=tool.name, arguments=dict(zip(names, values, strict=True)))


def _column_values(trial: Trial, name: str) -> list[object]:
    values = [value for (_, column), held in trial.columns.items() if column == name for value in held]
    return list(dict.fromkeys(values))

"""G15: agents that take a short cut instead of doing the task.

Some are right now and then, as a stopped clock is: to read everything and then always act, or always refuse;
to take the first, the last or the most common option. On one task that is recorded; over a corpus its rate is
bounded (`synthesis.diversity`). Others may never score: every write on every row, and the prompt's own words
as the answer. Nor may both always acting and always refusing be right.
"""

import json
from collections import Counter
from collections.abc import Sequence

from envs.task import GateRecord, Slot
from synthesis.gates.grounding import appears
from synthesis.gates.solution_mutants import write_calls
from synthesis.gates.trial import Trial

GATE, TITLE, VERSION = "G15", "shortcuts", 1
MAX_SPAM = 60


def check(trial: Trial) -> GateRecord:
    shortcuts = {**_decided_before(trial), **_positions(trial)}
    never = {"copies the prompt": _copies_prompt(trial), "writes everywhere": _spams(trial)}
    both = shortcuts.get("always acts", 0) and shortcuts.get("always refuses", 0)
    faults = [name for name, score in never.items() if score]
    if both:
        faults.append("always acts and always refuses")
    shown = ", ".join(f"{name}: {score:.0f}" for name, score in {**shortcuts, **never}.items())
    return GateRecord(
        gate=GATE,
        passed=not faults,
        value=float(len(faults)),
        evidence=f"scores: {faults[0]}; {shown}" if faults else shown,
        version=VERSION,
    )


def _decided_before(trial: Trial) -> dict[str, float]:
    """Agents that find and read everything, then act or refuse whatever they read.

    The best that such an agent can do: any plan of the guess space, each of which reads before it decides.
    """
    plans = trial.task.guess.plans
    acting = [trial.score(plan, gate=GATE) for plan in plans if trial.has_write(plan.calls)]
    idle = [trial.score(plan, gate=GATE) for plan in plans if not trial.has_write(plan.calls)]
    if not acting or not idle:
        return {}
    return {"always acts": max(acting), "always refuses": max(idle)}


def _positions(trial: Trial) -> dict[str, float]:
    """Agents that choose by an option's place in the listing, or by how often the world names it."""
    slots = trial.task.guess.slots
    if not slots:
        return {}
    held = Counter(value for values in trial.cells.values() for value in values if isinstance(value, str))
    choices = {
        "first option": [slot.options[0] for slot in slots],
        "last option": [slot.options[-1] for slot in slots],
        "commonest option": [max(slot.options, key=lambda option: held[option]) for slot in slots],
    }
    answers = [_answer(trial, slots, chosen) for chosen in choices.values()]
    return dict(zip(choices, trial.scores((), answers, gate=GATE), strict=True))


def _copies_prompt(trial: Trial) -> float:
    """Each place of the answer filled with an option that the prompt names, where it names one."""
    slots = trial.task.guess.slots
    prompt = trial.task.prompt[-1].content
    named = [next((option for option in slot.options if appears(option, prompt)), "") for slot in slots]
    if not any(named):
        return 0.0
    chosen = [name or slot.options[0] for name, slot in zip(named, slots, strict=True)]
    singles_out = all(name or len(slot.options) == 1 for name, slot in zip(named, slots, strict=True))
    score = trial.scores((), [_answer(trial, slots, chosen)], gate=GATE)[0]
    return score if singles_out else 0.0


def _spams(trial: Trial) -> float:
    """Calls every writing tool on every row, then gives each of the answers that need no reading."""
    calls = write_calls(trial)[:MAX_SPAM]
    if len(calls) < 2:
        return 0.0
    answers = [*trial.task.answer.choices, "done"]
    return max(trial.scores(calls, answers, gate=GATE))


def _answer(trial: Trial, slots: Sequence[Slot], chosen: Sequence[str]) -> str:
    rows: list[dict[str, str]] = [{} for _ in range(trial.task.answer.num_rows)]
    for row, column, value in trial.task.guess.fixed:
        rows[row][column] = value
    for slot, option in zip(slots, chosen, strict=True):
        rows[slot.row][slot.column] = option
    return json.dumps(rows)

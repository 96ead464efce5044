"""G4: how often an agent that looks at nothing is right: exactly, by seeded draws, and by always taking the
first.

The exact probability enumerates the guess space through the verifier where it is small, and there exactly one
guess may be right, as the solver proves; else it divides the solver's count by the space's size. A greedy
success is recorded and no reason to refuse: a task whose first option is right must stay as likely as any
other, or position itself would tell.
"""

import itertools
import json
import math
import random

from envs.agents import greedy_plan, random_plan
from envs.task import GateRecord, Plan, stable_seed
from synthesis.gates.trial import Trial
from synthesis.solver import solve

GATE, TITLE, VERSION = "G4", "guessing", 1
MAX_PROBABILITY = 0.35
MAX_ENUMERATED = 600
NUM_DRAWS = 20


def check(trial: Trial) -> GateRecord:
    right, size, how = count_right(trial)
    probability = right / size
    rng = random.Random(stable_seed(GATE, trial.task.world.content_hash, trial.task.level))
    drawn = sum(_score(trial, random_plan(trial.task, rng)) for _ in range(NUM_DRAWS))
    greedy = _score(trial, greedy_plan(trial.task))
    return GateRecord(
        gate=GATE,
        passed=right == 1 and probability <= MAX_PROBABILITY,
        value=probability,
        evidence=f"{right} of {size} {how}; {drawn:.0f} of {NUM_DRAWS} random draws, greedy {greedy:.0f};"
        f" bound {MAX_PROBABILITY}, one right",
        version=VERSION,
    )


def _score(trial: Trial, plan: Plan) -> float:
    """Without the call that submits, which carries the answer and changes nothing: so plays can be shared."""
    ends = {tool.name for tool in trial.task.tools if tool.ends_episode}
    return trial.scores([call for call in plan.calls if call.tool not in ends], [plan.answer], gate=GATE)[0]


def count_right(trial: Trial) -> tuple[int, int, str]:
    """How many of the guess space are right, its size, and what is counted how."""
    guess = trial.task.guess
    if guess.plans:
        return (
            round(sum(trial.score(plan, gate=GATE) for plan in guess.plans)),
            len(guess.plans),
            "plans are right",
        )
    if is_enumerable(trial):
        answers = all_answers(trial)
        return round(sum(trial.scores((), answers, gate=GATE))), len(answers), "answers are right"
    size = math.prod(len(slot.options) for slot in guess.slots)
    return len(solve(trial.draft.problem, limit=2).optima), size, "answers by the solver's count"


def is_enumerable(trial: Trial) -> bool:
    return math.prod(len(slot.options) for slot in trial.task.guess.slots) <= MAX_ENUMERATED


def all_answers(trial: Trial) -> list[str]:
    """Every answer of the guess space."""
    task = trial.task
    answers: list[str] = []
    for choice in itertools.product(*(slot.options for slot in task.guess.slots)):
        rows: list[dict[str, str]] = [{} for _ in range(task.answer.num_rows)]
        for row, column, value in task.guess.fixed:
            rows[row][column] = value
        for slot, option in zip(task.guess.slots, choice, strict=True):
            rows[slot.row][slot.column] = option
        answers.append(json.dumps(rows))
    return answers

"""G12: the solver proves that the task has exactly one right answer, and that it is the gold's.

The problem says the task without the verifier's SQL, so that each checks the other.
"""

from envs.task import GateRecord
from envs.verifier import parse_answer
from synthesis.gates.trial import Trial, image_state
from synthesis.solver import solve

GATE, TITLE, VERSION = "G12", "uniqueness", 1
PLAN = "plan"
"""The variable of a problem whose options are whole plans, in the order of the guess space."""


def check(trial: Trial) -> GateRecord:
    problem = trial.draft.problem
    solutions = solve(problem, limit=2)
    if not (solutions.proved and solutions.complete and len(solutions.optima) == 1):
        state = "proved" if solutions.proved else "not proved"
        more = "" if solutions.complete else " or more"
        return _record(False, f"{len(solutions.optima)}{more} solutions, {state}")
    found = solutions.optima[0]
    if (
        fault := _plan_fault(trial, found) if set(found) == {PLAN} else _answer_fault(trial, found)
    ) is not None:
        return _record(False, fault)
    cost = f" at cost {solutions.objective}" if problem.cost else ""
    return _record(True, f"one solution{cost} of {len(found)} variables, proved; it is the gold's")


def _record(passed: bool, evidence: str) -> GateRecord:
    return GateRecord(gate=GATE, passed=passed, value=float(passed), evidence=evidence, version=VERSION)


def _plan_fault(trial: Trial, found: dict[str, str]) -> str | None:
    plan = trial.task.guess.plans[trial.draft.problem.options[PLAN].index(found[PLAN])]
    spec = trial.task.answer
    if parse_answer(spec, plan.answer) != parse_answer(spec, trial.task.gold.answer):
        return f"the solver says {found[PLAN]}, the gold answers {trial.task.gold.answer!r}"
    if image_state(trial.play(plan).final) != trial.gold_state:
        return f"the solver says {found[PLAN]}, which leaves another state than the gold"
    return None


def _answer_fault(trial: Trial, found: dict[str, str]) -> str | None:
    """Variables are `ROW.column`, or `column` for the first row; they must be all the cells that are not
    given.
    """
    rows = parse_answer(trial.task.answer, trial.task.gold.answer) or []
    given = {(row, column) for row, column, _ in trial.task.guess.fixed}
    cells = {(r, c): value for r, row in enumerate(rows) for c, value in row.items() if (r, c) not in given}
    solved: dict[tuple[int, str], str] = {}
    for name, value in found.items():
        row, _, column = name.rpartition(".")
        solved[int(row or 0), column] = value
    if solved != cells:
        return f"the solver says {sorted(solved.items())[:4]}, the gold {sorted(cells.items())[:4]}"
    return None

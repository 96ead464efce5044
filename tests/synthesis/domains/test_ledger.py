"""The household's books: what a tip may be, what must be put right, and which bills can be paid."""

import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from envs.task import Call, Plan
from envs.tool_server import ToolServer
from envs.verifier import judge
from synthesis.domains.ledger import DOMAIN, contradicts
from synthesis.domains.ledger_bills import bills_problem
from synthesis.gates.suite import run_gates
from synthesis.gates.trial import Trial
from synthesis.general import Candidate
from synthesis.grammar import Care, Client
from synthesis.solver import solve

Candidates = Callable[..., Candidate]


def plan_of(made: Candidate, slip_rate: float, seed: int) -> tuple[Plan, int]:
    """The planner's plan and how often it slipped."""
    server = ToolServer(made.image, made.task.tools)
    care = Care(slip_rate=slip_rate, rng=random.Random(seed))
    plan = DOMAIN.plan(made.draft, Client(server), care)
    server.close()
    return plan, care.num_slips


@pytest.mark.parametrize("level", DOMAIN.levels)
def test_candidates_pass_every_gate(candidate: Candidates, level: int) -> None:
    for index in range(2):
        assert [r for r in run_gates(candidate("ledger", level, index)) if not r.passed] == []


@pytest.mark.parametrize("level", DOMAIN.levels)
def test_slips_lead_to_honest_failures(candidate: Candidates, level: int) -> None:
    scores = []
    for index in range(8):
        made = candidate("ledger", level, index)
        plan, num_slips = plan_of(made, 0.7, index)
        scores.append(Trial(made).score(plan))
        assert num_slips > 0 or scores[-1] == 1.0
    assert 0.0 in scores


def test_a_tip_of_the_limit_is_still_a_tip() -> None:
    assert not contradicts({"amount": 55}, 50, 5)
    assert contradicts({"amount": 56}, 50, 5)
    assert contradicts({"amount": 44}, 50, 5)  # the receipt may be the larger one


def reconciled(candidates: Candidates, answer: str) -> Candidate:
    made = (candidates("ledger", 3, index) for index in range(60))
    return next(each for each in made if each.task.gold.answer == answer)


def test_every_wrong_entry_is_corrected_and_no_tip(candidate: Candidates) -> None:
    made = reconciled(candidate, "corrected")
    gold = made.task.gold
    fixes = [call for call in gold.calls if call.tool == "correct_entry"]
    assert len(fixes) > 1
    for fix in fixes:
        left = tuple(call for call in gold.calls if call != fix)
        assert Trial(made).score(replace(gold, calls=left)) == 0.0
        near = replace(fix, arguments={**fix.arguments, "amount": fix.arguments["amount"] + 1})
        assert Trial(made).score(replace(gold, calls=(*left, near))) == 0.0
    fixed = {fix.arguments["entry_id"] for fix in fixes}
    for entry_id, *_, amount in next(t for t in made.draft.tables if t.name == "entries").rows:
        if entry_id not in fixed:
            more = Call(tool="correct_entry", arguments={"entry_id": entry_id, "amount": amount + 1})
            assert Trial(made).score(replace(gold, calls=(*gold.calls, more))) == 0.0


def test_clean_books_are_read_and_left_alone(candidate: Candidates) -> None:
    made = reconciled(candidate, "clean")
    assert made.task.frame == ()
    assert Trial(made).score(Plan(calls=(), answer="clean")) == 0.0
    assert Trial(made).score(replace(made.task.gold, answer="corrected")) == 0.0


def test_bills_go_by_late_fees_within_the_budget_to_the_last_euro() -> None:
    """D1 and D2 cost exactly the 100 and leave a fee of 9; D3 alone is cheaper and leaves 10 + 8."""
    due = [
        {"bill_id": "D1", "amount": 60, "late_fee": 10},
        {"bill_id": "D2", "amount": 40, "late_fee": 8},
        {"bill_id": "D3", "amount": 70, "late_fee": 9},
    ]
    found = solve(bills_problem(due, 100))
    assert (found.optima, found.objective) == (({"plan": "D1 D2"},), 9)
    assert solve(bills_problem(due, 99)).optima == ({"plan": "D1"},)


def test_every_set_of_bills_but_one_scores_nothing(candidate: Candidates) -> None:
    """32 sets: those beyond the reserve and those with higher late fees alike."""
    made = candidate("ledger", 4)
    scores = [Trial(made).score(plan) for plan in made.task.guess.plans]
    assert (len(scores), sum(scores)) == (32, 1.0)


def test_the_verifier_knows_the_reserve_by_itself_and_not_only_the_frame(candidate: Candidates) -> None:
    made = candidate("ledger", 4)
    amounts = {row[0]: row[3] for row in next(t for t in made.draft.tables if t.name == "bills").rows}
    balance = next(row[1] for row in made.draft.tables[0].rows if row[0] == "giro")
    num_seen = 0
    for plan in made.task.guess.plans:
        left = balance - sum(amounts[call.arguments["bill_id"]] for call in plan.calls[1:])
        verdict = judge(made.task, Trial(made).play(plan))
        assert ("goal: the reserve is whole" in verdict.faults) == (left < made.draft.goal.reserve)
        num_seen += 0 < left < made.draft.goal.reserve
    assert num_seen > 0


def test_a_bill_paid_twice_or_paid_already_scores_nothing(candidate: Candidates) -> None:
    made = candidate("ledger", 4)
    gold = made.task.gold
    assert Trial(made).score(replace(gold, calls=(*gold.calls, gold.calls[-1]))) == 0.0
    bills = next(t for t in made.draft.tables if t.name == "bills").rows
    paid = next(row[0] for row in bills if row[-1] == "paid")
    again = Call(tool="pay_bill", arguments={"bill_id": paid})
    assert Trial(made).score(replace(gold, calls=(*gold.calls, again))) == 0.0

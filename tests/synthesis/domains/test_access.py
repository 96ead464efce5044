"""The IT desk: the order of its rules, the question that must be asked, incidents."""

import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from envs.task import Call, Plan
from envs.tool_server import ToolServer
from synthesis.domains.access import DOMAIN
from synthesis.domains.access_world import _logins, broken_rule
from synthesis.gates.suite import run_gates
from synthesis.gates.trial import Trial
from synthesis.general import Candidate
from synthesis.grammar import Care, Client

Candidates = Callable[..., Candidate]
SOUND = {"status": "active", "manager_id": "E1", "contract": "staff", "training": 2023}


def plan_of(made: Candidate, slip_rate: float, seed: int = 0) -> tuple[Plan, Care]:
    server = ToolServer(made.image, made.task.tools)
    care = Care(slip_rate=slip_rate, rng=random.Random(seed))
    plan = DOMAIN.plan(made.draft, Client(server), care)
    server.close()
    return plan, care


def answered(candidates: Candidates, level: int, word: str) -> Candidate:
    made = (candidates("access", level, index) for index in range(40))
    return next(each for each in made if each.task.gold.answer == word)


def test_requests_for_two_systems_alone_leave_fewer_logins() -> None:
    """All eight requests of one desk in 2,145 are for two of the four systems."""
    members, managers = ["E1", "E2", "E3", "E4"], ["E5", "E6"]
    pairs = [(member, system) for member in members for system in ("mail", "wiki")]
    requests = [{"employee_id": who, "system": system, "state": "granted"} for who, system in pairs]
    logins = _logins(random.Random(0), requests, [*managers, *members])
    assert len(logins) == 12
    got_in = {(login["employee_id"], login["system"]) for login in logins if login["outcome"] == "ok"}
    assert len(got_in - set(pairs)) == 1  # the intruder


@pytest.mark.parametrize("level", DOMAIN.levels)
def test_candidates_pass_every_gate(candidate: Candidates, level: int) -> None:
    for index in range(2):
        assert [r for r in run_gates(candidate("access", level, index)) if not r.passed] == []


@pytest.mark.parametrize(
    ("changes", "approved_by", "protection", "reason"),
    [
        ({}, "E1", "restricted", None),
        ({"training": 2022}, "E1", "restricted", None),  # the year itself is enough
        ({"training": 2021}, "E1", "restricted", "training"),
        ({"training": 2021}, "E1", "open", None),
        ({"contract": "contractor"}, "E1", "open", None),
        ({"contract": "contractor", "training": 2021}, "E1", "restricted", "contract"),
        ({"contract": "contractor"}, "E2", "restricted", "approval"),  # another manager's word does not count
        ({"status": "on leave"}, "E2", "restricted", "inactive"),
        ({"status": "locked"}, "E1", "open", "inactive"),
    ],
)
def test_the_first_broken_rule_decides(
    changes: dict[str, object], approved_by: str, protection: str, reason: str | None
) -> None:
    assert broken_rule(SOUND | changes, approved_by, protection, 2022) == reason


def test_the_verifier_takes_the_rules_in_the_same_order(candidate: Candidates) -> None:
    """Every reason, with and without a grant, on a task whose request breaks a rule: one alone is right."""
    made = answered(candidate, 2, "denied")
    assert round(sum(Trial(made).score(plan) for plan in made.task.guess.plans)) == 1
    reasons = {call.arguments.get("reason") for call in made.task.gold.calls} - {None}
    assert len(reasons) == 1


def test_guessing_which_request_is_meant_is_not_enough(candidate: Candidates) -> None:
    """The gold without its question leaves the same row and the same answer, and scores 0."""
    made = candidate("access", 3)
    gold = made.task.gold
    silent = replace(gold, calls=tuple(call for call in gold.calls if call.tool != "ask_user"))
    assert Trial(made).score(gold) == 1.0
    assert Trial(made).score(silent) == 0.0
    late = replace(gold, calls=(*silent.calls, Call(tool="ask_user", arguments={"topic": "system"})))
    assert Trial(made).score(late) == 0.0


def test_an_incident_costs_the_account_and_each_of_its_grants(candidate: Candidates) -> None:
    made = answered(candidate, 4, "locked")
    gold = made.task.gold
    revoked = [call for call in gold.calls if call.tool == "revoke_request"]
    assert revoked
    for call in (*revoked, *(c for c in gold.calls if c.tool == "lock_account")):
        assert Trial(made).score(replace(gold, calls=tuple(c for c in gold.calls if c != call))) == 0.0
    others = Trial(made).columns["requests", "request_id"]
    kept = next(each for each in others if each not in {c.arguments["request_id"] for c in revoked})
    more = Call(tool="revoke_request", arguments={"request_id": kept})
    assert Trial(made).score(replace(gold, calls=(*gold.calls, more))) == 0.0


def test_a_log_in_order_is_answered_clean_after_reading_it(candidate: Candidates) -> None:
    made = answered(candidate, 4, "clean")
    assert made.task.frame == ()
    assert Trial(made).score(Plan(calls=(), answer="clean")) == 0.0
    assert Trial(made).score(made.task.gold) == 1.0


@pytest.mark.parametrize("level", DOMAIN.levels)
def test_slips_lead_to_honest_failures(candidate: Candidates, level: int) -> None:
    scores = []
    for index in range(8):
        made = candidate("access", level, index)
        plan, care = plan_of(made, 0.7, index)
        scores.append(Trial(made).score(plan))
        assert care.num_slips > 0 or scores[-1] == 1.0
    assert 0.0 in scores

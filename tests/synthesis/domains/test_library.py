"""The library: what may be renewed, what a copy that comes back sets off, and the look-up."""

import json
import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from envs.task import Call, Plan
from synthesis.domains.library import DOMAIN
from synthesis.domains.library_world import (
    Hold,
    LibraryWorld,
    Loan,
    Request,
    is_charged,
    may_renew,
    policy_text,
)
from synthesis.gates.suite import run_gates
from synthesis.gates.trial import Trial
from synthesis.general import Candidate
from synthesis.grammar import Care, Draft

Candidates = Callable[..., Candidate]
ByHand = Callable[[Draft], Candidate]
Careless = Callable[[Candidate, float, int], tuple[Plan, Care]]


def loan(**fields: int) -> Loan:
    numbers = {"due": 100, "days_late": 0, "renewals": 0} | fields
    return Loan(loan="L1", member_id="M1", copy="C1", **numbers)


def returned(*, kind: str, days_late: int, fines: tuple[int, int]) -> Draft:
    """Ada Ito (M1) brings back C1 of T1; M2 and M3, who owe `fines`, wait for T1 in this order."""
    world = LibraryWorld(
        members={
            "M1": ("Ada Ito", kind, 1),
            "M2": ("Hugo Haas", "adult", fines[0]),
            "M3": ("Ines Chen", "adult", fines[1]),
        },
        titles={"T1": ("Quiet Rivers", "Demir"), "T2": ("Amber Voices", "Eskola")},
        copies={
            "C1": ("T1", "Market", "lent"),
            "C2": ("T2", "Market", "lent"),
            "C3": ("T1", "Market", "repair"),
        },
        loans={
            "L1": loan(days_late=days_late),
            "L2": Loan(loan="L2", member_id="M1", copy="C2", due=120, days_late=0, renewals=0),
        },
        holds={
            "H1": Hold(hold="H1", member_id="M2", title_id="T1", place=1),
            "H2": Hold(hold="H2", member_id="M3", title_id="T1", place=2),
        },
        fine_limit=8,
    )  # fmt: skip
    request = Request(
        action="return", name="Ada Ito", titles=("Quiet Rivers",), author="", loans=(), fine_limit=8
    )
    made = DOMAIN.make(4, 1, random.Random(0), world, request)
    assert made is not None
    return made


def writes(made: Candidate) -> list[tuple[str, dict[str, object]]]:
    written = {tool.name for tool in made.task.tools if tool.writes}
    return [(call.tool, call.arguments) for call in made.task.gold.calls if call.tool in written]


@pytest.mark.parametrize("level", DOMAIN.levels)
def test_candidates_pass_every_gate(candidate: Candidates, level: int) -> None:
    assert [r for r in run_gates(candidate("library", level)) if not r.passed] == []


@pytest.mark.parametrize(
    ("fields", "num_waiting", "fines", "allowed"),
    [
        ({"renewals": 1}, 0, 7, True),
        ({"renewals": 2}, 0, 0, False),
        ({}, 1, 0, False),
        ({}, 0, 8, False),  # the limit itself is too much
        ({"days_late": 1}, 0, 0, False),
    ],
)
def test_what_may_be_renewed(fields: dict[str, int], num_waiting: int, fines: int, allowed: bool) -> None:
    assert may_renew(loan(**fields), num_waiting=num_waiting, fines=fines, fine_limit=8) == allowed


@pytest.mark.parametrize(
    ("days_late", "kind", "charged"),
    [(0, "adult", False), (1, "adult", True), (3, "student", False), (4, "student", True)],
)
def test_who_is_charged(days_late: int, kind: str, charged: bool) -> None:
    assert is_charged(days_late, kind) == charged


@pytest.mark.parametrize(
    ("kind", "days_late", "fines", "moves"),
    [
        ("adult", 0, (7, 0), [("reserve_copy", {"copy": "C1", "hold": "H1"})]),
        ("adult", 0, (8, 7), [("reserve_copy", {"copy": "C1", "hold": "H2"})]),  # the first owes too much
        ("adult", 0, (8, 9), [("shelve_copy", {"copy": "C1"})]),
        ("student", 3, (8, 9), [("shelve_copy", {"copy": "C1"})]),
        (
            "student", 4, (8, 9),
            [("charge_late", {"member_id": "M1", "days_late": 4}), ("shelve_copy", {"copy": "C1"})],
        ),
    ],
)  # fmt: skip
def test_a_return_worked_by_hand(
    by_hand: ByHand, kind: str, days_late: int, fines: tuple[int, int], moves: list[tuple[str, object]]
) -> None:
    made = by_hand(returned(kind=kind, days_late=days_late, fines=fines))
    assert writes(made) == [("close_loan", {"loan": "L1"}), *moves]
    assert Trial(made).score(made.task.gold) == 1.0


def test_the_verifier_counts_every_step_of_a_return(by_hand: ByHand) -> None:
    made = by_hand(returned(kind="adult", days_late=5, fines=(8, 7)))
    trial, gold = Trial(made), made.task.gold
    charge = Call(tool="charge_late", arguments={"member_id": "M1", "days_late": 5})
    first = Call(tool="reserve_copy", arguments={"copy": "C1", "hold": "H1"})
    assert trial.score(gold) == 1.0
    assert charge in gold.calls
    for tool in ("get_loan", "close_loan", "charge_late", "reserve_copy"):
        assert trial.score(replace(gold, calls=tuple(c for c in gold.calls if c.tool != tool))) == 0.0
    for more in (charge, first, Call(tool="close_loan", arguments={"loan": "L2"})):
        assert trial.score(replace(gold, calls=(*gold.calls, more))) == 0.0


def test_a_renewal_is_made_once(candidate: Candidates) -> None:
    made = next(c for c in (candidate("library", 2, i) for i in range(20)) if c.task.frame)
    gold = made.task.gold
    assert gold.calls[-1].tool == "renew_loan"
    assert Trial(made).score(replace(gold, calls=(*gold.calls, gold.calls[-1]))) == 0.0


def test_a_refusal_needs_the_loan_opened(candidate: Candidates) -> None:
    made = next(c for c in (candidate("library", 2, i) for i in range(40)) if not c.task.frame)
    assert Trial(made).score(made.task.gold) == 1.0
    assert Trial(made).score(Plan(calls=(), answer="refused")) == 0.0


def test_the_same_title_by_another_author_is_wrong(candidate: Candidates) -> None:
    """Every copy is tried, at its own branch: the shelved one of the right author alone is right."""
    made = candidate("library", 1)
    trial = Trial(made)
    copies = trial.columns["copies", "copy"]
    branches = ("Harbour", "Hillside", "Market", "Station")
    answers = [json.dumps([{"copy": c, "branch": b}]) for c in copies for b in branches]
    right = [a for a, score in zip(answers, trial.scores((), answers), strict=True) if score]
    assert right == [made.task.gold.answer]


def test_the_policy_names_both_words_of_a_choice(candidate: Candidates) -> None:
    for level in (2, 4):
        text = policy_text(candidate("library", level).draft.goal)
        assert "done" in text
        assert "refused" in text


def test_level_five_is_about_both_books_of_the_member(candidate: Candidates) -> None:
    request: Request = candidate("library", 5).draft.goal
    assert len(set(request.titles)) == 2
    closed = [call for call, _ in writes(candidate("library", 5)) if call == "close_loan"]
    assert len(closed) == 2


@pytest.mark.parametrize("level", DOMAIN.levels)
def test_slips_lead_to_honest_failures(candidate: Candidates, careless: Careless, level: int) -> None:
    scores = []
    for index in range(8):
        made = candidate("library", level, index)
        plan, care = careless(made, 0.7, index)
        scores.append(Trial(made).score(plan))
        assert care.num_slips > 0 or scores[-1] == 1.0
    assert 0.0 in scores

"""Clinic scheduling: the earliest that fits, the question that must be asked, the test before, the round."""

import json
from collections.abc import Callable
from dataclasses import replace

import pytest

from envs.task import Call, Plan
from synthesis.domains.clinic import DOMAIN, best_booking
from synthesis.domains.clinic_round import round_problem
from synthesis.domains.clinic_world import Patient, Slot, Visit
from synthesis.gates.suite import run_gates
from synthesis.gates.trial import Trial
from synthesis.general import Candidate
from synthesis.grammar import Care
from synthesis.solver import solve

Candidates = Callable[..., Candidate]
Careless = Callable[[Candidate, float, int], tuple[Plan, Care]]
DOCTORS = {"Imai": ("neurology", 1), "Gallo": ("neurology", 2), "Hoang": ("laboratory", 3)}


def slot(number: int, doctor: str, day: str, starts: str, patient_id: str = "free") -> Slot:
    return Slot(slot=f"S{number}", doctor=doctor, day=day, starts=starts, patient_id=patient_id)


SLOTS = (
    slot(1, "Imai", "2025-11-03", "09:00"),
    slot(2, "Imai", "2025-11-03", "08:30", "P1"),
    slot(3, "Gallo", "2025-11-04", "08:00"),
    slot(4, "Gallo", "2025-11-03", "14:00"),
    slot(5, "Hoang", "2025-11-03", "08:15"),
    slot(6, "Hoang", "2025-11-03", "13:00"),
    slot(7, "Hoang", "2025-11-03", "13:15"),
)


@pytest.mark.parametrize("level", DOMAIN.levels)
def test_candidates_pass_every_gate(candidate: Candidates, level: int) -> None:
    assert [r for r in run_gates(candidate("clinic", level)) if not r.passed] == []


@pytest.mark.parametrize(
    ("wishes", "booked"),
    [
        ({}, ["S1"]),  # S2 is taken, S3 a day later
        ({"doctor": "Gallo"}, ["S4"]),
        ({"day": "2025-11-04"}, ["S3"]),
        ({"earliest": "09:00"}, ["S1"]),  # the hour itself is early enough
        ({"earliest": "09:01", "latest": "13:59"}, None),
        ({"doctor": "Gallo", "latest": "12:00"}, ["S3"]),
        ({"after_test": True}, ["S6", "S4"]),  # S5 is 45 minutes before S1, S7 45 before S4; S6 60
        ({"after_test": True, "latest": "13:59"}, None),
        ({"after_test": True, "earliest": "13:01"}, None),  # the hours hold for the test too
    ],
)
def test_what_is_booked_worked_by_hand(wishes: dict[str, object], booked: list[str] | None) -> None:
    visit = Visit(name="Ada Ito", specialty="neurology", **wishes)  # type: ignore[arg-type]
    best = best_booking(SLOTS, visit, DOCTORS)
    assert (best if best is None else [each.slot for each in best]) == booked


def test_the_later_test_wins_where_two_are_in_time() -> None:
    slots = [each for each in SLOTS if each.slot != "S1"]
    visit = Visit(name="Ada Ito", specialty="neurology", after_test=True)
    assert [s.slot for s in best_booking(slots, visit, DOCTORS) or ()] == ["S6", "S4"]


def test_the_round_worked_by_hand() -> None:
    """Slots 15, 45 and 75 minutes after eight; the first patient (priority 3) cannot come before 08:30.

    3 * 45 + 2 * 15 + 1 * 75 = 240 is the least.
    """
    slots = [slot(i, "Imai", "2025-11-03", starts) for i, starts in enumerate(("08:15", "08:45", "09:15"))]
    patients = [
        Patient(patient_id=f"P{priority}", name="", priority=priority, earliest=earliest, latest="18:00")
        for priority, earliest in ((3, "08:30"), (2, "08:00"), (1, "08:00"))
    ]
    found = solve(round_problem(patients, slots), limit=2)
    assert (found.objective, found.complete) == (240, True)
    assert found.optima == ({"0.slot": "S1", "1.slot": "S0", "2.slot": "S2"},)


def test_the_patient_is_asked_before_the_booking(candidate: Candidates) -> None:
    """Without its question the gold leaves the same state and gives the same answer, and scores 0."""
    made = candidate("clinic", 3)
    trial, gold = Trial(made), made.task.gold
    ask = Call(tool="ask_user", arguments={"topic": "day"})
    silent = tuple(call for call in gold.calls if call != ask)
    assert len(silent) == len(gold.calls) - 1
    assert trial.score(gold) == 1.0
    assert trial.score(replace(gold, calls=silent)) == 0.0
    assert trial.score(replace(gold, calls=(*silent, ask))) == (0.0 if made.task.frame else 1.0)


def test_a_taken_slot_another_patient_and_one_slot_more_are_refused(candidate: Candidates) -> None:
    made = next(c for c in (candidate("clinic", 2, i) for i in range(20)) if c.task.frame)
    trial, gold = Trial(made), made.task.gold
    last = gold.calls[-1]
    patients, slots = trial.columns["patients", "patient_id"], trial.columns["slots", "slot"]
    wrong = [{"patient_id": p} for p in patients if p != last.arguments["patient_id"]]
    wrong += [{"slot": s} for s in slots if s != last.arguments["slot"]]
    for change in wrong:
        call = replace(last, arguments={**last.arguments, **change})
        assert trial.score(replace(gold, calls=(*gold.calls[:-1], call))) == 0.0
        assert trial.score(replace(gold, calls=(*gold.calls, call))) == 0.0


def test_that_nothing_fits_is_said_after_looking(candidate: Candidates) -> None:
    made = next(c for c in (candidate("clinic", 2, i) for i in range(40)) if not c.task.frame)
    assert made.task.gold.answer == "full"
    assert Trial(made).score(made.task.gold) == 1.0
    assert Trial(made).score(Plan(calls=(), answer="full")) == 0.0


def test_two_patients_of_a_round_may_not_change_places(candidate: Candidates) -> None:
    made = candidate("clinic", 5)
    rows = json.loads(made.task.gold.answer)
    assert len({row["slot"] for row in rows}) == 4
    rows[0]["slot"], rows[1]["slot"] = rows[1]["slot"], rows[0]["slot"]
    assert Trial(made).score(replace(made.task.gold, answer=json.dumps(rows))) == 0.0


@pytest.mark.parametrize("level", DOMAIN.levels)
def test_slips_lead_to_honest_failures(candidate: Candidates, careless: Careless, level: int) -> None:
    scores = []
    for index in range(8):
        made = candidate("clinic", level, index)
        plan, care = careless(made, 0.7, index)
        scores.append(Trial(made).score(plan))
        assert care.num_slips > 0 or scores[-1] == 1.0
    assert 0.0 in scores

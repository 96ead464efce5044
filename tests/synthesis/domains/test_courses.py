"""Course registration: what counts as passed, what clashes, and which sections cost least together."""

import json
import random
from collections.abc import Callable

import pytest

from envs.task import Plan
from envs.tool_server import ToolServer
from synthesis.domains.courses import DOMAIN, Advice, Offer, sections_problem
from synthesis.domains.courses_world import College
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
        assert [r for r in run_gates(candidate("courses", level, index)) if not r.passed] == []


@pytest.mark.parametrize("level", DOMAIN.levels)
def test_slips_lead_to_honest_failures(candidate: Candidates, level: int) -> None:
    scores = []
    for index in range(8):
        made = candidate("courses", level, index)
        plan, num_slips = plan_of(made, 0.7, index)
        scores.append(Trial(made).score(plan))
        assert num_slips > 0 or scores[-1] == 1.0
    assert 0.0 in scores


def test_fifty_is_a_pass() -> None:
    results = [{"student": "M1", "course": c, "grade": g} for c, g in (("Law", 50), ("Optics", 49))]
    empty = {"students": (), "courses": (), "prerequisites": (), "sections": (), "appointments": ()}
    assert College(results=results, **empty).passed("M1") == {"Law"}


def section(name: str, time: str, fee: int, seats: int = 1) -> dict[str, object]:
    return {"section": name, "day": "Monday", "hour": time, "seats": seats, "fee": fee}


def test_the_cheapest_pair_without_a_clash_is_not_two_cheapest() -> None:
    """T1 and T3 are cheapest and clash; T5 is full, T6 at an appointment: T2 and T3 cost 30 + 11."""
    law = [section("T1", "09:00", 10), section("T2", "11:00", 30), section("T5", "14:00", 1, seats=0)]
    optics = [section("T3", "09:00", 11), section("T4", "14:00", 40), section("T6", "16:00", 2)]
    offer = Offer(sections={"Law": law, "Optics": optics}, busy={("Monday", "16:00")})
    found = solve(sections_problem(Advice(name="A", courses=("Law", "Optics")), offer))
    assert (found.optima, found.objective) == (({"0.section": "T2", "1.section": "T3"},), 41)


def test_the_third_course_is_chosen_with_its_section() -> None:
    offer = Offer(
        sections={
            "Law": [section("T1", "09:00", 10)],
            "Optics": [section("T2", "11:00", 10)],
            "Drama": [section("T3", "11:00", 1), section("T4", "14:00", 9)],
            "Poetry": [section("T5", "14:00", 8)],
        },
        busy=set(),
        electives=("Drama", "Poetry"),
    )
    advice = Advice(name="A", courses=("Law", "Optics"), field="arts")
    (best,) = solve(sections_problem(advice, offer)).optima
    assert (best["2.course"], best["2.section"]) == ("Poetry", "T5")


def test_a_section_that_costs_more_or_is_of_another_course_scores_nothing(candidate: Candidates) -> None:
    made = candidate("courses", 3)
    rows = json.loads(made.task.gold.answer)
    others = [o for o in made.task.guess.slots[0].options if o != rows[0]["section"]]
    answers = [json.dumps([{"section": other}, rows[1]]) for other in others]
    assert Trial(made).scores((), answers) == [0.0] * len(answers)
    assert Trial(made).scores((), [made.task.gold.answer]) == [1.0]


def test_a_passed_or_closed_course_is_no_third_course(candidate: Candidates) -> None:
    for index in range(12):
        made = candidate("courses", 4, index)
        rows = json.loads(made.task.gold.answer)
        sections = next(t for t in made.draft.tables if t.name == "sections").rows
        answers = [
            json.dumps([*rows[:2], {"course": course, "section": section_id}])
            for section_id, course, *_ in sections
            if {"course": course, "section": section_id} != rows[2]
        ]
        assert Trial(made).scores((), answers) == [0.0] * len(answers)
        assert Trial(made).scores((), [made.task.gold.answer]) == [1.0]

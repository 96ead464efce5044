"""Room booking: what fits, who yields to whom, what must be asked, and the order of an event's sessions."""

import json
import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from envs.task import Call, Plan
from envs.tool_server import ToolServer
from synthesis.domains.rooms import DOMAIN
from synthesis.domains.rooms_event import Event, event_problem
from synthesis.domains.rooms_world import Needs
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
        assert [r for r in run_gates(candidate("rooms", level, index)) if not r.passed] == []


@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_slips_lead_to_honest_failures(candidate: Candidates, level: int) -> None:
    scores = []
    for index in range(8):
        made = candidate("rooms", level, index)
        plan, num_slips = plan_of(made, 0.7, index)
        scores.append(Trial(made).score(plan))
        assert num_slips > 0 or scores[-1] == 1.0
    assert 0.0 in scores


def test_needs_count_the_last_seat_and_only_what_was_asked() -> None:
    room = {"seats": 12, "projector": "no", "step_free": "yes"}
    assert Needs(people=12, step_free=True).met_by(room)
    assert not Needs(people=13).met_by(room)
    assert not Needs(people=4, projector=True).met_by(room)


def test_a_tentative_booking_yields_only_after_its_release(candidate: Candidates) -> None:
    made = ending(candidate, "release_slot")
    gold = made.task.gold
    at_once = tuple(call for call in gold.calls if call.tool != "release_slot")
    assert Trial(made).score(gold) == 1.0
    assert Trial(made).score(replace(gold, calls=at_once)) == 0.0  # the same slots in the end
    late = (*at_once[:-1], at_once[-1], next(c for c in gold.calls if c.tool == "release_slot"), at_once[-1])
    assert Trial(made).score(replace(gold, calls=late)) == 0.0


def ending(candidates: Candidates, tool: str) -> Candidate:
    """A task of level 4 whose gold calls `tool`."""
    made = (candidates("rooms", 4, index) for index in range(40))
    return next(each for each in made if tool in [call.tool for call in each.task.gold.calls])


def test_a_firm_booking_never_yields(candidate: Candidates) -> None:
    made = next(m for i in range(40) if (m := candidate("rooms", 4, i)).task.gold.answer == "refused")
    wish = made.draft.goal
    for slot in next(t for t in made.draft.tables if t.name == "slots").rows:
        release = Call(tool="release_slot", arguments={"slot_id": slot[0]})
        book = Call(tool="book_slot", arguments={"slot_id": slot[0], "holder": wish.name})
        calls = (*made.task.gold.calls, release, book)
        assert Trial(made).scores(calls, ["booked", "refused"]) == [0.0, 0.0]


def test_the_user_must_be_asked_before_the_booking(candidate: Candidates) -> None:
    made = candidate("rooms", 3)
    gold = made.task.gold
    assert "ask_user" in [call.tool for call in gold.calls]
    silent = tuple(call for call in gold.calls if call.tool != "ask_user")
    assert Trial(made).score(replace(gold, calls=silent)) == 0.0


def test_a_room_is_booked_in_the_users_name(candidate: Candidates) -> None:
    made = candidate("rooms", 1)
    gold = made.task.gold
    other = replace(gold.calls[-1], arguments={**gold.calls[-1].arguments, "holder": "Somebody Else"})
    assert Trial(made).score(replace(gold, calls=(*gold.calls[:-1], other))) == 0.0


def test_an_event_pays_room_and_hour_in_the_right_order() -> None:
    """Elm costs 10 and is too small for the second session, Fir 50; 9:00 is dear and the order forces it."""
    rooms = [
        {"room": "Elm", "seats": 8, "projector": "yes", "step_free": "yes", "fee": 10},
        {"room": "Fir", "seats": 30, "projector": "yes", "step_free": "yes", "fee": 50},
    ]
    hours = [{"hour": "09:00", "surcharge": 90}, {"hour": "11:00", "surcharge": 5}]
    slots = [{"room": r["room"], "hour": h["hour"], "state": "free"} for r in rooms for h in hours]
    event = Event(day="Monday", needs=(Needs(people=8), Needs(people=9)))
    found = solve(event_problem(rooms, hours, slots, event), limit=2)
    best = {"0.room": "Elm", "0.hour": "09:00", "1.room": "Fir", "1.hour": "11:00"}
    assert (found.optima, found.objective) == ((best,), 10 + 90 + 50 + 5)
    slots[0]["state"] = "tentative"  # Elm at 09:00: for an event only what is free counts
    assert solve(event_problem(rooms, hours, slots, event)).objective == 50 + 90 + 50 + 5


def test_a_dearer_plan_of_an_event_that_keeps_every_rule_scores_nothing(candidate: Candidates) -> None:
    made = candidate("rooms", 5)
    rows = json.loads(made.task.gold.answer)
    dearer = []
    for room in made.task.guess.slots[0].options:
        answer = json.dumps([{**rows[0], "room": room}, *rows[1:]])
        if room != rows[0]["room"]:
            dearer.append(answer)
    assert Trial(made).scores(made.task.gold.calls, dearer) == [0.0] * len(dearer)

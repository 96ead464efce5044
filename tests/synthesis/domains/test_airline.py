"""Airline rebooking: who may change, at what fee, what follows, and what two who travel together need."""

import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from envs.task import Call, Plan
from synthesis.domains.airline import DOMAIN, right_decision
from synthesis.domains.airline_world import (
    AirlineWorld,
    Booking,
    Flight,
    Request,
    fee_for,
    is_moved,
    may_change,
)
from synthesis.gates.suite import run_gates
from synthesis.gates.trial import Trial
from synthesis.general import Candidate
from synthesis.grammar import Care, Draft

Candidates = Callable[..., Candidate]
ByHand = Callable[[Draft], Candidate]
Careless = Callable[[Candidate, float, int], tuple[Plan, Care]]


def flight(number: str, departs: str, arrives: str, fare: int, **fields: object) -> Flight:
    plain: dict[str, object] = {"minutes": 100, "seats": 2, "status": "scheduled"}
    route = {"origin": "Suzhou", "destination": "Xiamen"}
    times = {"departs": departs, "arrives": arrives, "fare": fare}
    return Flight(flight=number, **{**plain, **route, **times, **fields})  # type: ignore[arg-type]


FLIGHTS = (
    flight("WS1", "08:00", "09:40", 100),
    flight("WS2", "09:00", "10:40", 80, seats=0),
    flight("WS3", "10:00", "12:10", 150, minutes=130, seats=1),
    flight("WS4", "11:00", "12:40", 160),
    flight("WS5", "12:00", "13:40", 90, status="cancelled"),
    flight("WS6", "07:00", "08:40", 60),
    flight("WS7", "10:30", "12:10", 50, destination="Guilin"),
)
"""By hand: who must not leave before 09:00 finds WS2 full, WS5 cancelled, WS7 going elsewhere: WS3 is the
cheapest that is left, and for two it is WS4.
"""


def world(tickets: tuple[str, ...], tiers: tuple[str, ...], status: str = "scheduled") -> AirlineWorld:
    flights = {each.flight: each for each in FLIGHTS}
    flights["WS1"] = replace(flights["WS1"], status=status)
    codes = ("BACO", "DUFE")[: len(tickets)]
    bookings = {
        code: Booking(booking=code, passenger_id=f"P{index}", flight="WS1", ticket=ticket)
        for index, (code, ticket) in enumerate(zip(codes, tickets, strict=True))
    }
    passengers = {
        f"P{i}": (name, tier)
        for i, (name, tier) in enumerate(zip(("Ada Ito", "Hugo Haas"), tiers, strict=False))
    }
    extras = {"X1": ("BACO", "meal"), "X2": (codes[-1], "seat"), "X3": ("BACO", "bag")}
    return AirlineWorld(flights=flights, bookings=bookings, passengers=passengers, extras=extras, party=codes)


def request(made: AirlineWorld) -> Request:
    return Request(
        names=tuple(made.name_of(booking) for booking in made.party),
        bookings=made.party,
        destination="Xiamen",
        flight="",
        earliest="09:00",
        latest="23:59",
        by_tier=True,
        with_extras=True,
    )


def draft(made: AirlineWorld) -> Draft:
    return DOMAIN.make(5, 1, random.Random(0), made, request(made))


@pytest.mark.parametrize("level", DOMAIN.levels)
def test_candidates_pass_every_gate(candidate: Candidates, level: int) -> None:
    assert [r for r in run_gates(candidate("airline", level)) if not r.passed] == []


@pytest.mark.parametrize(
    ("ticket", "status", "tier", "by_tier", "fee"),
    [
        ("flex", "scheduled", "basic", True, "none"),
        ("standard", "cancelled", "basic", True, "none"),
        ("standard", "scheduled", "premium", True, "half"),
        ("standard", "scheduled", "premium", False, "full"),
        ("standard", "scheduled", "basic", True, "full"),
        ("saver", "cancelled", "basic", True, "none"),
    ],
)
def test_the_fee(ticket: str, status: str, tier: str, by_tier: bool, fee: str) -> None:
    assert may_change(ticket, status)
    assert fee_for(ticket, status, tier, by_tier=by_tier) == fee


def test_a_meal_moves_from_120_minutes_on() -> None:
    assert [is_moved("meal", minutes) for minutes in (119, 120)] == [False, True]
    assert is_moved("bag", 80)
    assert not is_moved("seat", 300)


def test_one_passenger_worked_by_hand(by_hand: ByHand) -> None:
    made = world(("standard",), ("premium",))
    right = right_decision(made, request(made))
    assert (right.flight, right.fee, sorted(right.moved)) == ("WS3", "half", ["X1", "X3"])
    gold = [
        call
        for call in by_hand(draft(made)).task.gold.calls
        if not call.tool.startswith(("get", "list", "search"))
    ]
    assert gold[0] == Call(
        tool="change_flight", arguments={"booking": "BACO", "flight": "WS3", "fee": "half"}
    )
    assert {(call.tool, call.arguments["extra"]) for call in gold[1:]} == {
        ("move_extra", "X1"), ("cancel_extra", "X2"), ("move_extra", "X3"),
    }  # fmt: skip


def test_two_need_two_seats_and_pay_the_lower_fee(by_hand: ByHand) -> None:
    made = world(("standard", "flex"), ("basic", "basic"))
    right = right_decision(made, request(made))
    assert (right.flight, right.fee) == ("WS4", "none")
    assert right.moved == {"X3"}  # 100 minutes: the meal is cancelled
    task = by_hand(draft(made))
    full = tuple(
        replace(call, arguments={**call.arguments, "fee": "full"}) if call.tool == "change_flight" else call
        for call in task.task.gold.calls
    )
    assert Trial(task).score(task.task.gold) == 1.0
    assert Trial(task).score(replace(task.task.gold, calls=full)) == 0.0


def test_a_saver_ticket_moves_only_off_a_cancelled_flight(by_hand: ByHand) -> None:
    kept = by_hand(draft(world(("saver",), ("premium",))))
    assert (kept.task.gold.answer, kept.task.frame) == ("refused", ())
    moved = by_hand(draft(world(("saver",), ("premium",), status="cancelled")))
    assert moved.task.gold.answer == "done"
    assert moved.task.gold.calls[-1].tool in ("move_extra", "cancel_extra")
    fees = {call.arguments["fee"] for call in moved.task.gold.calls if call.tool == "change_flight"}
    assert fees == {"none"}
    together = by_hand(draft(world(("saver", "flex"), ("basic", "basic"))))
    assert together.task.gold.answer == "refused"


def test_the_verifier_wants_the_booking_opened_the_extras_seen_to_and_nothing_else(by_hand: ByHand) -> None:
    made = by_hand(draft(world(("standard",), ("premium",))))
    trial, gold = Trial(made), made.task.gold
    assert trial.score(gold) == 1.0
    for tool in ("get_booking", "change_flight", "cancel_extra", "move_extra"):
        assert trial.score(replace(gold, calls=tuple(c for c in gold.calls if c.tool != tool))) == 0.0
    dearer = Call(tool="change_flight", arguments={"booking": "BACO", "flight": "WS4", "fee": "half"})
    assert trial.score(replace(gold, calls=(*gold.calls, dearer))) == 0.0
    assert trial.score(replace(gold, answer="refused")) == 0.0


@pytest.mark.parametrize("level", DOMAIN.levels)
def test_slips_lead_to_honest_failures(candidate: Candidates, careless: Careless, level: int) -> None:
    scores = []
    for index in range(8):
        made = candidate("airline", level, index)
        plan, care = careless(made, 0.7, index)
        scores.append(Trial(made).score(plan))
        assert care.num_slips > 0 or scores[-1] == 1.0
    assert 0.0 in scores

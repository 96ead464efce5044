"""The parcel depot: which van can take what, which parcel may still change, which locker suits."""

import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from envs.task import Call, Plan
from envs.tool_server import ToolServer
from synthesis.domains.parcels import DOMAIN, can_take
from synthesis.domains.parcels_lockers import Storing, lockers_problem, suits
from synthesis.domains.parcels_world import NUM_VANS, draw_depot
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
        assert [r for r in run_gates(candidate("parcels", level, index)) if not r.passed] == []


@pytest.mark.parametrize("level", [1, 2, 3])
def test_slips_lead_to_honest_failures(candidate: Candidates, level: int) -> None:
    scores = []
    for index in range(8):
        made = candidate("parcels", level, index)
        plan, num_slips = plan_of(made, 0.7, index)
        scores.append(Trial(made).score(plan))
        assert num_slips > 0 or scores[-1] == 1.0
    assert 0.0 in scores


def test_a_van_must_run_leave_later_and_have_room_for_all() -> None:
    van = {"status": "running", "departs": "10:20", "places": 2}
    assert can_take(van, "10:00", 2)
    assert not can_take(van, "10:20", 2)  # it leaves now
    assert not can_take(van, "10:00", 3)
    assert not can_take(van | {"status": "in repair"}, "10:00", 1)


def golds(candidates: Candidates, level: int, answer: str) -> Candidate:
    made = (candidates("parcels", level, index) for index in range(40))
    return next(each for each in made if each.task.gold.answer == answer)


def test_a_refused_parcel_stays_and_an_allowed_one_goes(candidate: Candidates) -> None:
    refused = golds(candidate, 2, "refused")
    goal = refused.draft.goal
    send = Call(tool="redirect_parcel", arguments={"parcel_id": goal.parcel_id, "city": goal.city})
    calls = (*refused.task.gold.calls, send)
    assert Trial(refused).scores(calls, ["done", "refused"]) == [0.0, 0.0]
    assert Trial(refused).score(Plan(calls=(), answer="refused")) == 0.0  # it was not even read
    done = golds(candidate, 2, "done")
    assert Trial(done).score(replace(done.task.gold, answer="refused")) == 0.0


def test_every_bag_moves_once_and_to_the_first_van(candidate: Candidates) -> None:
    made = golds(candidate, 3, "done")
    gold = made.task.gold
    moves = [call for call in gold.calls if call.tool == "move_bag"]
    assert len(moves) > 1
    assert Trial(made).score(gold) == 1.0
    assert Trial(made).score(replace(gold, calls=(*gold.calls, moves[0]))) == 0.0  # takes a second place
    assert Trial(made).score(replace(gold, calls=tuple(c for c in gold.calls if c != moves[0]))) == 0.0
    other_vans = [van for van in Trial(made).columns["vans", "van"] if van != moves[0].arguments["van"]]
    for van in other_vans:
        moved = [replace(c, arguments={**c.arguments, "van": van}) if c in moves else c for c in gold.calls]
        assert Trial(made).score(replace(gold, calls=tuple(moved))) == 0.0


def test_a_van_with_too_few_places_takes_nothing(candidate: Candidates) -> None:
    """The verifier's own reading: an earlier van that is full does not take the bags from the right one."""
    num_seen = 0
    for index in range(30):
        made = candidate("parcels", 3, index)
        goal, tables = made.draft.goal, {table.name: table.rows for table in made.draft.tables}
        num_bags = [row[1] for row in tables["bags"]].count(goal.van)
        city = next(row[1] for row in tables["vans"] if row[0] == goal.van)
        running = [row for row in tables["vans"] if (row[1], row[4]) == (city, "running")]
        later = sorted(
            (str(row[2]), int(row[3])) for row in running if row[0] != goal.van and row[2] > goal.now
        )
        if later and later[0][1] < num_bags:
            num_seen += 1
            assert Trial(made).score(made.task.gold) == 1.0
    assert num_seen > 0


def test_bags_wait_when_no_van_can_take_them_all(candidate: Candidates) -> None:
    made = golds(candidate, 3, "waiting")
    gold = made.task.gold
    assert [call.tool for call in gold.calls].count("report_breakdown") == 1
    unreported = tuple(call for call in gold.calls if call.tool != "report_breakdown")
    assert Trial(made).score(replace(gold, calls=unreported)) == 0.0


def test_a_locker_suits_by_size_weight_and_frailty() -> None:
    locker = {"locker": "K1", "size": "medium", "shelf": 3, "fee": 5}
    parcel = {"size": "medium", "weight": 10, "fragile": "no"}
    assert not suits(parcel | {"size": "large"}, locker | {"shelf": 2})
    assert suits(parcel, locker | {"shelf": 2})
    assert not suits(parcel | {"weight": 11}, locker | {"shelf": 2})
    assert suits(parcel | {"weight": 11}, locker | {"shelf": 1})
    assert not suits(parcel | {"fragile": "yes"}, locker)
    assert suits(parcel | {"fragile": "yes"}, locker | {"shelf": 2})


def test_the_longer_stay_gets_the_cheaper_locker() -> None:
    """3 days at 2 and 1 day at 9 is 15; the other way round it is 29."""
    small = {"size": "small", "weight": 1, "fragile": "no"}
    free = [
        {"locker": "K1", "size": "small", "shelf": 2, "fee": 9},
        {"locker": "K2", "size": "large", "shelf": 2, "fee": 2},
    ]
    found = solve(lockers_problem([small, small], free, Storing(parcel_ids=("P1", "P2"), days=(1, 3))))
    assert (found.optima, found.objective) == (({"0.locker": "K1", "1.locker": "K2"},), 15)


def test_a_vans_place_in_the_listing_does_not_tell_whether_it_has_bags() -> None:
    laden = set()
    for seed in range(40):
        depot = draw_depot(random.Random(seed))
        laden |= {
            number for number, van in enumerate(depot.vans) for b in depot.bags if b["van"] == van["van"]
        }
    assert laden == set(range(NUM_VANS))

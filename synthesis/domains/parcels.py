"""A parcel depot: where a parcel is, what may still be changed, and what follows when a van breaks down.

Levels: 1 find the van and the hour of a parcel over recipient, parcel, bag and van; 2 send a parcel to
another city where the rules allow it, else refuse; 3 a breakdown: the earliest van that has room for every
bag takes them, or they wait; 4 lockers: every parcel in a locker that suits it, at the lowest fee. 1 and 2
may be shown to a cold start.
"""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from envs.task import AnswerSpec, Call, Clause, FrameRule, GuessSpace, Plan, Slot
from envs.tools import Tool
from synthesis.clauses import all_rows, read_before, right_word
from synthesis.domains.parcels_lockers import draft_lockers, plan_lockers
from synthesis.domains.parcels_world import CITIES, TIMES, TOOLSETS, Depot, Row, draw_depot
from synthesis.grammar import Care, Client, Draft, quote
from synthesis.solver import Allow, Problem
from synthesis.surface import offers, read_pages

VERSION = 2
MAX_DRAWS = 200
"""Worlds drawn from one seed before it is given up."""
WEIGHT_LIMITS = (8, 12, 16)
WRITES = ("redirect_parcel", "move_bag", "report_breakdown")


@dataclass(frozen=True, kw_only=True, slots=True)
class Errand:
    """What is asked. Level 1: recipient and city; 2: parcel_id and the new city; 3: van."""

    now: str
    max_weight: int
    recipient: str = ""
    city: str = ""
    parcel_id: str = ""
    van: str = ""


def policy_text(now: str, max_weight: int) -> str:
    return (
        f"You work in a parcel depot with the tools. It is {now}.\n"
        "Questions about a parcel: answer with a JSON list of one object with the keys van and departs.\n"
        "Redirecting: read the parcel first. It may go to another city if it is still waiting, weighs at "
        f"most {max_weight} kg, and a running van to the new city leaves after now with at least one free "
        "place. Then redirect it and answer done; else change nothing and answer refused.\n"
        "Breakdowns: look at the bags on the van and report the breakdown. All of its bags go to one other "
        "van: of the running vans to the same city that leave after now and have a free place for each bag, "
        "the one that leaves first. Move them and answer done. If there is no such van, leave the bags and "
        "answer waiting."
    )


def can_take(van: Mapping[str, object], now: str, num_bags: int) -> bool:
    return van["status"] == "running" and str(van["departs"]) > now and int(str(van["places"])) >= num_bags


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A goal with what its task needs beside the world."""

    goal: Errand
    prompt: str
    clauses: tuple[Clause, ...]
    guess: GuessSpace
    problem: Problem
    answer: AnswerSpec
    frame: tuple[FrameRule, ...] = ()


@dataclass(frozen=True, slots=True)
class ParcelsDomain:
    name: str = "parcels"
    version: int = VERSION
    levels: tuple[int, ...] = (1, 2, 3, 4)
    shown_levels: tuple[int, ...] = (1, 2)
    tools: tuple[Tool, ...] = TOOLSETS[0]
    toolsets: tuple[tuple[Tool, ...], ...] = field(default=TOOLSETS, repr=False)

    def draft(self, level: int, seed: int) -> Draft | None:
        if level not in self.levels:
            raise ValueError(f"domain parcels has the levels {self.levels}, not {level}")
        rng = random.Random(seed)
        tools = rng.choice(self.toolsets)
        if level == 4:
            return draft_lockers(self.name, level, seed, rng, tools)
        make = {1: _tracking, 2: _redirection, 3: _breakdown}[level]
        wants_yes = rng.random() < 0.6
        for _ in range(MAX_DRAWS):
            depot = draw_depot(rng)
            errand = Errand(now=rng.choice(TIMES[3:18]), max_weight=rng.choice(WEIGHT_LIMITS))
            case = make(rng, depot, errand, wants_yes)
            if case is not None:
                return _make_draft(level, seed, tools, depot, case)
        return None

    def plan(self, draft: Draft, client: Client, care: Care) -> Plan:
        if draft.level == 4:
            return plan_lockers(draft, client, care)
        play = {1: _track, 2: _redirect, 3: _rescue}[draft.level]
        answer = play(client, draft.tools, draft.goal, care)
        return Plan(calls=tuple(client.calls), answer=answer)


def _make_draft(level: int, seed: int, tools: tuple[Tool, ...], depot: Depot, case: Case) -> Draft:
    return Draft(
        domain="parcels",
        level=level,
        seed=seed,
        tables=depot.tables(),
        system=policy_text(case.goal.now, case.goal.max_weight),
        prompt=case.prompt,
        tools=tools,
        clauses=case.clauses,
        frame=case.frame,
        answer=case.answer,
        guess=case.guess,
        problem=case.problem,
        goal=case.goal,
        max_turns=40,
    )


def _one_plan(plans: Mapping[str, Plan], right: str) -> tuple[GuessSpace, Problem]:
    allowed = Allow(name="the policy", variable="plan", options=frozenset({right}))
    problem = Problem(options={"plan": tuple(plans)}, constraints=(allowed,))
    return GuessSpace(plans=tuple(plans.values())), problem


def _tracking(rng: random.Random, depot: Depot, errand: Errand, wants_yes: bool) -> Case | None:
    """A loaded parcel that recipient and city tell apart, of somebody with several, to a city with several
    vans.
    """
    goals_of_vans = [van["city"] for van in depot.vans]
    keys = [(p["recipient"], p["city"]) for p in depot.parcels]
    several = {p["recipient"] for p in depot.parcels if [k[0] for k in keys].count(p["recipient"]) > 1}
    fitting = [
        p
        for p in depot.parcels
        if p["state"] == "loaded"
        and p["recipient"] in several
        and keys.count((p["recipient"], p["city"])) == 1
        and goals_of_vans.count(p["city"]) > 1
    ]
    if not fitting:
        return None
    parcel = rng.choice(fitting)
    van_of = next(row["van"] for row in depot.bags if row["bag"] == parcel["bag"])
    van = next(row for row in depot.vans if row["van"] == van_of)
    options = {"van": tuple(v["van"] for v in depot.vans), "departs": tuple(v["departs"] for v in depot.vans)}
    goal = Errand(
        now=errand.now, max_weight=errand.max_weight, recipient=parcel["recipient"], city=parcel["city"]
    )
    path = (
        "SELECT v.van, v.departs FROM initial.parcels p JOIN initial.bags b ON b.bag = p.bag "
        f"JOIN initial.vans v ON v.van = b.van WHERE p.recipient = {quote(goal.recipient)} "
        f"AND p.city = {quote(goal.city)}"
    )
    texts = (
        "I am {}. Which van is my parcel to {} on, and when does it leave?",
        "{} here: when and with which van will my parcel for {} go?",
    )
    return Case(
        goal=goal,
        prompt=rng.choice(texts).format(goal.recipient, goal.city),
        clauses=(
            Clause(
                name="the parcel's van and hour",
                part="answer",
                sql=f"SELECT 1 FROM answer WHERE (van, departs) NOT IN ({path})",
            ),
        ),
        guess=GuessSpace(slots=tuple(Slot(row=0, column=c, options=each) for c, each in options.items())),
        problem=Problem(
            options=options,
            constraints=tuple(
                Allow(name=column, variable=column, options=frozenset({van[column]})) for column in options
            ),
        ),
        answer=AnswerSpec(kind="rows", columns=("van", "departs")),
    )


def _redirection(rng: random.Random, depot: Depot, errand: Errand, wants_yes: bool) -> Case | None:
    """A parcel and a new city; a refusal breaks exactly one rule."""
    cities = {row["city"] for row in depot.vans}
    reachable = {row["city"] for row in depot.vans if can_take(row, errand.now, 1)}
    fitting = []
    for row in depot.parcels:
        for city in sorted(cities - {row["city"]}):
            rules = (row["state"] == "waiting", row["weight"] <= errand.max_weight, city in reachable)
            if sum(rules) == (3 if wants_yes else 2):
                fitting.append((row["parcel_id"], city))
    if not fitting:
        return None
    parcel_id, city = rng.choice(fitting)
    plans = {}
    for row in depot.parcels:
        read = Call(tool="get_parcel", arguments={"parcel_id": row["parcel_id"]})
        for other in CITIES:
            if other != row["city"]:
                sent = Call(tool="redirect_parcel", arguments={"parcel_id": row["parcel_id"], "city": other})
                plans[f"{row['parcel_id']} {other}"] = Plan(calls=(read, sent), answer="done")
        plans[f"refuse {row['parcel_id']}"] = Plan(calls=(read,), answer="refused")
    guess, problem = _one_plan(plans, f"{parcel_id} {city}" if wants_yes else f"refuse {parcel_id}")
    parcel = f"SELECT * FROM initial.parcels WHERE parcel_id = {quote(parcel_id)}"
    allowed = (
        f"EXISTS (SELECT 1 FROM ({parcel}) WHERE state = 'waiting' AND weight <= {errand.max_weight}) AND "
        f"EXISTS (SELECT 1 FROM initial.vans WHERE city = {quote(city)} AND {_ready_sql(errand.now)} AND "
        "places > 0)"
    )
    texts = (
        "Please send parcel {} to {} instead.",
        "I have moved: can {} go to {}?",
        "{} should go to {} now.",
    )
    return Case(
        goal=Errand(now=errand.now, max_weight=errand.max_weight, parcel_id=parcel_id, city=city),
        prompt=rng.choice(texts).format(parcel_id, city),
        clauses=(
            all_rows(
                "the parcel goes where it may",
                "parcels",
                f"parcel_id = {quote(parcel_id)}",
                f"city = iif({allowed}, {quote(city)}, (SELECT city FROM ({parcel})))",
            ),
            right_word(f"SELECT iif({allowed}, 'done', 'refused')"),
            read_before("get_parcel", {"parcel_id": parcel_id}, WRITES, name="the parcel was read first"),
        ),
        guess=guess,
        problem=problem,
        answer=AnswerSpec(kind="choice", choices=("done", "refused", "waiting")),
        frame=(FrameRule(table="parcels", key=parcel_id, columns=("city",)),) if wants_yes else (),
    )


def _ready_sql(now: str) -> str:
    return f"status = 'running' AND departs > {quote(now)}"


def _breakdown(rng: random.Random, depot: Depot, errand: Errand, wants_yes: bool) -> Case | None:
    """A running van with at least two bags, with two vans that could take them all, or with none."""
    fitting = []
    for row in depot.vans:
        bags = depot.bags_on(row["van"])
        others = [v for v in depot.vans if v["city"] == row["city"] and v["van"] != row["van"]]
        able = [v for v in others if can_take(v, errand.now, len(bags))]
        if (
            row["status"] == "running"
            and len(bags) > 1
            and others
            and (len(able) > 1 if wants_yes else not able)
        ):
            fitting.append((row["van"], bags, sorted(able, key=lambda v: v["departs"])))
    if not fitting:
        return None
    van, bags, able = rng.choice(fitting)
    looks = Call(tool="list_bags", arguments={"van": van})
    report = Call(tool="report_breakdown", arguments={"van": van})
    plans = {
        "waiting": Plan(calls=(looks, report), answer="waiting"),
        "unreported": Plan(calls=(looks,), answer="waiting"),
    }
    for other in depot.vans:
        moves = [Call(tool="move_bag", arguments={"bag": bag, "van": other["van"]}) for bag in bags]
        if other["van"] != van:
            plans[f"all {other['van']}"] = Plan(calls=(looks, report, *moves), answer="done")
            plans[f"one {other['van']}"] = Plan(calls=(looks, report, moves[0]), answer="done")
    target = str(able[0]["van"]) if wants_yes else ""
    guess, problem = _one_plan(plans, f"all {target}" if wants_yes else "waiting")
    keys = (str(van), target) if wants_yes else (str(van),)
    columns = ("places", "status") if wants_yes else ("status",)
    texts = (
        "Van {} has broken down.",
        "The driver of {} calls: the engine is dead.",
        "{} will not start today.",
    )
    return Case(
        goal=Errand(now=errand.now, max_weight=errand.max_weight, van=van),
        prompt=rng.choice(texts).format(van) + " Please see to it.",
        clauses=_breakdown_clauses(van, errand.now),
        guess=guess,
        problem=problem,
        answer=AnswerSpec(kind="choice", choices=("done", "refused", "waiting")),
        frame=(
            *(FrameRule(table="vans", key=key, columns=columns) for key in keys),
            *(FrameRule(table="bags", key=bag, columns=("van",)) for bag in bags if wants_yes),
        ),
    )


def _breakdown_clauses(van: str, now: str) -> tuple[Clause, ...]:
    bags = f"SELECT bag FROM initial.bags WHERE van = {quote(van)}"
    count = f"SELECT count(*) FROM initial.bags WHERE van = {quote(van)}"
    target = (
        f"SELECT v.van FROM initial.vans v WHERE v.van <> {quote(van)} AND {_ready_sql(now)} "
        f"AND city = (SELECT city FROM initial.vans WHERE van = {quote(van)}) AND places >= ({count}) "
        "ORDER BY departs LIMIT 1"
    )
    return (
        all_rows("the van is reported", "vans", f"van = {quote(van)}", "status = 'broken'"),
        all_rows(
            "every bag is moved", "bags", f"bag IN ({bags})", f"van = coalesce(({target}), {quote(van)})"
        ),
        all_rows(
            "each bag was moved once",
            "vans",
            f"van = ({target})",
            f"status = 'running' AND places = (SELECT places FROM initial.vans WHERE van = ({target})) - "
            f"({count})",
        ),
        all_rows(
            "the broken van takes nothing on",
            "vans",
            f"van = {quote(van)}",
            f"places = (SELECT places FROM initial.vans WHERE van = {quote(van)})",
        ),
        right_word(f"SELECT iif(EXISTS ({target}), 'done', 'waiting')"),
        read_before("list_bags", {"van": van}, WRITES, name="the bags were read first"),
    )


def _track(client: Client, tools: Sequence[Tool], errand: Errand, care: Care) -> str:
    """Slips: takes another parcel of the recipient's, any van to the city, the hour of another."""
    if offers(tools, "search_parcels"):
        parcels = list(client.call("search_parcels", recipient=errand.recipient).rows)
    else:
        ids = read_pages(client, "list_parcels", recipient=errand.recipient)
        parcels = [client.call("get_parcel", parcel_id=parcel_id).rows[0] for parcel_id in ids]
    meant = [row for row in parcels if row["city"] == errand.city and row["bag"] != "none"]
    bagged = [row for row in parcels if row["bag"] != "none"]
    parcel = care.rng.choice(bagged) if care.slips() else meant[0]
    if care.slips():
        van = care.rng.choice(_vans_to(client, tools, errand.city))["van"]
    else:
        van = client.values("get_bag", bag=parcel["bag"])[0]
    read = care.rng.choice(_vans_to(client, tools, errand.city))["van"] if care.slips() else van
    departs = client.call("get_van", van=read).rows[0]["departs"]
    return json.dumps([{"van": van, "departs": departs}])


def _vans_to(client: Client, tools: Sequence[Tool], city: str) -> list[Row]:
    if offers(tools, "search_vans"):
        return list(client.call("search_vans", city=city).rows)
    return [
        {"van": van, **client.call("get_van", van=van).rows[0]}
        for van in read_pages(client, "list_vans", city=city)
    ]


def _redirect(client: Client, tools: Sequence[Tool], errand: Errand, care: Care) -> str:
    """Slips: does not look at the parcel, nor at the vans; decides the other way."""
    allowed = True
    if not care.slips():
        parcel = client.call("get_parcel", parcel_id=errand.parcel_id).rows[0]
        allowed = parcel["state"] == "waiting" and parcel["weight"] <= errand.max_weight
    if allowed and not care.slips():
        allowed = any(can_take(van, errand.now, 1) for van in _vans_to(client, tools, errand.city))
    if care.slips():
        allowed = not allowed
    if not allowed:
        return "refused"
    client.call("redirect_parcel", parcel_id=errand.parcel_id, city=errand.city)
    return "done"


def _rescue(client: Client, tools: Sequence[Tool], errand: Errand, care: Care) -> str:
    """Slips: forgets to report, does not count places, takes a later van, leaves a bag."""
    broken = client.call("get_van", van=errand.van).rows[0]
    bags = client.values("list_bags", van=errand.van)
    vans = [row for row in _vans_to(client, tools, broken["city"]) if row["van"] != errand.van]
    if not care.slips():
        client.call("report_breakdown", van=errand.van)
    able = [row for row in vans if can_take(row, errand.now, 0 if care.slips() else len(bags))]
    if not able:
        return "waiting"
    best = care.rng.choice(able) if care.slips() else min(able, key=lambda row: row["departs"])
    for bag in bags[1:] if care.slips() else bags:
        client.call("move_bag", bag=bag, van=best["van"])
    return "done"


DOMAIN = ParcelsDomain()

"""Level 5 of room booking, and the levels that are raised from one another: the sessions of one event on one
day, one after the other, at the lowest price.

Two dials say how hard that is: how many sessions, and how many rules, of what a room must have beside seats,
and of hours that are to be chosen at a surcharge instead of being given. The planner reads the diary of the
day, every room and every hour, then solves from what it read the problem that the oracle solves from the
world.
"""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from envs.task import AnswerSpec, Clause, GuessSpace, Plan, Slot
from envs.tools import Tool
from synthesis.domains.rooms_world import DAYS, HOURS, SEATS, Needs, Row, draw_house
from synthesis.grammar import Care, Client, Draft, quote
from synthesis.raising import Ladder, check_range
from synthesis.scripted_user import user_table
from synthesis.solver import Allow, Constraint, Dearer, Problem, solve
from synthesis.surface import offers, read_pages

SESSIONS = ("opening", "workshop", "closing")
EQUIPPED, ANY_HOUR = 1, 2
"""From how many rules on rooms must be equipped, and hours are to be chosen."""
MAX_DRAWS = 40


@dataclass(frozen=True, kw_only=True, slots=True)
class EventDials:
    """How hard: sessions, rules beside seats and the lowest price."""

    sessions: int = len(SESSIONS)
    rules: int = ANY_HOUR

    def __post_init__(self) -> None:
        check_range(self, sessions=(1, len(SESSIONS)), rules=(0, ANY_HOUR))


LADDER = Ladder(
    rungs={
        6: EventDials(sessions=1, rules=0),
        7: EventDials(sessions=2, rules=0),
        8: EventDials(sessions=2, rules=EQUIPPED),
        9: EventDials(sessions=3, rules=EQUIPPED),
        10: EventDials(sessions=3, rules=ANY_HOUR),
    },
    needs=lambda dials: {"surcharge"} if dials.rules >= ANY_HOUR else set(),
)
"""Levels that are each the one before, in the same world, made harder: by a session or by a rule."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """needs: of each session. hours: at which each begins, as the prompt says it; empty where any will do."""

    day: str
    needs: tuple[Needs, ...]
    hours: tuple[str, ...] = ()


def system_text(*, any_hour: bool) -> str:
    costs = "the room's fee and the hour's surcharge" if any_hour else "the room's fee"
    return (
        "You book rooms with the tools.\n"
        "Plan an event without booking it: answer with a JSON list of one object a session, in their order, "
        f"with the keys room and hour. Only free slots count. A session costs {costs}."
    )


def draft_event(
    domain: str, level: int, seed: int, rng: random.Random, tools: tuple[Tool, ...]
) -> Draft | None:
    """Level 5, or one of those that are raised: these have one world a seed, so that they share it."""
    if level in LADDER.rungs:
        return event_at(LADDER.rungs[level], domain, level, seed, tools)
    for _ in range(MAX_DRAWS):
        if (draft := _drawn(EventDials(), domain, level, seed, rng, tools)) is not None:
            return draft
    return None


def event_at(dials: EventDials, domain: str, level: int, seed: int, tools: tuple[Tool, ...]) -> Draft | None:
    """The seed's draft at these settings, or None: its world is the same at any of them."""
    return _drawn(dials, domain, level, seed, random.Random(seed), LADDER.tools(tools, dials))


def _drawn(
    dials: EventDials, domain: str, level: int, seed: int, rng: random.Random, tools: tuple[Tool, ...]
) -> Draft | None:
    house = draw_house(rng, days=(rng.choice(DAYS),), hours=HOURS)
    needs = [
        Needs(people=rng.choice(SEATS[:-1]), projector=rng.random() < 0.4, step_free=rng.random() < 0.2)
        for _ in SESSIONS
    ][: dials.sessions]
    if dials.rules < EQUIPPED:
        needs = [Needs(people=each.people) for each in needs]
    given = dials.rules < ANY_HOUR
    event = Event(
        day=house.slots[0]["day"],
        needs=tuple(needs),
        hours=tuple(sorted(rng.sample(HOURS, len(SESSIONS)))[: dials.sessions]) if given else (),
    )
    problem = event_problem(house.rooms, house.hours, house.slots, event)
    found = solve(problem, limit=2)
    if not (found.proved and found.complete and len(found.optima) == 1):
        return None
    places = (("room", tuple(row["room"] for row in house.rooms)), ("hour", HOURS))
    return Draft(
        domain=domain,
        level=level,
        seed=seed,
        tables=(*house.tables(), user_table({"day": event.day})),
        system=system_text(any_hour=not given),
        prompt=_prompt(rng, event),
        tools=tools,
        clauses=_clauses(event),
        frame=(),
        answer=AnswerSpec(kind="rows", columns=("room", "hour"), num_rows=len(needs)),
        guess=GuessSpace(
            slots=tuple(
                Slot(row=row, column=column, options=options)
                for row in range(len(needs))
                for column, options in (places[:1] if given else places)
            ),
            fixed=tuple((row, "hour", hour) for row, hour in enumerate(event.hours)),
        ),
        problem=problem,
        goal=event,
        max_turns=40,
    )


def event_problem(rooms: Sequence[Row], hours: Sequence[Row], slots: Sequence[Row], event: Event) -> Problem:
    """The event as constraints; the rows are the world's, or what a planner has read of them. Given hours are
    no variables.
    """
    order = {row["hour"]: index for index, row in enumerate(sorted(hours, key=lambda row: row["hour"]))}
    options: dict[str, tuple[str, ...]] = {}
    cost: dict[str, Mapping[str, int]] = {}
    constraints: list[Constraint] = []

    def free_at(hour: str) -> frozenset[str]:
        return frozenset(row["room"] for row in slots if (row["hour"], row["state"]) == (hour, "free"))

    for index, needs in enumerate(event.needs):
        room, hour = f"{index}.room", f"{index}.hour"
        options[room] = tuple(row["room"] for row in rooms)
        cost[room] = {row["room"]: row["fee"] for row in rooms}
        fitting = frozenset(row["room"] for row in rooms if needs.met_by(row))
        constraints.append(Allow(name="needs", variable=room, options=fitting))
        if event.hours:
            constraints.append(Allow(name="free", variable=room, options=free_at(event.hours[index])))
            continue
        options[hour] = tuple(order)
        cost[hour] = {row["hour"]: row["surcharge"] for row in hours}
        for each in order:
            when = {hour: frozenset({each})}
            constraints.append(Allow(name="free", variable=room, options=free_at(each), when=when))
        if index:
            constraints.append(Dearer(name="order", variable=hour, than=f"{index - 1}.hour", cost=order))
    return Problem(options=options, constraints=tuple(constraints), cost=cost)


def _prompt(rng: random.Random, event: Event) -> str:
    hours = [f" at {hour}" for hour in event.hours] or [""] * len(event.needs)
    needs = "; ".join(
        f"the {session} {need.phrase}{hour}"
        for session, need, hour in zip(SESSIONS, event.needs, hours, strict=False)
    )
    opening = rng.choice(("We hold a seminar on {}", "Our club meets on {}", "Please plan our event on {}"))
    order = "Each session begins at a later hour than the one before; two may share a room."
    ask = "Where and when should they be, so that the total price is the lowest?"
    if event.hours:
        order = "Two sessions may share a room."
        ask = "Where should each be, so that the total price is the lowest?"
    said = [f"{opening.format(event.day)}: {needs}.", *([order] if len(event.needs) > 1 else []), ask]
    return " ".join(said)


def _clauses(event: Event) -> tuple[Clause, ...]:
    price = "r.fee" if event.hours else "r.fee + h.surcharge"
    at = [f" AND s.hour = {quote(hour)}" for hour in event.hours] or [""] * len(event.needs)
    fits = " UNION ALL ".join(
        f"SELECT {row} AS session, s.room, s.hour, {price} AS price FROM initial.slots s "
        "JOIN initial.rooms r ON r.room = s.room JOIN initial.hours h ON h.hour = s.hour "
        f"WHERE s.day = {quote(event.day)} AND s.state = 'free' AND {needs.sql('r')}{at[row]}"
        for row, needs in enumerate(event.needs)
    )
    last = len(event.needs) - 1
    joins = " ".join(
        f"JOIN fits f{row} ON f{row}.session = {row} AND f{row}.hour > f{row - 1}.hour"
        for row in range(1, last + 1)
    )
    prices = " + ".join(f"f{row}.price" for row in range(last + 1))
    best = f"SELECT min({prices}) FROM fits f0 {joins} WHERE f0.session = 0"
    mine = 'JOIN fits f ON f.session = a."row" AND f.room = a.room AND f.hour = a.hour'
    order = Clause(
        name="each session begins after the one before",
        part="answer",
        sql='SELECT 1 FROM answer a JOIN answer b ON b."row" = a."row" - 1 WHERE a.hour <= b.hour',
    )
    return (
        Clause(
            name="every session has a free slot that fits",
            part="answer",
            sql=f"WITH fits AS ({fits}) SELECT 1 FROM answer a LEFT {mine} WHERE f.room IS NULL",
        ),
        *(() if event.hours else (order,)),
        Clause(
            name="the lowest total price",
            part="answer",
            sql=f"WITH fits AS MATERIALIZED ({fits}) SELECT 1 WHERE (SELECT total({price}) "
            "FROM answer a JOIN initial.rooms r ON r.room = a.room JOIN initial.hours h ON h.hour = a.hour) "
            f"> ({best})",
        ),
    )


def plan_event(draft: Draft, client: Client, care: Care) -> Plan:
    """Slips: forgets what a session needs beside seats, or the price."""
    event: Event = draft.goal
    hours = [] if event.hours else client.call("list_hours").rows
    slots = [
        {**row, "hour": hour}
        for hour in event.hours or [row["hour"] for row in hours]
        for row in client.call("list_slots", day=event.day, hour=hour).rows
    ]
    least = min(needs.people for needs in event.needs)
    rooms = read_rooms(client, draft.tools, least)
    needs = tuple(Needs(people=each.people) if care.slips() else each for each in event.needs)
    problem = event_problem(rooms, hours, slots, replace(event, needs=needs))
    if care.slips():
        problem = replace(problem, cost={})
    best = care.choose(problem)
    rows = [
        {"room": best[f"{row}.room"], "hour": event.hours[row] if event.hours else best[f"{row}.hour"]}
        for row in range(len(event.needs))
    ]
    return Plan(calls=tuple(client.calls), answer=json.dumps(rows))


def read_rooms(client: Client, tools: Sequence[Tool], min_seats: int) -> list[Row]:
    """Rooms with their facts: those with so many seats, or all, as the tools have it."""
    if offers(tools, "search_rooms"):
        return list(client.call("search_rooms", min_seats=min_seats).rows)
    names = read_pages(client, "list_rooms")
    return [{"room": name, **client.call("get_room", room=name).rows[0]} for name in names]

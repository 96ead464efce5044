"""Level 5 of room booking: three sessions of one event on one day, one after the other, at the lowest price.

The planner reads the diary of the day, every room and every hour, then solves from what it read the problem
that the oracle solves from the world.
"""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from envs.task import AnswerSpec, Clause, GuessSpace, Plan, Slot
from envs.tools import Tool
from synthesis.domains.rooms_world import DAYS, HOURS, SEATS, Needs, Row, draw_house
from synthesis.grammar import Care, Client, Draft, quote
from synthesis.scripted_user import user_table
from synthesis.solver import Allow, Constraint, Dearer, Problem, solve
from synthesis.surface import offers, read_pages

SESSIONS = ("opening", "workshop", "closing")
SYSTEM = (
    "You book rooms with the tools.\n"
    "Plan an event without booking it: answer with a JSON list of one object a session, in their order, "
    "with the keys room and hour. Only free slots count. A session costs the room's fee and the hour's "
    "surcharge."
)
MAX_DRAWS = 40


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    day: str
    needs: tuple[Needs, ...]
    """Of each session."""


def draft_event(
    domain: str, level: int, seed: int, rng: random.Random, tools: tuple[Tool, ...]
) -> Draft | None:
    for _ in range(MAX_DRAWS):
        house = draw_house(rng, days=(rng.choice(DAYS),), hours=HOURS)
        needs = tuple(
            Needs(people=rng.choice(SEATS[:-1]), projector=rng.random() < 0.4, step_free=rng.random() < 0.2)
            for _ in SESSIONS
        )
        event = Event(day=house.slots[0]["day"], needs=needs)
        problem = event_problem(house.rooms, house.hours, house.slots, event)
        found = solve(problem, limit=2)
        if found.proved and found.complete and len(found.optima) == 1:
            break
    else:
        return None
    rooms, hours = tuple(row["room"] for row in house.rooms), HOURS
    return Draft(
        domain=domain,
        level=level,
        seed=seed,
        tables=(*house.tables(), user_table({"day": event.day})),
        system=SYSTEM,
        prompt=_prompt(rng, event),
        tools=tools,
        clauses=_clauses(event),
        frame=(),
        answer=AnswerSpec(kind="rows", columns=("room", "hour"), num_rows=len(SESSIONS)),
        guess=GuessSpace(
            slots=tuple(
                Slot(row=row, column=column, options=options)
                for row in range(len(SESSIONS))
                for column, options in (("room", rooms), ("hour", hours))
            )
        ),
        problem=problem,
        goal=event,
        max_turns=40,
    )


def event_problem(rooms: Sequence[Row], hours: Sequence[Row], slots: Sequence[Row], event: Event) -> Problem:
    """The event as constraints; the rows are the world's, or what a planner has read of them."""
    order = {row["hour"]: index for index, row in enumerate(sorted(hours, key=lambda row: row["hour"]))}
    options: dict[str, tuple[str, ...]] = {}
    cost: dict[str, Mapping[str, int]] = {}
    constraints: list[Constraint] = []
    for index, needs in enumerate(event.needs):
        room, hour = f"{index}.room", f"{index}.hour"
        options |= {room: tuple(row["room"] for row in rooms), hour: tuple(order)}
        cost[room] = {row["room"]: row["fee"] for row in rooms}
        cost[hour] = {row["hour"]: row["surcharge"] for row in hours}
        fitting = frozenset(row["room"] for row in rooms if needs.met_by(row))
        constraints.append(Allow(name="needs", variable=room, options=fitting))
        for each in order:
            free = [row["room"] for row in slots if (row["hour"], row["state"]) == (each, "free")]
            when = {hour: frozenset({each})}
            constraints.append(Allow(name="free", variable=room, options=frozenset(free), when=when))
        if index:
            constraints.append(Dearer(name="order", variable=hour, than=f"{index - 1}.hour", cost=order))
    return Problem(options=options, constraints=tuple(constraints), cost=cost)


def _prompt(rng: random.Random, event: Event) -> str:
    needs = "; ".join(
        f"the {session} {need.phrase}" for session, need in zip(SESSIONS, event.needs, strict=True)
    )
    opening = rng.choice(("We hold a seminar on {}", "Our club meets on {}", "Please plan our event on {}"))
    return (
        f"{opening.format(event.day)}: {needs}. Each session begins at a later hour than the one before; two "
        "may share a room. Where and when should they be, so that the total price is the lowest?"
    )


def _clauses(event: Event) -> tuple[Clause, ...]:
    fits = " UNION ALL ".join(
        f"SELECT {row} AS session, s.room, s.hour, r.fee + h.surcharge AS price FROM initial.slots s "
        "JOIN initial.rooms r ON r.room = s.room JOIN initial.hours h ON h.hour = s.hour "
        f"WHERE s.day = {quote(event.day)} AND s.state = 'free' AND {needs.sql('r')}"
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
    return (
        Clause(
            name="every session has a free slot that fits",
            part="answer",
            sql=f"WITH fits AS ({fits}) SELECT 1 FROM answer a LEFT {mine} WHERE f.room IS NULL",
        ),
        Clause(
            name="each session begins after the one before",
            part="answer",
            sql='SELECT 1 FROM answer a JOIN answer b ON b."row" = a."row" - 1 WHERE a.hour <= b.hour',
        ),
        Clause(
            name="the lowest total price",
            part="answer",
            sql=f"WITH fits AS MATERIALIZED ({fits}) SELECT 1 WHERE (SELECT total(r.fee + h.surcharge) "
            "FROM answer a JOIN initial.rooms r ON r.room = a.room JOIN initial.hours h ON h.hour = a.hour) "
            f"> ({best})",
        ),
    )


def plan_event(draft: Draft, client: Client, care: Care) -> Plan:
    event: Event = draft.goal
    hours = client.call("list_hours").rows
    slots = [
        {**row, "hour": hour["hour"]}
        for hour in hours
        for row in client.call("list_slots", day=event.day, hour=hour["hour"]).rows
    ]
    least = min(needs.people for needs in event.needs)
    rooms = read_rooms(client, draft.tools, least)
    best = care.choose(event_problem(rooms, hours, slots, event))
    rows = [{"room": best[f"{i}.room"], "hour": best[f"{i}.hour"]} for i in range(len(event.needs))]
    return Plan(calls=tuple(client.calls), answer=json.dumps(rows))


def read_rooms(client: Client, tools: Sequence[Tool], min_seats: int) -> list[Row]:
    """Rooms with their facts: those with so many seats, or all, as the tools have it."""
    if offers(tools, "search_rooms"):
        return list(client.call("search_rooms", min_seats=min_seats).rows)
    names = read_pages(client, "list_rooms")
    return [{"room": name, **client.call("get_room", room=name).rows[0]} for name in names]

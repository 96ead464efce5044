"""Room booking: the cheapest free room that has what is needed, and a whole event on one day.

Levels: 1 one free room fits; 2 several do, and the cheapest is wanted; 3 the request leaves out the hour or
the number of people, so the user must be asked; of these one in three finds no room, and the answer is no;
4 no free room fits: a tentative booking yields, or the answer is no; 5 an event of three sessions, one after
the other, each with needs of its own, at the lowest total price; 6 to 10 the same raised step by step in one
world, from a single session at a given hour. 1 to 3 may be shown to a cold start.
"""

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from envs.task import AnswerSpec, Call, Clause, FrameRule, GuessSpace, Plan
from envs.tools import Tool
from synthesis.clauses import all_rows, once_each, read_before, right_word
from synthesis.domains.names import FIRST_NAMES, LAST_NAMES
from synthesis.domains.rooms_event import LADDER, draft_event, plan_event, read_rooms
from synthesis.domains.rooms_world import (
    DAYS,
    HOURS,
    SEATS,
    TOOLSETS,
    House,
    Needs,
    Row,
    draw_house,
)  # fmt: skip
from synthesis.facts import twin_drafts
from synthesis.grammar import Care, Client, Draft, quote
from synthesis.scripted_user import ask_call, asked_before, named_in_reply, user_table
from synthesis.solver import Allow, Problem

VERSION = 2
MAX_DRAWS = 200
"""Worlds drawn from one seed before it is given up."""
WRITES = ("book_slot", "release_slot")
YIELDS, REFUSE_COST = 1_000, 10_000
"""What a tentative slot and a refusal cost beside a room's fee: each is the last resort after the one
before.
"""
POLICY = (
    "You book rooms with the tools.\n"
    "Look at the slots of a time before you book one. If the request leaves out the hour or the number of "
    "people, ask the user. Of the free rooms that have what is needed, book the one with the lowest fee, in "
    "the user's name. If none is free, a tentative booking yields: of the tentative slots that fit, release "
    "the one with the lowest fee, then book it. A firm booking never yields. Answer booked. If nothing can "
    "be had, change nothing and answer refused."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Wish:
    """What the user asks for, as the prompt says it. hour: empty where it is left out; so is needs.people."""

    name: str
    day: str
    hour: str
    needs: Needs


@dataclass(frozen=True, slots=True)
class RoomsDomain:
    name: str = "rooms"
    version: int = VERSION
    levels: tuple[int, ...] = (1, 2, 3, 4, 5, *LADDER.rungs)
    shown_levels: tuple[int, ...] = (1, 2, 3)
    tools: tuple[Tool, ...] = TOOLSETS[0]
    toolsets: tuple[tuple[Tool, ...], ...] = tuple(dict.fromkeys((*TOOLSETS, *LADDER.toolsets(TOOLSETS))))
    twin_levels: tuple[int, ...] = (1, 2, 3, 4)

    def raised_from(self, level: int) -> int | None:
        return LADDER.raised_from(level)

    def draft(self, level: int, seed: int) -> Draft | None:
        if level not in self.levels:
            raise ValueError(f"domain rooms has the levels {self.levels}, not {level}")
        rng = random.Random(seed)
        tools = rng.choice(TOOLSETS)
        if level >= 5:
            return draft_event(self.name, level, seed, rng, tools)
        drawn = _drawn(rng, level)
        return None if drawn is None else _make_draft(level, seed, tools, rng, *drawn)

    def twins(self, level: int, seed: int) -> Iterator[Draft]:
        """A slot is in another state; nobody is told who holds it."""
        rng = random.Random(seed)
        tools = rng.choice(TOOLSETS)
        if (drawn := _drawn(rng, level)) is not None:
            house, wish = drawn
            make = partial(_make_draft, level, seed, tools, wish=wish)
            yield from twin_drafts(make, rng, house, {"slots.state": lambda _: ("free", "firm", "tentative")})

    def plan(self, draft: Draft, client: Client, care: Care) -> Plan:
        if draft.level >= 5:
            return plan_event(draft, client, care)
        answer = _book(client, draft.tools, draft.goal, care)
        return Plan(calls=tuple(client.calls), answer=answer)


def _drawn(rng: random.Random, level: int) -> tuple[House, Wish] | None:
    """House and wish of a level below the event."""
    usual = "tentative" if level == 4 else "free"
    ending = rng.choice((usual, usual, "refused"))
    for _ in range(MAX_DRAWS):
        house = draw_house(rng, days=rng.sample(DAYS, 2), hours=sorted(rng.sample(HOURS, 2)))
        wish = _draw_wish(rng, house)
        states = [row["state"] for row in _fitting(house, wish)]
        if _is_of_level(level, ending, states):
            return house, wish
    return None


def _draw_wish(rng: random.Random, house: House) -> Wish:
    slot = rng.choice(house.slots)
    needs = Needs(
        people=rng.choice(SEATS) - rng.randrange(3),
        projector=rng.random() < 0.5,
        step_free=rng.random() < 0.3,
    )
    name = f"{rng.choice(FIRST_NAMES)} {rng.choice(LAST_NAMES)}"
    return Wish(name=name, day=slot["day"], hour=slot["hour"], needs=needs)


def _fitting(house: House, wish: Wish) -> list[Row]:
    """The slots at the time whose rooms have what is needed, whatever their state."""
    return [
        slot
        for slot in house.slots
        if (slot["day"], slot["hour"]) == (wish.day, wish.hour)
        and wish.needs.met_by(house.room(slot["room"]))
    ]


def _is_of_level(level: int, ending: str, states: Sequence[str]) -> bool:
    num_free, num_tentative = states.count("free"), states.count("tentative")
    if ending == "tentative":
        return num_free == 0 and num_tentative > 0
    if ending == "refused":
        return num_free == num_tentative == 0
    return num_free == 1 if level == 1 else num_free > 1


def _make_draft(
    level: int, seed: int, tools: tuple[Tool, ...], rng: random.Random, house: House, wish: Wish
) -> Draft:
    topic = rng.choice(("hour", "people")) if level == 3 else ""
    said_people = rng.choice(("We will be {}.", "There are {} of us.", "{}, with me.")).format(
        wish.needs.people
    )
    said_hour = rng.choice(("At {}, please.", "From {} on.", "{} would be best.")).format(wish.hour)
    goal = _without(wish, topic)
    plans = _guesses(house, wish, topic)
    problem = _problem(house, wish, plans)
    costs = problem.cost["plan"]
    allowed = problem.constraints[0]
    assert isinstance(allowed, Allow)
    right = min(sorted(allowed.options), key=lambda name: costs[name])
    return Draft(
        domain="rooms",
        level=level,
        seed=seed,
        tables=(*house.tables(), user_table({"day": wish.day, "hour": said_hour, "people": said_people})),
        system=POLICY,
        prompt=_prompt(rng, goal),
        tools=tools,
        clauses=_clauses(wish, topic),
        frame=() if right == "refuse" else _frame(right),
        answer=AnswerSpec(kind="choice", choices=("booked", "refused")),
        guess=GuessSpace(plans=tuple(plans.values())),
        problem=problem,
        goal=goal,
        max_turns=30,
    )


def _without(wish: Wish, topic: str) -> Wish:
    """The wish with `topic` left out."""
    needs = wish.needs
    if topic == "people":
        needs = Needs(people=0, projector=needs.projector, step_free=needs.step_free)
    return Wish(name=wish.name, day=wish.day, hour="" if topic == "hour" else wish.hour, needs=needs)


def _prompt(rng: random.Random, wish: Wish) -> str:
    opening = rng.choice(("I am {}.", "{} here.", "This is {}.")).format(wish.name)
    when = f"on {wish.day}" + (f" at {wish.hour}" if wish.hour else "")
    texts = ("I need a room {} {}.", "Please book me a room {} {}.", "Could I have a room {} {}?")
    return f"{opening} {rng.choice(texts).format(wish.needs.phrase, when)}"


def _guesses(house: House, wish: Wish, topic: str) -> dict[str, Plan]:
    """Every slot of the diary booked, after looking and asking; a held one is released first."""
    asking = (ask_call(topic),) if topic else ()

    def look(day: str, hour: str) -> Call:
        return Call(tool="list_slots", arguments={"day": day, "hour": hour})

    plans = {"refuse": Plan(calls=(*asking, look(wish.day, wish.hour)), answer="refused")}
    for slot in house.slots:
        slot_id = slot["slot_id"]
        calls = [*asking, look(slot["day"], slot["hour"])]
        if slot["state"] != "free":
            calls.append(Call(tool="release_slot", arguments={"slot_id": slot_id}))
        calls.append(Call(tool="book_slot", arguments={"slot_id": slot_id, "holder": wish.name}))
        plans[slot_id] = Plan(calls=tuple(calls), answer="booked")
    return plans


def _problem(house: House, wish: Wish, plans: Mapping[str, Plan]) -> Problem:
    """Of the plans that the policy allows, the cheapest; a tentative slot and a refusal cost more than any
    fee.
    """
    fitting = {row["slot_id"]: row for row in _fitting(house, wish) if row["state"] != "firm"}
    costs = dict.fromkeys(plans, REFUSE_COST)
    for slot_id, row in fitting.items():
        costs[slot_id] = house.room(row["room"])["fee"] + (YIELDS if row["state"] == "tentative" else 0)
    allowed = Allow(name="what may be done", variable="plan", options=frozenset({*fitting, "refuse"}))
    return Problem(options={"plan": tuple(plans)}, constraints=(allowed,), cost={"plan": costs})


def _clauses(wish: Wish, topic: str) -> tuple[Clause, ...]:
    right = (
        "SELECT s.slot_id FROM initial.slots s JOIN initial.rooms r ON r.room = s.room "
        f"WHERE s.day = {quote(wish.day)} AND s.hour = {quote(wish.hour)} AND s.state <> 'firm' "
        f"AND {wish.needs.sql('r')} ORDER BY s.state = 'tentative', r.fee LIMIT 1"
    )
    released = (
        "SELECT 1 FROM journal WHERE tool = 'release_slot' AND NOT error "
        "AND json_extract(arguments, '$.slot_id') = s.slot_id AND step < "
        "(SELECT min(step) FROM journal WHERE tool = 'book_slot' AND NOT error)"
    )
    clauses = [
        all_rows(
            "the right slot is booked",
            "slots",
            f"slot_id = ({right})",
            f"state = 'firm' AND holder = {quote(wish.name)}",
        ),
        right_word(f"SELECT iif(EXISTS ({right}), 'booked', 'refused')"),
        Clause(
            name="a tentative slot was released before it was booked",
            part="policy",
            sql=f"SELECT 1 FROM initial.slots s WHERE s.slot_id = ({right}) AND s.state = 'tentative' "
            f"AND NOT EXISTS ({released})",
        ),
        once_each(("book_slot",), "slot_id"),
        once_each(("release_slot",), "slot_id"),
        read_before(
            "list_slots", {"day": wish.day, "hour": wish.hour}, WRITES, name="the slots were read first"
        ),
    ]
    return (*clauses, asked_before(topic, WRITES)) if topic else tuple(clauses)


def _frame(slot_id: str) -> tuple[FrameRule, ...]:
    return (FrameRule(table="slots", key=slot_id, columns=("holder", "state")),)


def _book(client: Client, tools: Sequence[Tool], wish: Wish, care: Care) -> str:
    """Slips: does not ask, forgets a need, takes the first that fits, gives up, does not release."""
    hour, people = wish.hour, wish.needs.people
    if not hour:
        hour = care.rng.choice(HOURS) if care.slips() else named_in_reply(client, "hour", HOURS)
    if not people:
        people = care.rng.choice(SEATS) if care.slips() else _people(client)
    needs = Needs(
        people=people,
        projector=wish.needs.projector and not care.slips(),
        step_free=wish.needs.step_free and not care.slips(),
    )
    rooms = {room["room"]: room for room in read_rooms(client, tools, people) if needs.met_by(room)}
    slots = client.call("list_slots", day=wish.day, hour=hour).rows
    for state in ("free", "tentative"):
        fitting = [slot for slot in slots if slot["state"] == state and slot["room"] in rooms]
        if not fitting or care.slips():
            continue
        best = fitting[0] if care.slips() else min(fitting, key=lambda slot: rooms[slot["room"]]["fee"])
        if state == "tentative" and not care.slips():
            client.call("release_slot", slot_id=best["slot_id"])
        client.call("book_slot", slot_id=best["slot_id"], holder=wish.name)
        return "booked"
    return "refused"


def _people(client: Client) -> int:
    reply = client.call("ask_user", topic="people").text
    found = re.search(r"\d+", reply)
    if found is None:
        raise ValueError(f"the user's reply {reply!r} gives no number")
    return int(found.group())


DOMAIN = RoomsDomain()

"""Airline rebooking under a policy document: who may change, to which flight, at what fee, and what follows.

Levels: 1 put a booking on the flight that the passenger names, or refuse; 2 find the cheapest flight that
fits the passenger's times; 3 the same for a booking that only name and destination tell apart, at a fee that
depends on the passenger's tier; 4 and the booking's extras follow, each by its own rule; 5 two who travel
together; 6 to 10 level 4 raised step by step in one world, from level 1. 1 to 3 may be shown to a cold start.

Goal kinds: cascade of updates under a policy, cheapest under constraints, refusal is correct.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

from envs.task import AnswerSpec, Call, Clause, FrameRule, GuessSpace, Plan
from envs.tools import Tool
from synthesis.clauses import read_before, right_word
from synthesis.domains.airline_raised import LADDER, draw_raised, tools_at
from synthesis.domains.airline_tools import FEES, TOOLSETS
from synthesis.domains.airline_world import (
    LONG_FLIGHT,
    OPEN_FIRST,
    AirlineWorld,
    Flight,
    Request,
    draw_request,
    draw_world,
    fee_for,
    is_moved,
    may_change,
    policy_text,
    prompt_text,
    suits,
)
from synthesis.facts import Facts, twin_drafts
from synthesis.grammar import Care, Client, Draft, quote
from synthesis.solver import Allow, Problem
from synthesis.surface import offers, read_pages

VERSION = 1
WRITES = ("change_flight", "move_extra", "cancel_extra")
MAX_DRAWS = 60
"""Worlds drawn from one seed before it is given up."""
_LAST = 1_000_000
"""The cost of a refusal: more than any fare, so that it is right only where nothing else is allowed."""
FACTS: Facts = {
    "bookings.ticket": lambda _: ("saver", "standard", "flex"),
    "flights.status": lambda _: ("scheduled", "cancelled"),
    "flights.seats": lambda _: (0, 5),
    "passengers.1": lambda _: ("basic", "premium"),
}
"""What a twin's world may have otherwise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """One thing that an agent may do. flight: empty for a refusal. moved: the extras that are moved, of those
    in `extras`; the others are cancelled.
    """

    bookings: tuple[str, ...]
    flight: str = ""
    fee: str = ""
    extras: tuple[str, ...] = ()
    moved: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        return " ".join((*self.bookings, self.flight or "refuse", self.fee, *sorted(self.moved)))

    def plan(self) -> Plan:
        calls = [Call(tool="get_booking", arguments={"booking": booking}) for booking in self.bookings]
        if self.flight:
            calls += [
                Call(tool="change_flight", arguments={"booking": b, "flight": self.flight, "fee": self.fee})
                for b in self.bookings
            ]
        for extra in self.extras:
            tool = "move_extra" if extra in self.moved else "cancel_extra"
            calls.append(Call(tool=tool, arguments={"extra": extra}))
        return Plan(calls=tuple(calls), answer="done" if self.flight else "refused")


@dataclass(frozen=True, slots=True)
class AirlineDomain:
    name: str = "airline"
    version: int = VERSION
    levels: tuple[int, ...] = (1, 2, 3, 4, 5, *LADDER.rungs)
    shown_levels: tuple[int, ...] = (1, 2, 3)
    tools: tuple[Tool, ...] = TOOLSETS[0]
    toolsets: tuple[tuple[Tool, ...], ...] = tuple(dict.fromkeys((*TOOLSETS, *LADDER.toolsets(TOOLSETS))))
    twin_levels: tuple[int, ...] = (1, 2, 3, 4, 5)

    def raised_from(self, level: int) -> int | None:
        return LADDER.raised_from(level)

    def draft(self, level: int, seed: int) -> Draft | None:
        drawn = self._drawn(level, seed)
        return None if drawn is None else self.make(level, seed, *drawn)

    def twins(self, level: int, seed: int) -> Iterator[Draft]:
        drawn = self._drawn(level, seed)
        if drawn is not None:
            rng, world, request = drawn
            make = partial(self.make, level, seed, request=request)
            yield from twin_drafts(make, rng, world, FACTS)

    def _drawn(self, level: int, seed: int) -> tuple[random.Random, AirlineWorld, Request] | None:
        """World and request, with the draws that are left for the draft."""
        if level not in self.levels:
            raise ValueError(f"domain airline has the levels {self.levels}, not {level}")
        rng = random.Random(seed)
        if level in LADDER.rungs:
            return rng, *draw_raised(rng, level)
        wants_refusal = rng.random() < 1 / 3
        for _ in range(MAX_DRAWS):
            world = draw_world(rng, level)
            request = draw_request(rng, world, level)
            if wants_refusal != bool(right_decision(world, request).flight):
                return rng, world, request
        return None

    def make(self, level: int, seed: int, rng: random.Random, world: AirlineWorld, request: Request) -> Draft:
        right = right_decision(world, request)
        decisions = {decision.name: decision for decision in _decisions(world, request)}
        assert right.name in decisions, "the right decision is one of those that a guess draws from"
        return Draft(
            domain=self.name,
            level=level,
            seed=seed,
            tables=world.tables(),
            system=policy_text(request),
            prompt=prompt_text(rng, request),
            tools=tools_at(level, seed) if level in LADDER.rungs else rng.choice(TOOLSETS),
            clauses=_clauses(request, world.party),
            frame=_frame(right),
            answer=AnswerSpec(kind="choice", choices=("done", "refused")),
            guess=GuessSpace(plans=tuple(decision.plan() for decision in decisions.values())),
            problem=_problem(world, request, decisions),
            goal=request,
            max_turns=40,
        )

    def plan(self, draft: Draft, client: Client, care: Care) -> Plan:
        return Rebooking(draft, client, care).play()


def _allowed_flights(world: AirlineWorld, request: Request) -> list[Flight]:
    old = world.old_flight(world.party[0])
    if not all(may_change(world.bookings[b].ticket, world.old_flight(b).status) for b in world.party):
        return []
    return [flight for flight in world.flights.values() if suits(request, flight, old)]


def _right_fee(world: AirlineWorld, request: Request) -> str:
    fees = []
    for name in world.party:
        booking = world.bookings[name]
        tier = world.passengers[booking.passenger_id][1]
        fees.append(fee_for(booking.ticket, world.old_flight(name).status, tier, by_tier=request.by_tier))
    return min(fees, key=FEES.index)


def right_decision(world: AirlineWorld, request: Request) -> Decision:
    """What the policy demands, from the whole world."""
    flight = min(_allowed_flights(world, request), key=lambda flight: flight.fare, default=None)
    if flight is None:
        return Decision(bookings=world.party)
    extras = world.extras_of(world.party) if request.with_extras else {}
    return Decision(
        bookings=world.party,
        flight=flight.flight,
        fee=_right_fee(world, request),
        extras=tuple(extras),
        moved=frozenset(extra for extra, kind in extras.items() if is_moved(kind, flight.minutes)),
    )


def _decisions(world: AirlineWorld, request: Request) -> Iterator[Decision]:
    """What an agent may do that ignores what it reads: about any booking where one is named alone or must be
    found, else about the party's; with every flight of the route, every fee, every fate of the extras.
    """
    parties = [world.party]
    if not request.with_extras and (request.flight or not request.bookings):
        parties = [(booking,) for booking in world.bookings]
    for party in parties:
        yield Decision(bookings=party)
        old = world.old_flight(party[0])
        flights = [f.flight for f in world.flights.values() if f.origin == old.origin and f != old]
        if not request.flight:
            flights = [name for name in flights if world.flights[name].destination == old.destination]
        extras = tuple(world.extras_of(party)) if request.with_extras else ()
        for flight in [request.flight] if request.flight else flights:
            for fee, *fates in product(FEES, *[(True, False)] * len(extras)):
                moved = frozenset(extra for extra, is_kept in zip(extras, fates, strict=True) if is_kept)
                yield Decision(bookings=party, flight=flight, fee=str(fee), extras=extras, moved=moved)


def _problem(world: AirlineWorld, request: Request, decisions: dict[str, Decision]) -> Problem:
    """The cheapest decision that keeps each rule; a refusal keeps them all and costs more than any flight."""
    allowed = {flight.flight: flight for flight in _allowed_flights(world, request)}
    kinds = world.extras_of(world.party)
    fee = _right_fee(world, request)
    rules = {
        "the booking that is meant": lambda d: d.bookings == world.party,
        "a flight that is allowed": lambda d: d.flight in allowed,
        "the fee": lambda d: d.fee == fee,
        "the extras": lambda d: all(
            (extra in d.moved) == is_moved(kinds[extra], world.flights[d.flight].minutes)
            for extra in d.extras
            if extra in kinds
        ),
    }
    constraints = []
    for name, rule in rules.items():
        about_all = name == "the booking that is meant"
        keep = frozenset(key for key, d in decisions.items() if (not d.flight and not about_all) or rule(d))
        constraints.append(Allow(name=name, variable="plan", options=keep))
    costs = {key: world.flights[d.flight].fare if d.flight else _LAST for key, d in decisions.items()}
    return Problem(options={"plan": tuple(decisions)}, constraints=tuple(constraints), cost={"plan": costs})


def _frame(right: Decision) -> tuple[FrameRule, ...]:
    if not right.flight:
        return ()
    rules = [FrameRule(table="bookings", key=key, columns=("fee", "flight")) for key in right.bookings]
    return (*rules, *(FrameRule(table="extras", key=key, columns=("state",)) for key in right.extras))


def _clauses(request: Request, party: tuple[str, ...]) -> tuple[Clause, ...]:
    """The policy in SQL, over the first tables: it knows the request, not what is right."""
    ours = f"({', '.join(map(quote, party))})"
    tickets = (
        "SELECT b.ticket, g.status, p.tier FROM initial.bookings b "
        "JOIN initial.flights g ON g.flight = b.flight "
        f"JOIN initial.passengers p ON p.passenger_id = b.passenger_id WHERE b.booking IN {ours}"
    )
    best = (
        "SELECT f.flight, f.minutes FROM initial.flights f JOIN initial.flights o ON o.origin = f.origin "
        "AND o.destination = f.destination AND o.flight <> f.flight "
        "JOIN initial.bookings b ON b.flight = o.flight "
        f"WHERE b.booking = {quote(party[0])} AND f.status = 'scheduled' AND f.seats >= {len(party)} "
        f"AND f.departs >= {quote(request.earliest)} AND f.arrives <= {quote(request.latest)} "
        + (f"AND f.flight = {quote(request.flight)} " if request.flight else "")
        + f"AND NOT EXISTS (SELECT 1 FROM ({tickets}) WHERE ticket = 'saver' AND status <> 'cancelled') "
        "ORDER BY f.fare LIMIT 1"
    )
    tier = "WHEN tier = 'premium' THEN 1 " if request.by_tier else ""
    rank = f"min(CASE WHEN ticket = 'flex' OR status = 'cancelled' THEN 0 {tier}ELSE 2 END)"
    fee = f"SELECT CASE {rank} WHEN 0 THEN 'none' WHEN 1 THEN 'half' ELSE 'full' END FROM ({tickets})"
    clauses = [
        *(
            read_before(
                "get_booking", {"booking": b}, WRITES, name=f"{b} was opened first", phrase=OPEN_FIRST
            )
            for b in party
        ),
        right_word(f"SELECT CASE WHEN EXISTS ({best}) THEN 'done' ELSE 'refused' END"),
        Clause(
            name="the booking is on the cheapest flight that the rules allow",
            part="goal",
            sql=f"WITH best AS ({best}) SELECT 1 FROM bookings b, best WHERE b.booking IN {ours} "
            "AND b.flight <> best.flight",
        ),
        Clause(
            name="the fee is that of the policy",
            part="goal",
            sql=f"WITH best AS ({best}) SELECT 1 FROM bookings b, best WHERE b.booking IN {ours} "
            f"AND b.fee <> ({fee})",
        ),
    ]
    if request.with_extras:
        state = (
            f"CASE WHEN x.kind = 'bag' OR x.kind = 'meal' AND best.minutes >= {LONG_FLIGHT} "
            "THEN 'moved' ELSE 'cancelled' END"
        )
        clauses.append(
            Clause(
                name="every extra follows its rule",
                part="goal",
                sql=f"WITH best AS ({best}) SELECT 1 FROM extras x, best WHERE x.booking IN {ours} "
                f"AND x.state <> {state}",
            )
        )
    return tuple(clauses)


class Rebooking:
    """One play of a request by calls, from the prompt and what they give back."""

    def __init__(self, draft: Draft, client: Client, care: Care) -> None:
        self.request: Request = draft.goal
        self.tools = draft.tools
        self.client = client
        self.care = care

    def play(self) -> Plan:
        party = self.request.bookings or (self._find_booking(),)
        records = [self._row("get_booking", booking=booking) for booking in party]
        old = self._row("get_flight", flight=records[0]["flight"])
        status = old["status"]
        if not all(may_change(r["ticket"], status) for r in records) and not self.care.slips():
            return self._answer("refused")
        flight = self._choose(Flight(flight=records[0]["flight"], **old))
        if flight is None:
            return self._answer("refused")
        fee = self._fee(records, status)
        for booking in party:
            self.client.call("change_flight", booking=booking, flight=flight.flight, fee=fee)
        if self.request.with_extras:
            for booking in party:
                self._see_to_extras(booking, flight.minutes)
        return self._answer("done")

    def _answer(self, word: str) -> Plan:
        return Plan(calls=tuple(self.client.calls), answer=word)

    def _row(self, tool: str, **arguments: Any) -> dict[str, Any]:
        return self.client.call(tool, **arguments).rows[0]

    def _find_booking(self) -> str:
        """The booking to the destination; a slip takes any of the passenger's."""
        name = self.request.names[0]
        if offers(self.tools, "search_bookings"):
            rows = self.client.call("search_bookings", name=name).rows
            found = {row["booking"]: row["destination"] for row in rows}
            if self.care.slips():
                return self.care.rng.choice(list(found))
            return next(b for b, destination in found.items() if destination == self.request.destination)
        passenger_id = self.client.values("find_passenger_id", name=name)[0]
        bookings = self.client.values("list_bookings", passenger_id=passenger_id)
        if self.care.slips():
            return self.care.rng.choice(bookings)
        for booking in bookings:
            flight = self._row("get_booking", booking=booking)["flight"]
            if self._row("get_flight", flight=flight)["destination"] == self.request.destination:
                return booking
        raise ValueError(f"{name} has no booking to {self.request.destination}")

    def _choose(self, old: Flight) -> Flight | None:
        """The cheapest flight that suits; a slip takes one without looking at its times and seats."""
        flights = self._flights(old)
        if self.care.slips():
            return self.care.rng.choice(flights)
        suitable = [flight for flight in flights if suits(self.request, flight, old)]
        return min(suitable, key=lambda flight: flight.fare, default=None)

    def _flights(self, old: Flight) -> list[Flight]:
        route = {"origin": old.origin, "destination": old.destination}
        if self.request.flight:
            names = [self.request.flight]
        elif offers(self.tools, "search_flights"):
            return [Flight(**row) for row in self.client.call("search_flights", **route).rows]
        else:
            names = read_pages(self.client, "list_flights", **route)
        return [Flight(flight=name, **self._row("get_flight", flight=name)) for name in names]

    def _fee(self, records: list[dict[str, Any]], status: str) -> str:
        if self.care.slips():
            return self.care.rng.choice(FEES)
        fees = []
        for record in records:
            tier = "basic"
            if self.request.by_tier:
                tier = self._row("get_passenger", passenger_id=record["passenger_id"])["tier"]
            fees.append(fee_for(record["ticket"], status, tier, by_tier=self.request.by_tier))
        return min(fees, key=FEES.index)

    def _see_to_extras(self, booking: str, minutes: int) -> None:
        """By the rule; a slip leaves an extra as it is, or does the other thing to it."""
        for row in self.client.call("get_extras", booking=booking).rows:
            moves = is_moved(row["kind"], minutes)
            if self.care.slips():
                if self.care.rng.random() < 0.5:
                    continue
                moves = not moves
            self.client.call("move_extra" if moves else "cancel_extra", extra=row["extra"])


DOMAIN = AirlineDomain()

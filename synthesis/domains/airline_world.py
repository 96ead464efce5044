"""The world of the airline domain, the policy's rules as functions, and what a passenger may ask for."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from envs.world import Table
from synthesis.domains.names import CITIES, FIRST_NAMES, LAST_NAMES

LONG_FLIGHT = 120
"""Minutes from which on a flight serves meals."""
OPEN_FIRST = "Open a booking with get_booking before you change anything or refuse."
KINDS = ("bag", "meal", "seat")
_SYLLABLES = ("BA", "CO", "DU", "FE", "GI", "HA", "KO", "LU", "MA", "NE", "PO", "RI")


@dataclass(frozen=True, kw_only=True, slots=True)
class Flight:
    """departs and arrives as HH:MM of one day, minutes between them; seats: how many are free."""

    flight: str
    origin: str
    destination: str
    departs: str
    arrives: str
    minutes: int
    fare: int
    seats: int
    status: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Booking:
    booking: str
    passenger_id: str
    flight: str
    ticket: str


@dataclass(frozen=True, kw_only=True, slots=True)
class AirlineWorld:
    """passengers: id to (name, tier). extras: id to (booking, kind). party: the bookings that a request is
    about.
    """

    flights: dict[str, Flight]
    bookings: dict[str, Booking]
    passengers: dict[str, tuple[str, str]]
    extras: dict[str, tuple[str, str]]
    party: tuple[str, ...]

    def old_flight(self, booking: str) -> Flight:
        return self.flights[self.bookings[booking].flight]

    def name_of(self, booking: str) -> str:
        return self.passengers[self.bookings[booking].passenger_id][0]

    def extras_of(self, bookings: tuple[str, ...]) -> dict[str, str]:
        """Id to kind."""
        return {extra: kind for extra, (booking, kind) in sorted(self.extras.items()) if booking in bookings}

    def tables(self) -> tuple[Table, ...]:
        columns = tuple(
            (name, "INTEGER" if name in ("minutes", "fare", "seats") else "TEXT")
            for name in Flight.__dataclass_fields__
        )
        flights = [tuple(getattr(flight, name) for name, _ in columns) for flight in self.flights.values()]
        bookings = [(b.booking, b.passenger_id, b.flight, b.ticket, "none") for b in self.bookings.values()]
        return (
            Table(
                name="passengers",
                columns=_text("passenger_id", "name", "tier"),
                rows=sorted((key, *row) for key, row in self.passengers.items()),
            ),
            Table(name="flights", columns=columns, rows=sorted(flights)),
            Table(
                name="bookings",
                columns=_text("booking", "passenger_id", "flight", "ticket", "fee"),
                rows=sorted(bookings),
            ),
            Table(
                name="extras",
                columns=_text("extra", "booking", "kind", "state"),
                rows=sorted((key, *row, "booked") for key, row in self.extras.items()),
            ),
        )


def _text(*names: str) -> tuple[tuple[str, str], ...]:
    return tuple((name, "TEXT") for name in names)


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What is asked for, as the prompt says it.

    bookings: empty where only name and destination say which. flight: empty where any will do that leaves at
    `earliest` or later and arrives by `latest`. by_tier, with_extras: which rules the policy has.
    """

    names: tuple[str, ...]
    bookings: tuple[str, ...]
    destination: str
    flight: str
    earliest: str
    latest: str
    by_tier: bool
    with_extras: bool

    @property
    def num_seats(self) -> int:
        return len(self.names)


def policy_text(request: Request) -> str:
    otherwise = "half for premium passengers and full for all others" if request.by_tier else "full"
    lines = [
        "You rebook the passengers of an airline with the tools.",
        OPEN_FIRST,
        "A saver ticket may be changed only if its flight is cancelled. Standard and flex tickets may always "
        "be changed.",
        "A booking may only move to another flight between the same two cities that is not cancelled and has "
        "a free seat. If several suit the passenger, take the one with the lowest price.",
        "The fee is none for a flex ticket, and none for any ticket if its flight is cancelled. "
        f"Otherwise it is {otherwise}.",
    ]
    if request.with_extras:
        lines.append(
            "After the change see to every extra of the booking: move a bag; cancel a seat; move a meal if "
            f"the new flight takes {LONG_FLIGHT} minutes or more, else cancel it."
        )
    if request.num_seats > 1:
        lines.append(
            "Passengers who travel together move to one flight with a free seat for each of them, or not at "
            "all, and only if each of their tickets may be changed. Each pays the lowest fee that one of "
            "them would pay alone."
        )
    lines.append(
        "If a request is against these rules, change nothing and answer refused. Else do it and answer done."
    )
    return "\n".join(lines)


def may_change(ticket: str, flight_status: str) -> bool:
    return ticket != "saver" or flight_status == "cancelled"


def fee_for(ticket: str, flight_status: str, tier: str, *, by_tier: bool) -> str:
    if ticket == "flex" or flight_status == "cancelled":
        return "none"
    return "half" if by_tier and tier == "premium" else "full"


def is_moved(kind: str, minutes: int) -> bool:
    """Whether an extra moves to its booking's new flight of so many minutes; else it is cancelled."""
    return kind == "bag" or (kind == "meal" and minutes >= LONG_FLIGHT)


def suits(request: Request, flight: Flight, old: Flight) -> bool:
    """The flight is one that the request and the policy allow, whatever the tickets."""
    return (
        flight.flight != old.flight
        and (flight.origin, flight.destination) == (old.origin, old.destination)
        and flight.status == "scheduled"
        and flight.seats >= request.num_seats
        and request.earliest <= flight.departs
        and flight.arrives <= request.latest
        and request.flight in ("", flight.flight)
    )


def draw_world(rng: random.Random, level: int) -> AirlineWorld:
    """Flights on three routes; the bookings of the party come first, then another of its first member, then a
    stranger's.
    """
    home, there, elsewhere = rng.sample(CITIES, 3)
    num_main = 4 if level == 5 else rng.randrange(5, 7)
    routes = [(home, there)] * num_main + [(home, elsewhere)] * 2 + [(there, home)]
    numbers = [f"WS{number}" for number in rng.sample(range(100, 1000), len(routes))]
    fares = rng.sample(range(80, 400, 5), len(routes))
    flights = {
        number: _draw_flight(rng, number, route, fare)
        for number, route, fare in zip(numbers, routes, fares, strict=True)
    }
    names = zip(rng.sample(FIRST_NAMES, 3), rng.sample(LAST_NAMES, 3), strict=True)
    ids = [f"P{number}" for number in rng.sample(range(100, 1000), 3)]
    passengers = {
        key: (f"{first} {last}", rng.choice(("basic", "premium")))
        for key, (first, last) in zip(ids, names, strict=True)
    }
    size = 2 if level == 5 else 1
    owners = [*ids[:size], ids[0], ids[2]]
    taken = [numbers[0]] * size + [numbers[num_main], rng.choice(numbers)]
    codes = rng.sample([a + b for a in _SYLLABLES for b in _SYLLABLES if a != b], len(owners))
    bookings = {
        code: Booking(
            booking=code,
            passenger_id=owner,
            flight=flight,
            ticket=rng.choices(("saver", "standard", "flex"), weights=(2, 3, 2))[0],
        )
        for code, owner, flight in zip(codes, owners, taken, strict=True)
    }
    return AirlineWorld(
        flights=flights,
        bookings=bookings,
        passengers=passengers,
        extras=dict(_draw_extras(rng, codes, size)),
        party=tuple(codes[:size]),
    )


def _draw_flight(rng: random.Random, number: str, route: tuple[str, str], fare: int) -> Flight:
    leaves, minutes = rng.randrange(6 * 60, 20 * 60, 5), rng.randrange(80, 170, 5)
    return Flight(
        flight=number,
        origin=route[0],
        destination=route[1],
        departs=_clock(leaves),
        arrives=_clock(leaves + minutes),
        minutes=minutes,
        fare=fare,
        seats=rng.choice((0, 1, 2, 3, 5)),
        status="cancelled" if rng.random() < 0.2 else "scheduled",
    )


def _draw_extras(rng: random.Random, codes: list[str], size: int) -> Iterator[tuple[str, tuple[str, str]]]:
    """Two extras for the party, one for each other booking."""
    owners = [codes[0], codes[size - 1], *codes[size:]]
    kinds = [*rng.sample(KINDS, 2), *(rng.choice(KINDS) for _ in codes[size:])]
    numbers = rng.sample(range(10, 100), len(owners))
    return ((f"X{n}", (owner, kind)) for n, owner, kind in zip(numbers, owners, kinds, strict=True))


def _clock(minutes: int) -> str:
    return f"{minutes // 60:02d}:{minutes % 60:02d}"


def draw_request(rng: random.Random, world: AirlineWorld, level: int) -> Request:
    old = world.old_flight(world.party[0])
    wanted, earliest, latest = "", "00:00", "23:59"
    if level == 1:
        near = [f.flight for f in world.flights.values() if f.origin == old.origin and f != old]
        wanted = rng.choice(near)
    elif rng.random() < 0.5:
        earliest = _clock(rng.randrange(8, 16) * 60)
    else:
        latest = _clock(rng.randrange(12, 21) * 60)
    return Request(
        names=tuple(world.name_of(booking) for booking in world.party),
        bookings=() if level in (3, 4) else world.party,
        destination=old.destination,
        flight=wanted,
        earliest=earliest,
        latest=latest,
        by_tier=level >= 3,
        with_extras=level >= 4,
    )


def prompt_text(rng: random.Random, request: Request) -> str:
    name, *companions = request.names
    opening = rng.choice(("Hello, this is {}.", "I am {}.", "{} here, good morning.")).format(name)
    if companions:
        opening += (
            f" {companions[0]} and I travel together; our bookings are {' and '.join(request.bookings)}."
        )
        who = "us both"
    elif request.bookings:
        opening += rng.choice((" My booking is {}.", " It is about booking {}.")).format(request.bookings[0])
        who = "me"
    else:
        opening += rng.choice((" I am booked to {}.", " It is about my flight to {}.")).format(
            request.destination
        )
        who = "me"
    if request.flight:
        wish = rng.choice(("Please put {} on flight {} instead.", "Can you move {} to flight {}?"))
        return f"{opening} {wish.format(who, request.flight)}"
    wish = rng.choice(
        ("Please find {} another flight that day.", "Can you put {} on another flight that day?")
    )
    if request.earliest != "00:00":
        when = rng.choice(("It must not leave before {}.", "I cannot get to the airport for one before {}."))
        return f"{opening} {wish.format(who)} {when.format(request.earliest)}"
    when = rng.choice(("It must arrive by {}.", "I have to be there at {} at the latest."))
    return f"{opening} {wish.format(who)} {when.format(request.latest)}"

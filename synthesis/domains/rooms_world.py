"""The house's rooms and its diary, what a user may need of a room, and the tools, on each surface."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from envs.tools import Param, Tool, Write
from envs.world import Table
from synthesis.domains.names import FIRST_NAMES, LAST_NAMES
from synthesis.scripted_user import ask_user
from synthesis.surface import AFTER, SURFACES, Surface, exists, page_of

ROOMS = ("Alder", "Birch", "Cedar", "Dogwood", "Elm", "Fir", "Hazel", "Juniper", "Larch", "Maple")
DAYS = ("Monday", "Tuesday", "Wednesday")
HOURS = ("09:00", "11:00", "14:00", "16:00")
SEATS = (6, 8, 12, 16, 20, 30)
TOPICS = ("day", "hour", "people", "catering")
NUM_ROOMS, NUM_HOLDERS = 5, 4
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Needs:
    """What a room must have. people: seats at least; 0 where the prompt leaves it open."""

    people: int
    projector: bool = False
    step_free: bool = False

    def met_by(self, room: Row) -> bool:
        return (
            room["seats"] >= self.people
            and (not self.projector or room["projector"] == "yes")
            and (not self.step_free or room["step_free"] == "yes")
        )

    def sql(self, room: str) -> str:
        """True of a row `room` of the rooms that meets the needs."""
        parts = [f"{room}.seats >= {self.people}"]
        parts += [f"{room}.projector = 'yes'"] * self.projector + [
            f"{room}.step_free = 'yes'"
        ] * self.step_free
        return " AND ".join(parts)

    @property
    def phrase(self) -> str:
        extras = ["with a projector"] * self.projector + ["without steps"] * self.step_free
        people = f"for {self.people} people" if self.people else "for my team"
        return " ".join([people, " and ".join(extras)]).strip()


@dataclass(frozen=True, kw_only=True, slots=True)
class House:
    """The tables' rows, by column. Every hour has its own surcharge and every room its own fee."""

    rooms: Sequence[Row]
    hours: Sequence[Row]
    slots: Sequence[Row]

    def room(self, name: str) -> Row:
        return next(row for row in self.rooms if row["room"] == name)

    def tables(self) -> tuple[Table, ...]:
        return tuple(
            Table(
                name=name,
                columns=tuple((c, "INTEGER" if isinstance(v, int) else "TEXT") for c, v in rows[0].items()),
                rows=sorted(tuple(row.values()) for row in rows),
            )
            for name, rows in (("rooms", self.rooms), ("hours", self.hours), ("slots", self.slots))
        )


def draw_house(rng: random.Random, *, days: Sequence[str], hours: Sequence[str]) -> House:
    """Half of the diary is free, the rest held, firmly or not."""
    fees = rng.sample(range(20, 200, 5), NUM_ROOMS)
    rooms = [
        {
            "room": name,
            "seats": rng.choice(SEATS),
            "projector": rng.choice(("yes", "yes", "no")),
            "step_free": rng.choice(("yes", "yes", "no")),
            "fee": fee,
        }
        for name, fee in zip(sorted(rng.sample(ROOMS, NUM_ROOMS)), fees, strict=True)
    ]
    surcharges = rng.sample(range(5, 100, 5), len(hours))
    ids = iter(rng.sample(range(100, 1000), NUM_ROOMS * len(days) * len(hours)))
    people = [f"{rng.choice(FIRST_NAMES)} {last}" for last in rng.sample(LAST_NAMES, NUM_HOLDERS)]
    slots = []
    for day in days:
        for hour in hours:
            for room in rooms:
                state = rng.choices(("free", "firm", "tentative"), weights=(5, 3, 2))[0]
                holder = rng.choice(people) if state != "free" else "nobody"
                cells = {"room": room["room"], "day": day, "hour": hour, "state": state, "holder": holder}
                slots.append({"slot_id": f"S{next(ids)}", **cells})
    hour_rows = [{"hour": hour, "surcharge": s} for hour, s in zip(hours, surcharges, strict=True)]
    return House(rooms=rooms, hours=hour_rows, slots=slots)


def _room_tools(surface: Surface) -> tuple[Tool, ...]:
    seats = surface.word("seats", "places")
    shown = f"{{seats}} {seats}; projector {{projector}}; step-free {{step_free}}; fee {{fee}}"
    if surface.search:
        return (
            Tool(
                name="search_rooms",
                description="The rooms with at least so many seats: seats, projector, step-free, fee.",
                parameters=(Param(name="min_seats", description="How many seats.", type="integer"),),
                query="SELECT room, seats, projector, step_free, fee FROM rooms WHERE seats >= :min_seats "
                "ORDER BY room",
                row_format=f"{{room}}: {shown}",
                reads=("rooms",),
            ),
        )
    return (
        Tool(
            name="list_rooms",
            description="The names of the rooms.",
            parameters=(AFTER,),
            query=page_of("rooms", "room", "1"),
            row_format="{room}",
            reads=("rooms",),
        ),
        Tool(
            name="get_room",
            description="A room's seats, projector, step-free way and fee.",
            parameters=(Param(name="room", description="The room's name."),),
            requires=(exists(surface, "room", "rooms", "room"),),
            query="SELECT seats, projector, step_free, fee FROM rooms WHERE room = :room",
            row_format=shown,
            reads=("rooms",),
        ),
    )


def _make_tools(surface: Surface) -> tuple[Tool, ...]:
    slot = Param(name="slot_id", description="The slot's id.")
    change = Write(table="slots", operation="update", columns=("holder", "state"))
    known = (exists(surface, "slot", "slots", "slot_id"),)
    return (
        *_room_tools(surface),
        Tool(
            name="list_slots",
            description="Every room's slot on a day at an hour: free, firm or tentative.",
            parameters=(
                Param(name="day", description="The day.", enum=DAYS),
                Param(name="hour", description="When it begins.", enum=HOURS),
            ),
            query="SELECT slot_id, room, state FROM slots WHERE day = :day AND hour = :hour ORDER BY room",
            row_format="{slot_id} {room} {state}",
            reads=("slots",),
        ),
        Tool(
            name="list_hours",
            description="The hours of the day, each with the surcharge for staff.",
            query="SELECT hour, surcharge FROM hours ORDER BY hour",
            row_format="{hour} plus {surcharge}",
            reads=("hours",),
        ),
        Tool(
            name="book_slot",
            description="Books a slot firmly for somebody.",
            parameters=(slot, Param(name="holder", description="Who it is for: first and last name.")),
            requires=known,
            statements=("UPDATE slots SET state = 'firm', holder = :holder WHERE slot_id = :slot_id",),
            done="booked",
            reads=("slots",),
            writes=(change,),
        ),
        Tool(
            name="release_slot",
            description="Takes a booking off a slot and tells who held it.",
            parameters=(slot,),
            requires=known,
            statements=("UPDATE slots SET state = 'free', holder = 'nobody' WHERE slot_id = :slot_id",),
            done="released",
            reads=("slots",),
            writes=(change,),
        ),
        ask_user(TOPICS),
    )


TOOLSETS = tuple(_make_tools(surface) for surface in SURFACES)

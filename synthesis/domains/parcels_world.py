"""A parcel depot: parcels in bags on vans, lockers for collection; and the depot's tools, on each surface."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from envs.tools import Param, Tool, Write
from envs.world import Table
from synthesis.domains.names import FIRST_NAMES, LAST_NAMES
from synthesis.surface import AFTER, SURFACES, Surface, exists, page_of

CITIES = ("Lund", "Oslo", "Bergen", "Turku")
SIZES = ("small", "medium", "large")
NUM_PARCELS, NUM_BAGS, NUM_VANS, NUM_LOCKERS = 7, 5, 6, 8
TIMES = tuple(f"{hour:02d}:{minute}" for hour in range(8, 20) for minute in ("00", "20", "40"))
LOW_SHELF, HIGH_SHELF = 1, 3
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Depot:
    """The tables' rows, by column. No two vans leave at one time."""

    parcels: Sequence[Row]
    bags: Sequence[Row]
    vans: Sequence[Row]
    lockers: Sequence[Row]

    def bags_on(self, van: str) -> list[str]:
        return [row["bag"] for row in self.bags if row["van"] == van]

    def tables(self) -> tuple[Table, ...]:
        return tuple(
            Table(
                name=name,
                columns=tuple((c, "INTEGER" if isinstance(v, int) else "TEXT") for c, v in rows[0].items()),
                rows=sorted(tuple(row.values()) for row in rows),
            )
            for name in ("parcels", "bags", "vans", "lockers")
            for rows in (getattr(self, name),)
        )


def draw_depot(rng: random.Random) -> Depot:
    """The vans go to three cities at most, so that several go to one."""
    cities = rng.sample(CITIES, len(CITIES))
    van_names = [f"V{n}" for n in rng.sample(range(10, 100), NUM_VANS)]
    vans = [
        {
            "van": van,
            "city": rng.choice(cities[:3]),
            "departs": departs,
            "places": rng.randrange(0, 5),
            "status": rng.choices(("running", "in repair"), weights=(5, 1))[0],
        }
        for van, departs in zip(van_names, rng.sample(TIMES, NUM_VANS), strict=True)
    ]
    laden = rng.sample(van_names, 3)  # any of them, or the place in the listing would tell
    bags = [{"bag": f"B{n}", "van": rng.choice(laden)} for n in rng.sample(range(100, 1000), NUM_BAGS)]
    city_of = {row["van"]: row["city"] for row in vans}
    people = [f"{rng.choice(FIRST_NAMES)} {last}" for last in rng.sample(LAST_NAMES, 4)]
    parcels = []
    for number in rng.sample(range(1000, 10000), NUM_PARCELS):
        state = rng.choices(("waiting", "loaded", "delivered"), weights=(4, 4, 1))[0]
        bag = rng.choice(bags)
        parcels.append(
            {
                "parcel_id": f"P{number}",
                "recipient": rng.choice(people),
                "city": city_of[bag["van"]] if state == "loaded" else rng.choice(cities),
                "bag": bag["bag"] if state == "loaded" else "none",
                "state": state,
                "size": rng.choice(SIZES),
                "weight": rng.randrange(1, 25),
                "fragile": rng.choice(("yes", "no")),
            }
        )
    fees = rng.sample(range(2, 40), NUM_LOCKERS)
    lockers = [
        {
            "locker": f"K{number}",
            "size": rng.choice(SIZES),
            "shelf": rng.randrange(LOW_SHELF, HIGH_SHELF + 1),
            "fee": fee,
            "state": rng.choices(("free", "taken"), weights=(4, 1))[0],
        }
        for number, fee in zip(rng.sample(range(10, 100), NUM_LOCKERS), fees, strict=True)
    ]
    return Depot(parcels=parcels, bags=bags, vans=vans, lockers=lockers)


_PARCEL = Param(name="parcel_id", description="The parcel's id.")
_BAG = Param(name="bag", description="The bag's id.")
_VAN = Param(name="van", description="The van's id.")


def _getters(surface: Surface) -> tuple[Tool, ...]:
    leaves = surface.word("departs", "leaves")
    return (
        Tool(
            name="get_parcel",
            description="Recipient, city, state, bag, size, weight in kg, and whether it is fragile.",
            parameters=(_PARCEL,),
            requires=(exists(surface, "parcel", "parcels", "parcel_id"),),
            query="SELECT recipient, city, state, bag, size, weight, fragile FROM parcels "
            "WHERE parcel_id = :parcel_id",
            row_format="for {recipient} in {city}; {state}; bag {bag}; {size}; {weight} kg; fragile "
            "{fragile}",
            reads=("parcels",),
        ),
        Tool(
            name="get_bag",
            description="The van that a bag is on.",
            parameters=(_BAG,),
            requires=(exists(surface, "bag", "bags", "bag"),),
            query="SELECT van FROM bags WHERE bag = :bag",
            row_format="{van}",
            reads=("bags",),
        ),
        Tool(
            name="get_van",
            description="Where a van goes, when it leaves, its free places for bags, and its status.",
            parameters=(_VAN,),
            requires=(exists(surface, "van", "vans", "van"),),
            query="SELECT city, departs, places, status FROM vans WHERE van = :van",
            row_format=f"to {{city}}; {leaves} {{departs}}; {{places}} places; {{status}}",
            reads=("vans",),
        ),
        Tool(
            name="list_bags",
            description="The bags on a van.",
            parameters=(_VAN,),
            requires=(exists(surface, "van", "vans", "van"),),
            query="SELECT bag FROM bags WHERE van = :van ORDER BY bag",
            row_format="{bag}",
            reads=("bags", "vans"),
        ),
    )


def _searches(surface: Surface) -> tuple[Tool, ...]:
    recipient = Param(name="recipient", description="First and last name.")
    city = Param(name="city", description="The city.", enum=CITIES)
    if surface.search:
        return (
            Tool(
                name="search_parcels",
                description="A recipient's parcels: id, city, state, bag.",
                parameters=(recipient,),
                query="SELECT parcel_id, city, state, bag FROM parcels WHERE recipient = :recipient "
                "ORDER BY parcel_id",
                row_format="{parcel_id} to {city}, {state}, bag {bag}",
                reads=("parcels",),
            ),
            Tool(
                name="search_vans",
                description="The vans to a city: id, when it leaves, free places, status.",
                parameters=(city,),
                query="SELECT van, departs, places, status FROM vans WHERE city = :city ORDER BY van",
                row_format="{van} at {departs}, {places} places, {status}",
                reads=("vans",),
            ),
            Tool(
                name="search_lockers",
                description="The free lockers: id, size, shelf, fee a day.",
                query="SELECT locker, size, shelf, fee FROM lockers WHERE state = 'free' ORDER BY locker",
                row_format="{locker} {size}, shelf {shelf}, fee {fee}",
                reads=("lockers",),
            ),
        )
    return (
        Tool(
            name="list_parcels",
            description="The ids of a recipient's parcels.",
            parameters=(recipient, AFTER),
            query=page_of("parcels", "parcel_id", "recipient = :recipient"),
            row_format="{parcel_id}",
            reads=("parcels",),
        ),
        Tool(
            name="list_vans",
            description="The ids of the vans to a city.",
            parameters=(city, AFTER),
            query=page_of("vans", "van", "city = :city"),
            row_format="{van}",
            reads=("vans",),
        ),
        Tool(
            name="list_lockers",
            description="The ids of the free lockers.",
            parameters=(AFTER,),
            query=page_of("lockers", "locker", "state = 'free'"),
            row_format="{locker}",
            reads=("lockers",),
        ),
        Tool(
            name="get_locker",
            description="A locker's size, shelf and fee a day.",
            parameters=(Param(name="locker", description="The locker's id."),),
            requires=(exists(surface, "locker", "lockers", "locker"),),
            query="SELECT size, shelf, fee FROM lockers WHERE locker = :locker",
            row_format="{size}, shelf {shelf}, fee {fee}",
            reads=("lockers",),
        ),
    )


def _writes(surface: Surface) -> tuple[Tool, ...]:
    return (
        Tool(
            name="redirect_parcel",
            description="Sends a parcel to another city.",
            parameters=(_PARCEL, Param(name="city", description="The new city.", enum=CITIES)),
            requires=(exists(surface, "parcel", "parcels", "parcel_id"),),
            statements=("UPDATE parcels SET city = :city WHERE parcel_id = :parcel_id",),
            done="redirected",
            reads=("parcels",),
            writes=(Write(table="parcels", operation="update", columns=("city",)),),
        ),
        Tool(
            name="move_bag",
            description="Puts a bag on another van, where it takes one place.",
            parameters=(_BAG, _VAN),
            requires=(exists(surface, "bag", "bags", "bag"), exists(surface, "van", "vans", "van")),
            statements=(
                "UPDATE bags SET van = :van WHERE bag = :bag",
                "UPDATE vans SET places = places - 1 WHERE van = :van",
            ),
            done="moved",
            reads=("bags", "vans"),
            writes=(
                Write(table="bags", operation="update", columns=("van",)),
                Write(table="vans", operation="update", columns=("places",)),
            ),
        ),
        Tool(
            name="report_breakdown",
            description="Marks a van as broken.",
            parameters=(_VAN,),
            requires=(exists(surface, "van", "vans", "van"),),
            statements=("UPDATE vans SET status = 'broken' WHERE van = :van",),
            done="reported",
            reads=("vans",),
            writes=(Write(table="vans", operation="update", columns=("status",)),),
        ),
    )


TOOLSETS = tuple((*_getters(s), *_searches(s), *_writes(s)) for s in SURFACES)

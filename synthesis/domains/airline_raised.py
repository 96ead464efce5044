"""Levels 6 to 10 of the airline: one passenger's request in one world, raised step by step.

It begins with a booking and a flight by their numbers. Then the flight must be found, the fee depends on the
passenger's tier, the booking must be found by name and destination, and its extras follow.
"""

import random
from dataclasses import dataclass, replace

from envs.tools import Tool
from synthesis.domains.airline_tools import TOOLSETS
from synthesis.domains.airline_world import AirlineWorld, Request, draw_request, draw_world
from synthesis.raising import Ladder, check_range

FULL = 4
"""The level whose world and request the raised ones begin to ask for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestDials:
    """Each 0 or 1: the flight is to be found, tiers count, the booking is to be found, extras follow."""

    search: int = 0
    tiers: int = 0
    hops: int = 0
    extras: int = 0

    def __post_init__(self) -> None:
        check_range(self, search=(0, 1), tiers=(0, 1), hops=(0, 1), extras=(0, 1))


def needs(dials: RequestDials) -> set[str]:
    return {column for column, counts in (("tier", dials.tiers), ("kind", dials.extras)) if counts}


LADDER = Ladder(
    rungs={
        6: RequestDials(),
        7: RequestDials(search=1),
        8: RequestDials(search=1, tiers=1),
        9: RequestDials(search=1, tiers=1, hops=1),
        10: RequestDials(search=1, tiers=1, hops=1, extras=1),
    },
    needs=needs,
)


def draw_raised(rng: random.Random, level: int) -> tuple[AirlineWorld, Request]:
    """The seed's world, the same at each rung, and of its request what the rung asks for."""
    dials = LADDER.rungs[level]
    world = draw_world(rng, FULL)
    request = draw_request(rng, world, FULL)
    old = world.old_flight(world.party[0])
    named = rng.choice([f.flight for f in world.flights.values() if f.origin == old.origin and f != old])
    if not dials.search:
        request = replace(request, flight=named, earliest="00:00", latest="23:59")
    bookings = () if dials.hops else world.party
    by_tier, with_extras = bool(dials.tiers), bool(dials.extras)
    return world, replace(request, bookings=bookings, by_tier=by_tier, with_extras=with_extras)


def tools_at(level: int, seed: int) -> tuple[Tool, ...]:
    """One surface for all rungs of a seed, so that the tools of one are among those of the next."""
    return LADDER.tools(random.Random(seed).choice(TOOLSETS), LADDER.rungs[level])

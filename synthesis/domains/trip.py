"""Trip planning with the paper's fifteen tools and conditional budget rules.

Levels 1 to 4 plan one day in a given city: 1 one place under one condition; 2 two places; 3 two places, the
second under a rule that depends on the hotel's price; 4 the same where the lists of both are long, of which
3 shows one at most. 5 is one day, the city to be chosen, at the lowest total price; 6 is the paper's own
task: three days from Hangzhou, nothing twice, its budget rules on day 2, at the lowest total price. 1 to 3
may be shown to a cold start.
"""

import json
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from envs.task import AnswerSpec, Clause, GuessSpace, Plan, Slot
from envs.tools import Tool
from synthesis.domains.trip_days import draft_days, plan_days
from synthesis.domains.trip_tools import TOOLS
from synthesis.domains.trip_world import KIND_OF, PRICE_WORD, Place, TripWorld, build_world
from synthesis.facts import twin_drafts
from synthesis.grammar import Care, Client, Draft, quote
from synthesis.solver import Allow, Problem

VERSION = 2
SYSTEM = (
    "You plan trips with the tools. Look places up before you choose them.\n"
    "Submit the plan as a JSON list with one object a day."
)
RATING_BOUNDS = (3.5, 4.0, 4.5)
MAX_DRAWS = 100
"""Worlds drawn from one seed before it is given up."""
TIER = 500
"""Hotels from this price on are dear: the rule of levels 3 and 4 asks for a good place then, else for a
cheap one.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Condition:
    """`column`'s place must have `word` (price, ticket) below `bound`, or rating at least `bound`."""

    word: str
    bound: float

    def holds(self, value: float) -> bool:
        return value >= self.bound if self.word == "rating" else value < self.bound

    @property
    def phrase(self) -> str:
        return (
            f"rating at least {self.bound:.1f}"
            if self.word == "rating"
            else f"{self.word} under {self.bound:.0f}"
        )

    def violation(self, alias: str) -> str:
        """SQL that is true of a place that breaks the condition."""
        return (
            f"{alias}.{self.word} < {self.bound}"
            if self.word == "rating"
            else f"{alias}.{self.word} >= {self.bound}"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Goal:
    """Conditions by column, in the order of the prompt. `rule`: (column, when the hotel is dear, when it is
    not).
    """

    city: str
    conditions: Mapping[str, Condition]
    rule: tuple[str, Condition, Condition] | None

    @property
    def columns(self) -> tuple[str, ...]:
        return (*self.conditions, *((self.rule[0],) if self.rule else ()))


@dataclass(frozen=True, slots=True)
class TripDomain:
    name: str = "trip"
    version: int = VERSION
    levels: tuple[int, ...] = (1, 2, 3, 4, 5, 6)
    shown_levels: tuple[int, ...] = (1, 2, 3)
    twin_levels: tuple[int, ...] = (3, 4)
    tools: tuple[Tool, ...] = TOOLS

    def draft(self, level: int, seed: int) -> Draft | None:
        if level not in self.levels:
            raise ValueError(f"domain trip has the levels {self.levels}, not {level}")
        if level >= 5:
            return draft_days(self.name, level, seed)
        rng = random.Random(seed)
        drawn = _drawn(rng, level)
        return None if drawn is None else _make_draft(level, seed, *drawn, _prompt(rng, drawn[1]))

    def twins(self, level: int, seed: int) -> Iterator[Draft]:
        """A hotel of the city costs more than the rule's bound, or less."""
        rng = random.Random(seed)
        if (drawn := _drawn(rng, level)) is not None:
            world, goal = drawn
            prompt = _prompt(rng, goal)

            def other_tier(place: Place) -> Iterable[int]:
                if (place.kind, place.city) != ("hotel", goal.city):
                    return ()
                return range(200, TIER, 10) if place.price >= TIER else range(TIER, 1000, 10)

            def make(_: random.Random, other: TripWorld) -> Draft:
                return _make_draft(level, seed, other, goal, prompt)

            yield from twin_drafts(make, rng, world, {"all_places.price": other_tier})

    def plan(self, draft: Draft, client: Client, care: Care) -> Plan:
        if draft.level >= 5:
            return plan_days(draft, client, care)
        goal: Goal = draft.goal
        chosen = {
            column: _choose(client, goal.city, column, test, care) for column, test in goal.conditions.items()
        }
        if goal.rule is not None:
            column, if_dear, if_cheap = goal.rule
            if care.slips():
                test = care.rng.choice((if_dear, if_cheap))
            else:
                test = if_dear if _look_up(client, "hotel", "price", chosen["hotel"]) >= TIER else if_cheap
            chosen[column] = _choose(client, goal.city, column, test, care)
        return Plan(calls=tuple(client.calls), answer=json.dumps([chosen]))


def _drawn(rng: random.Random, level: int) -> tuple[TripWorld, Goal] | None:
    """World and goal of a level of one day in a given city."""
    for _ in range(MAX_DRAWS):
        world = build_world(rng, num_cities=2, num_places=_num_places(rng, level))
        goal = _draw_goal(rng, world, level)
        if goal is not None:
            return world, goal
    return None


def _num_places(rng: random.Random, level: int) -> dict[str, int]:
    """How many places of each kind a city has: two to four. Of level 4 all lists are long, of level 3 never
    both of those that its rule ties together.
    """
    if level == 4:
        return dict.fromkeys(PRICE_WORD, 4)
    counts = {kind: rng.randint(2, 4) for kind in PRICE_WORD}
    if level == 3 and counts["hotel"] == 4:
        counts |= {kind: rng.randint(2, 3) for kind in ("restaurant", "attraction")}
    return counts


def _look_up(client: Client, kind: str, word: str, place: str) -> float:
    return float(client.call(f"get_infos_by_{kind}", info_keywords=word, **{kind: place}).rows[0]["info"])


def _choose(client: Client, city: str, column: str, test: Condition, care: Care) -> str:
    """The first place that passes the test; a slip takes one unseen."""
    kind = KIND_OF[column]
    places = client.values(f"get_all_{kind}s_by_city", city=city)
    if care.slips():
        return care.rng.choice(places)
    for place in places:
        if test.holds(_look_up(client, kind, test.word, place)):
            return place
    raise ValueError(f"no {kind} of {city} has {test.phrase}")


def _draw_goal(rng: random.Random, world: TripWorld, level: int) -> Goal | None:
    """A goal with exactly one answer, or None when the world has none of this shape."""
    city = rng.choice(world.cities)
    others = ["evening_restaurant", "afternoon_attraction"]
    rng.shuffle(others)
    if level == 1:
        free = [rng.choice(["hotel", *others])]
    elif level == 2:
        free = rng.sample(["hotel", *others], 2)
    else:
        free = ["hotel"]
    conditions: dict[str, Condition] = {}
    for column in free:
        condition = _unique_condition(rng, world, city, column)
        if condition is None:
            return None
        conditions[column] = condition
    if level < 3:
        return Goal(city=city, conditions=conditions, rule=None)
    ruled = others[0]
    price = PRICE_WORD[KIND_OF[ruled]]
    if_dear = _unique_condition(rng, world, city, ruled, word="rating")
    if_cheap = _unique_condition(rng, world, city, ruled, word=price)
    if if_dear is None or if_cheap is None:
        return None
    return Goal(city=city, conditions=conditions, rule=(ruled, if_dear, if_cheap))


def _unique_condition(
    rng: random.Random, world: TripWorld, city: str, column: str, word: str | None = None
) -> Condition | None:
    """A condition that exactly one place of that kind in the city meets."""
    kind = KIND_OF[column]
    word = word or rng.choice((PRICE_WORD[kind], "rating"))
    bounds = RATING_BOUNDS if word == "rating" else tuple(range(200, 1000, 100))
    values = [place.value(word) for place in world.places(kind, city)]
    fitting = [c for c in (Condition(word=word, bound=b) for b in bounds) if sum(map(c.holds, values)) == 1]
    return rng.choice(fitting) if fitting else None


def _label(column: str) -> str:
    return column.replace("_", " ").capitalize()


def _prompt(rng: random.Random, goal: Goal) -> str:
    opening = rng.choice(("Plan a day in {}.", "I will spend a day in {}.")).format(goal.city)
    parts = [f"{_label(column)}: {test.phrase}." for column, test in goal.conditions.items()]
    if goal.rule is not None:
        column, if_dear, if_cheap = goal.rule
        parts.append(
            f"{_label(column)}: {if_dear.phrase} if the hotel costs {TIER} or more, else {if_cheap.phrase}."
        )
    return " ".join([opening, *parts])


def _make_draft(level: int, seed: int, world: TripWorld, goal: Goal, prompt: str) -> Draft:
    options = {
        column: tuple(p.name for p in world.places(KIND_OF[column], goal.city)) for column in goal.columns
    }
    return Draft(
        domain="trip",
        level=level,
        seed=seed,
        tables=world.tables(),
        system=SYSTEM,
        prompt=prompt,
        tools=TOOLS,
        clauses=_clauses(goal),
        frame=(),
        answer=AnswerSpec(kind="rows", columns=goal.columns),
        guess=GuessSpace(
            slots=tuple(Slot(row=0, column=column, options=names) for column, names in options.items()),
            submit_tool="submit_result",
        ),
        problem=_problem(world, goal, options),
        goal=goal,
        max_turns=24,
    )


def _problem(world: TripWorld, goal: Goal, options: Mapping[str, tuple[str, ...]]) -> Problem:
    def passing(column: str, test: Condition) -> frozenset[str]:
        places = world.places(KIND_OF[column], goal.city)
        return frozenset(place.name for place in places if test.holds(place.value(test.word)))

    constraints = [Allow(name=c, variable=c, options=passing(c, test)) for c, test in goal.conditions.items()]
    if goal.rule is not None:
        column, if_dear, if_cheap = goal.rule
        hotels = world.places("hotel", goal.city)
        dear = frozenset(hotel.name for hotel in hotels if hotel.price >= TIER)
        cheap = frozenset(hotel.name for hotel in hotels) - dear
        for name, test, when in (("if dear", if_dear, dear), ("if cheap", if_cheap, cheap)):
            constraints.append(
                Allow(name=name, variable=column, options=passing(column, test), when={"hotel": when})
            )
    return Problem(options=options, constraints=tuple(constraints))


def _clauses(goal: Goal) -> tuple[Clause, ...]:
    clauses = [_in_city(goal.city, column) for column in goal.columns]
    for column, test in goal.conditions.items():
        clauses.append(
            Clause(
                name=f"{column}: {test.phrase}",
                part="answer",
                phrase=f"{_label(column)}: {test.phrase}.",
                sql=_violations(column, test.violation("p")),
            )
        )
    if goal.rule is not None:
        column, if_dear, if_cheap = goal.rule
        for test, when in ((if_dear, f">= {TIER}"), (if_cheap, f"< {TIER}")):
            sql = _violations(column, test.violation("p")) + (
                f" AND (SELECT h.price FROM initial.hotels h WHERE h.hotel = a.hotel) {when}"
            )
            clauses.append(Clause(name=f"{column}: {test.phrase} for a hotel {when}", part="answer", sql=sql))
    return tuple(clauses)


def _violations(column: str, violation: str) -> str:
    kind = KIND_OF[column]
    return f"SELECT 1 FROM answer a JOIN initial.{kind}s p ON p.{kind} = a.{column} WHERE {violation}"


def _in_city(city: str, column: str) -> Clause:
    kind = KIND_OF[column]
    return Clause(
        name=f"{column} is a {kind} in the city",
        part="answer",
        sql=f"SELECT 1 FROM answer a LEFT JOIN initial.{kind}s p ON p.{kind} = a.{column} "
        f"WHERE p.city IS NULL OR p.city <> {quote(city)}",
    )


DOMAIN = TripDomain()

"""Levels 5 and 6 of trip planning: whole days in the paper's form, at the lowest total price.

The planner reads everything that it may need, then solves the same problem from what it read; the oracle
solves it from the world. Both must agree, and the optimum must be the only one, or the draft is refused.
"""

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass

from envs.task import AnswerSpec, Clause, GuessSpace, Plan, Slot
from synthesis.domains.trip_tools import TOOLS
from synthesis.domains.trip_world import DATES, KIND_OF, PRICE_WORD, Place, TripWorld, build_world
from synthesis.grammar import Care, Client, Draft, quote
from synthesis.solver import AllDifferent, Allow, AllowAny, Constraint, Dearer, Problem, SumBelow, solve

HOME = "Hangzhou"
COLUMNS = tuple(KIND_OF)
NUM_PLACES = dict.fromkeys(PRICE_WORD, 3)
"""Of each kind in a city."""
DEARER_HOTELS = "; each day's hotel dearer than the day before's"
MEALS = ("afternoon_restaurant", "evening_restaurant")


@dataclass(frozen=True, kw_only=True, slots=True)
class Tier:
    """The paper's rule for a hotel from `low` up to `high` CNY. meals_below: both meals together;
    all_rated: both.
    """

    low: int
    high: int
    rating: float
    all_rated: bool
    meals_below: int | None
    ticket_below: int | None

    @property
    def phrase(self) -> str:
        who = "both restaurants are" if self.all_rated else "at least one restaurant is"
        parts = [f"{who} rated at least {self.rating:.1f}"]
        if self.meals_below is not None:
            parts.insert(0, f"both restaurants together cost under {self.meals_below}")
        if self.ticket_below is not None:
            parts.append(f"the afternoon ticket costs under {self.ticket_below}")
        return f"If the hotel costs {self.low} to {self.high - 1}, {', '.join(parts)}."


TIERS = (
    Tier(low=800, high=1000, rating=4.0, all_rated=True, meals_below=350, ticket_below=120),
    Tier(low=500, high=800, rating=4.0, all_rated=False, meals_below=None, ticket_below=180),
    Tier(low=200, high=500, rating=3.2, all_rated=False, meals_below=None, ticket_below=None),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class DaysGoal:
    num_days: int
    ruled_day: int


def draft_days(domain: str, level: int, seed: int) -> Draft | None:
    rng = random.Random(seed)
    num_days = 1 if level == 5 else 3
    world = build_world(rng, num_cities=2 if level == 5 else 4, num_places=NUM_PLACES, home=HOME)
    goal = DaysGoal(num_days=num_days, ruled_day=min(1, num_days - 1))
    problem = days_problem(world.all_places, world.cities, goal)
    solutions = solve(problem, limit=2)
    if not (solutions.proved and solutions.complete and len(solutions.optima) == 1):
        return None
    return Draft(
        domain=domain,
        level=level,
        seed=seed,
        tables=world.tables(),
        system="You plan trips with the tools. Look places up before you choose them.\n"
        "Submit the plan as a JSON list with one object a day.",
        prompt=_prompt(goal),
        tools=TOOLS,
        clauses=_clauses(goal, solutions.objective),
        frame=(),
        answer=AnswerSpec(kind="rows", columns=("time", "city", *COLUMNS), num_rows=num_days),
        guess=_guess_space(world, goal),
        problem=problem,
        goal=goal,
        max_turns=120,
    )


def days_problem(places: tuple[Place, ...], cities: tuple[str, ...], goal: DaysGoal) -> Problem:
    """The task as constraints; `places` and `cities` are the world's, or what a planner has read of them."""
    by_kind = {kind: [p for p in places if p.kind == kind] for kind in PRICE_WORD}
    options: dict[str, tuple[str, ...]] = {}
    constraints: list[Constraint] = []
    costs: dict[str, Mapping[str, int]] = {}
    for day in range(goal.num_days):
        options[f"{day}.city"] = cities
        for column in COLUMNS:
            name, kind = f"{day}.{column}", KIND_OF[column]
            options[name] = tuple(p.name for p in by_kind[kind])
            costs[name] = {p.name: p.price for p in by_kind[kind]}
            for city in cities:
                there = frozenset(p.name for p in by_kind[kind] if p.city == city)
                constraints.append(
                    Allow(
                        name="in the city",
                        variable=name,
                        options=there,
                        when={f"{day}.city": frozenset({city})},
                    )
                )
    days = range(goal.num_days)
    prices = {p.name: p.price for p in by_kind["restaurant"]}
    constraints += [
        Dearer(name="evening dearer", variable=f"{day}.{MEALS[1]}", than=f"{day}.{MEALS[0]}", cost=prices)
        for day in days
    ]
    cost = {p.name: p.price for p in by_kind["hotel"]}
    constraints += [
        Dearer(name="hotels get dearer", variable=f"{day}.hotel", than=f"{day - 1}.hotel", cost=cost)
        for day in range(1, goal.num_days)
    ]
    for columns in (("city",), ("hotel",), MEALS, ("afternoon_attraction",)):
        variables = tuple(f"{day}.{column}" for day in days for column in columns)
        constraints.append(AllDifferent(name="nothing twice", variables=variables))
    constraints += _tier_constraints(by_kind, goal.ruled_day)
    return Problem(options=options, constraints=tuple(constraints), cost=costs)


def _tier_constraints(by_kind: Mapping[str, list[Place]], day: int) -> list[Allow | AllowAny | SumBelow]:
    meals = tuple(f"{day}.{column}" for column in MEALS)
    found: list[Allow | AllowAny | SumBelow] = []
    for tier in TIERS:
        when = {
            f"{day}.hotel": frozenset(h.name for h in by_kind["hotel"] if tier.low <= h.price < tier.high)
        }
        rated = frozenset(r.name for r in by_kind["restaurant"] if r.rating >= tier.rating)
        if tier.all_rated:
            found += [Allow(name="both rated", variable=meal, options=rated, when=when) for meal in meals]
        else:
            found.append(AllowAny(name="one rated", variables=meals, options=rated, when=when))
        if tier.meals_below is not None:
            cost = {r.name: r.price for r in by_kind["restaurant"]}
            found.append(
                SumBelow(name="meals", variables=meals, cost=cost, bound=tier.meals_below, when=when)
            )
        if tier.ticket_below is not None:
            cheap = frozenset(a.name for a in by_kind["attraction"] if a.price < tier.ticket_below)
            found.append(
                Allow(name="ticket", variable=f"{day}.afternoon_attraction", options=cheap, when=when)
            )
    return found


def plan_days(draft: Draft, client: Client, care: Care) -> Plan:
    """Reads every place of every city, then solves the problem from what it read."""
    goal: DaysGoal = draft.goal
    cities = tuple(client.values("get_all_cities"))
    places: list[Place] = []
    for city in cities:
        for kind, word in PRICE_WORD.items():
            for rank, name in enumerate(client.values(f"get_all_{kind}s_by_city", city=city)):
                reply = client.call(f"get_infos_by_{kind}", info_keywords=f"{word}, rating", **{kind: name})
                facts = {str(row["keyword"]): float(row["info"]) for row in reply.rows}
                places.append(
                    Place(
                        name=name,
                        kind=kind,
                        city=city,
                        rank=rank,
                        price=int(facts[word]),
                        rating=facts["rating"],
                    )
                )
    best = care.choose(days_problem(tuple(places), cities, goal))
    rows = [
        {
            "time": DATES[day],
            "city": best[f"{day}.city"],
            **{column: best[f"{day}.{column}"] for column in COLUMNS},
        }
        for day in range(goal.num_days)
    ]
    return Plan(calls=tuple(client.calls), answer=json.dumps(rows))


def _prompt(goal: DaysGoal) -> str:
    days = "one day" if goal.num_days == 1 else f"{goal.num_days} days"
    tiers = " ".join(tier.phrase for tier in TIERS)
    return (
        f"Plan {days} from {HOME}, beginning on {DATES[0]}, each day in another city than {HOME}. No "
        "city, hotel, "
        "attraction or restaurant twice, everything of a day in that day's city, and the evening "
        "restaurant dearer than "
        f"the afternoon one{DEARER_HOTELS if goal.num_days > 1 else ''}. "
        f"For day {goal.ruled_day + 1}: {tiers} Spend as little as possible in all on hotels, "
        "restaurants and tickets. "
        f"Each object has the keys time, city, {', '.join(COLUMNS)}; time is the date as YYYY-MM-DD."
    )


def _guess_space(world: TripWorld, goal: DaysGoal) -> GuessSpace:
    slots = []
    for day in range(goal.num_days):
        slots.append(Slot(row=day, column="city", options=world.cities))
        for column in COLUMNS:
            names = tuple(place.name for place in world.places(KIND_OF[column]))
            slots.append(Slot(row=day, column=column, options=names))
    fixed = tuple((day, "time", DATES[day]) for day in range(goal.num_days))
    return GuessSpace(slots=tuple(slots), fixed=fixed, submit_tool="submit_result")


def _clauses(goal: DaysGoal, optimum: int) -> tuple[Clause, ...]:
    dates = " ".join(f"WHEN {day} THEN {quote(DATES[day])}" for day in range(goal.num_days))
    clauses = [
        Clause(
            name="time is the day's date",
            part="answer",
            sql=f'SELECT 1 FROM answer WHERE time <> CASE "row" {dates} END',
        ),
        Clause(
            name="a city with places",
            part="answer",
            sql=f"SELECT 1 FROM answer a WHERE a.city = {quote(HOME)} OR a.city NOT IN (SELECT city "
            "FROM initial.cities)",
        ),
    ]
    for column, kind in KIND_OF.items():
        clauses.append(
            Clause(
                name=f"{column} is a {kind} in the day's city",
                part="answer",
                sql=f"SELECT 1 FROM answer a LEFT JOIN initial.{kind}s p ON p.{kind} = a.{column} "
                "WHERE p.city IS NULL OR p.city <> a.city",
            )
        )
    for columns in (("city",), ("hotel",), MEALS, ("afternoon_attraction",)):
        every = " UNION ALL ".join(f"SELECT {column} AS name FROM answer" for column in columns)
        sql = f"SELECT 1 FROM ({every}) GROUP BY name HAVING count(*) > 1"
        clauses.append(Clause(name=f"no {columns[0]} twice", part="answer", sql=sql))
    clauses.append(
        Clause(
            name="the evening restaurant is the dearer one",
            part="answer",
            sql="SELECT 1 FROM answer a JOIN initial.restaurants r1 ON r1.restaurant = "
            "a.afternoon_restaurant "
            "JOIN initial.restaurants r2 ON r2.restaurant = a.evening_restaurant WHERE r2.price <= r1.price",
        )
    )
    if goal.num_days > 1:
        clauses.append(
            Clause(
                name="each hotel is dearer than the one before",
                part="answer",
                sql="SELECT 1 FROM answer a JOIN initial.hotels h ON h.hotel = a.hotel "
                'JOIN answer b ON b."row" = a."row" - 1 JOIN initial.hotels g ON g.hotel = b.hotel '
                "WHERE h.price <= g.price",
            )
        )
    clauses += [_tier_clause(tier, goal.ruled_day) for tier in TIERS]
    spent = (
        "SELECT sum(h.price + r1.price + r2.price + t.ticket) FROM answer a "
        "JOIN initial.hotels h ON h.hotel = a.hotel JOIN initial.restaurants r1 ON r1.restaurant = "
        "a.afternoon_restaurant "
        "JOIN initial.restaurants r2 ON r2.restaurant = a.evening_restaurant "
        "JOIN initial.attractions t ON t.attraction = a.afternoon_attraction"
    )
    clauses.append(
        Clause(
            name="the lowest total price",
            part="answer",
            sql=f"SELECT 1 WHERE coalesce(({spent}), 1e9) > {optimum}",
        )
    )
    return tuple(clauses)


def _tier_clause(tier: Tier, day: int) -> Clause:
    low_rated = f"(r1.rating < {tier.rating}) + (r2.rating < {tier.rating}) > {0 if tier.all_rated else 1}"
    broken = [low_rated]
    if tier.meals_below is not None:
        broken.append(f"r1.price + r2.price >= {tier.meals_below}")
    if tier.ticket_below is not None:
        broken.append(f"t.ticket >= {tier.ticket_below}")
    sql = (
        "SELECT 1 FROM answer a JOIN initial.hotels h ON h.hotel = a.hotel "
        "JOIN initial.restaurants r1 ON r1.restaurant = a.afternoon_restaurant "
        "JOIN initial.restaurants r2 ON r2.restaurant = a.evening_restaurant "
        "JOIN initial.attractions t ON t.attraction = a.afternoon_attraction "
        f'WHERE a."row" = {day} AND h.price >= {tier.low} AND h.price < {tier.high} AND '
        f"({' OR '.join(broken)})"
    )
    return Clause(
        name=f"the rule for a hotel of {tier.low} to {tier.high - 1}",
        part="answer",
        phrase=tier.phrase,
        sql=sql,
    )

"""Level 4 of the parcel depot: a locker for every parcel that waits for its recipients, at the lowest fee.

A locker suits a parcel by its size, its weight and whether it is fragile; the fee is paid for each day that
the parcel may lie. The planner reads the parcels and the lockers and solves the oracle's problem from what
it read.
"""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from envs.task import AnswerSpec, Clause, GuessSpace, Plan, Slot
from envs.tools import Tool
from synthesis.domains.parcels_world import HIGH_SHELF, LOW_SHELF, SIZES, Row, draw_depot
from synthesis.grammar import Care, Client, Draft, quote
from synthesis.solver import AllDifferent, Allow, Problem, solve
from synthesis.surface import offers, read_pages

NUM_STORED = 3
HEAVY = 10
MAX_DRAWS = 40
SYSTEM = (
    "You work in a parcel depot with the tools.\n"
    "Choose lockers for the parcels that you are told: answer with a JSON list of one object a parcel, in "
    "their order, with the key locker. Each parcel needs a free locker of its own, of its size or larger. "
    f"More than {HEAVY} kg lie on shelf {LOW_SHELF}; nothing fragile lies on shelf {HIGH_SHELF}."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Storing:
    """parcel_ids, and for how many days each may lie."""

    parcel_ids: tuple[str, ...]
    days: tuple[int, ...]


def draft_lockers(
    domain: str, level: int, seed: int, rng: random.Random, tools: tuple[Tool, ...]
) -> Draft | None:
    for _ in range(MAX_DRAWS):
        depot = draw_depot(rng)
        waiting = [row for row in depot.parcels if row["state"] == "waiting"]
        if len(waiting) < NUM_STORED:
            continue
        parcels = rng.sample(waiting, NUM_STORED)
        storing = Storing(
            parcel_ids=tuple(row["parcel_id"] for row in parcels),
            days=tuple(rng.sample(range(1, 8), NUM_STORED)),
        )
        free = [row for row in depot.lockers if row["state"] == "free"]
        problem = lockers_problem(parcels, free, storing)
        found = solve(problem, limit=2)
        if not (found.proved and found.complete and len(found.optima) == 1):
            continue
        left = [row for row in free if row["locker"] not in found.optima[0].values()]
        if any(suits(parcel, row) for parcel in parcels for row in left):  # a dearer choice beside the best
            break
    else:
        return None
    options = tuple(row["locker"] for row in free)
    return Draft(
        domain=domain,
        level=level,
        seed=seed,
        tables=depot.tables(),
        system=SYSTEM,
        prompt=_prompt(rng, storing),
        tools=tools,
        clauses=_clauses(storing),
        frame=(),
        answer=AnswerSpec(kind="rows", columns=("locker",), num_rows=NUM_STORED),
        guess=GuessSpace(
            slots=tuple(Slot(row=row, column="locker", options=options) for row in range(NUM_STORED))
        ),
        problem=problem,
        goal=storing,
        max_turns=40,
    )


def suits(parcel: Row, locker: Row) -> bool:
    if SIZES.index(parcel["size"]) > SIZES.index(locker["size"]):
        return False
    if parcel["weight"] > HEAVY and locker["shelf"] != LOW_SHELF:
        return False
    return parcel["fragile"] == "no" or locker["shelf"] != HIGH_SHELF


def lockers_problem(parcels: Sequence[Row], free: Sequence[Row], storing: Storing) -> Problem:
    """The choice as constraints; the rows are the world's, or what a planner has read of them."""
    names = tuple(f"{index}.locker" for index in range(len(parcels)))
    options = dict.fromkeys(names, tuple(row["locker"] for row in free))
    cost: dict[str, Mapping[str, int]] = {
        name: {row["locker"]: row["fee"] * days for row in free}
        for name, days in zip(names, storing.days, strict=True)
    }
    suiting = [
        Allow(name="suits", variable=name, options=frozenset(r["locker"] for r in free if suits(parcel, r)))
        for name, parcel in zip(names, parcels, strict=True)
    ]
    alone = AllDifferent(name="a locker of its own", variables=names)
    return Problem(options=options, constraints=(*suiting, alone), cost=cost)


def _prompt(rng: random.Random, storing: Storing) -> str:
    stays = ", ".join(
        f"{parcel_id} ({days} day{'s' * (days > 1)})"
        for parcel_id, days in zip(storing.parcel_ids, storing.days, strict=True)
    )
    texts = (
        "These parcels stay here: {}. Which lockers should they have, so that the fees over all days are "
        "lowest?",
        "Please choose lockers for {}; spend as little on fees over these days as you can.",
    )
    return rng.choice(texts).format(stays)


def _clauses(storing: Storing) -> tuple[Clause, ...]:
    size = "instr('{}', {})".format(" ".join(SIZES), "{}.size")
    stored = " UNION ALL ".join(
        f"SELECT {row}, {quote(parcel_id)}, {days}"
        for row, (parcel_id, days) in enumerate(zip(storing.parcel_ids, storing.days, strict=True))
    )
    fits = (
        f"WITH stored(stored_row, parcel_id, days) AS ({stored}), fits AS MATERIALIZED (SELECT stored_row, "
        "k.locker, k.fee * days AS price FROM stored "
        "JOIN initial.parcels p ON p.parcel_id = stored.parcel_id "
        f"JOIN initial.lockers k ON k.state = 'free' AND {size.format('k')} >= {size.format('p')} "
        f"AND (p.weight <= {HEAVY} OR k.shelf = {LOW_SHELF}) "
        f"AND (p.fragile = 'no' OR k.shelf <> {HIGH_SHELF}))"
    )
    mine = 'JOIN fits f ON f.stored_row = a."row" AND f.locker = a.locker'
    rows = range(len(storing.days))
    joins = " ".join(
        f"JOIN fits f{row} ON f{row}.stored_row = {row} AND f{row}.locker NOT IN "
        f"({', '.join(f'f{before}.locker' for before in range(row))})"
        for row in rows[1:]
    )
    prices = " + ".join(f"f{row}.price" for row in rows)
    best = f"SELECT min({prices}) FROM fits f0 {joins} WHERE f0.stored_row = 0"
    return (
        Clause(
            name="every parcel has a free locker that suits it",
            part="answer",
            sql=f"{fits} SELECT 1 FROM answer a LEFT {mine} WHERE f.locker IS NULL",
        ),
        Clause(
            name="no locker twice",
            part="answer",
            sql="SELECT 1 FROM answer GROUP BY locker HAVING count(*) > 1",
        ),
        Clause(
            name="the lowest fees",
            part="answer",
            sql=f"{fits} SELECT 1 WHERE (SELECT total(k.fee * s.days) FROM answer a JOIN stored s "
            f'ON s.stored_row = a."row" JOIN initial.lockers k ON k.locker = a.locker) > ({best})',
        ),
    )


def plan_lockers(draft: Draft, client: Client, care: Care) -> Plan:
    storing: Storing = draft.goal
    parcels = [client.call("get_parcel", parcel_id=each).rows[0] for each in storing.parcel_ids]
    if offers(draft.tools, "search_lockers"):
        free = list(client.call("search_lockers").rows)
    else:
        names = read_pages(client, "list_lockers")
        free = [{"locker": name, **client.call("get_locker", locker=name).rows[0]} for name in names]
    best = care.choose(lockers_problem(parcels, free, storing))
    rows = [{"locker": best[f"{row}.locker"]} for row in range(len(storing.days))]
    return Plan(calls=tuple(client.calls), answer=json.dumps(rows))

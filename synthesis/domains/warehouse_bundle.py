"""Level 5 of the warehouse, and the levels that are raised from one another: whom to buy items from, at the
lowest total price.

Three dials say how hard that is: how many items are bought, how many suppliers offer each, and how many rules
count, of being in time, of buying each from another supplier, and of the fees. The planner solves the problem
from what it read, the oracle from the world; both must agree, and the optimum must be the only one, or the
draft is refused.
"""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from envs.task import AnswerSpec, Clause, GuessSpace, Plan, Slot
from envs.tools import Tool
from synthesis.domains.warehouse_world import Offer, draw_world, read_records
from synthesis.grammar import Care, Client, Draft, quote
from synthesis.raising import Ladder, check_range
from synthesis.solver import AllDifferent, Allow, Problem, SumBelow, solve

MAX_DRAWS = 40
"""Worlds drawn from one seed before it is given up."""
IN_TIME, EACH_FROM_ANOTHER, FEES = 1, 2, 3
"""From how many rules on each counts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Dials:
    """How hard: items bought, suppliers that offer each, rules beside the lowest price."""

    items: int = 4
    offers: int = 4
    rules: int = 3

    def __post_init__(self) -> None:
        check_range(self, items=(2, 5), offers=(2, 6), rules=(0, 3))


LADDER = Ladder(
    rungs={
        6: Dials(items=2, rules=0),
        7: Dials(items=2, rules=1),
        8: Dials(items=3, rules=1),
        9: Dials(items=3, rules=2),
        10: Dials(items=4, rules=3),
    },
    needs=lambda dials: {"handling"} if dials.rules >= FEES else set(),
)
"""Levels that are each the one before, in the same world, made harder: by a rule, by an item, by both."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Purchase:
    """items: (code, pieces). All must come within `max_days`, if `rules` says so. The fees, multiples of 5,
    stay below `max_fees`, which is none.
    """

    items: tuple[tuple[str, int], ...]
    max_days: int
    max_fees: int
    rules: int = 3


def system_text(rules: int) -> str:
    alone = ", and no two items from the same one" * (rules >= EACH_FROM_ANOTHER)
    fees = "\nEvery supplier that you buy from charges its handling fee once; the fees do not count as price."
    return (
        "You buy for a warehouse with the tools.\n"
        f"Buy all pieces of an item from one supplier{alone}.{fees * (rules >= FEES)}"
    )


def draft_bundle(
    domain: str, level: int, seed: int, rng: random.Random, tools: tuple[Tool, ...]
) -> Draft | None:
    """Level 5, or one of those that are raised: these have one world a seed, so that they share it."""
    if level in LADDER.rungs:
        return draft_at(LADDER.rungs[level], domain, level, seed, tools)
    for _ in range(MAX_DRAWS):
        if (draft := _drawn(Dials(), domain, level, seed, rng, tools)) is not None:
            return draft
    return None


def draft_at(dials: Dials, domain: str, level: int, seed: int, tools: tuple[Tool, ...]) -> Draft | None:
    """The seed's draft at these settings, or None: its world is the same at any setting of items and rules,
    up to four items.
    """
    return _drawn(dials, domain, level, seed, random.Random(seed), LADDER.tools(tools, dials))


def _drawn(
    dials: Dials, domain: str, level: int, seed: int, rng: random.Random, tools: tuple[Tool, ...]
) -> Draft | None:
    world = draw_world(rng, 5, num_items=max(4, dials.items), offers_each=dials.offers)
    skus = list(dict.fromkeys(offer.sku for offer in world.offers))
    fees = {name: handling for name, (_, handling) in world.suppliers.items()}
    items = tuple((sku, rng.randrange(5, 50, 5)) for sku in skus)[: dials.items]
    wanted = Purchase(
        items=items,
        max_days=rng.randrange(6, 10),
        max_fees=len(items) * sum(fees.values()) // 6 // 10 * 10 + rng.choice((-8, 2, 12, 22)),
        rules=dials.rules,
    )
    problem = bundle_problem(wanted, world.offers, fees)
    solutions = solve(problem, limit=2)
    if not (solutions.proved and solutions.complete and len(solutions.optima) == 1):
        return None
    if not _has_dearer(wanted, world.offers, fees, tuple(solutions.optima[0].values())):
        return None
    return Draft(
        domain=domain,
        level=level,
        seed=seed,
        tables=world.tables(),
        system=system_text(wanted.rules),
        prompt=_prompt(rng, wanted),
        tools=tools,
        clauses=_clauses(wanted, solutions.objective),
        frame=(),
        answer=AnswerSpec(kind="rows", columns=("item", "supplier"), num_rows=len(wanted.items)),
        guess=GuessSpace(
            slots=tuple(
                Slot(row=row, column="supplier", options=problem.options[f"{row}.supplier"])
                for row in range(len(wanted.items))
            ),
            fixed=tuple((row, "item", sku) for row, (sku, _) in enumerate(wanted.items)),
        ),
        problem=problem,
        goal=wanted,
        max_turns=60,
    )


def _has_dearer(
    wanted: Purchase, offered: Sequence[Offer], fees: Mapping[str, int], best: Sequence[str]
) -> bool:
    """Whether one item could come from another supplier by every rule but the price, which then tells."""
    total = sum(fees[supplier] for supplier in best)
    return any(
        offer.sku == sku
        and offer.supplier != supplier
        and (wanted.rules < IN_TIME or offer.days <= wanted.max_days)
        and (wanted.rules < EACH_FROM_ANOTHER or offer.supplier not in best)
        and (wanted.rules < FEES or total - fees[supplier] + fees[offer.supplier] < wanted.max_fees)
        for (sku, _), supplier in zip(wanted.items, best, strict=True)
        for offer in offered
    )


def bundle_problem(wanted: Purchase, offered: Sequence[Offer], fees: Mapping[str, int]) -> Problem:
    """`offered` and `fees` are the world's, or what a planner has read of them."""
    names = tuple(f"{row}.supplier" for row in range(len(wanted.items)))
    by_item = [[offer for offer in offered if offer.sku == sku] for sku, _ in wanted.items]
    in_time = (
        Allow(
            name="in time",
            variable=name,
            options=frozenset(offer.supplier for offer in found if offer.days <= wanted.max_days),
        )
        for name, found in zip(names, by_item, strict=True)
    )
    alone = AllDifferent(name="each from another", variables=names)
    paid = SumBelow(name="the fees", variables=names, cost=fees, bound=wanted.max_fees)
    return Problem(
        options={
            n: tuple(offer.supplier for offer in found) for n, found in zip(names, by_item, strict=True)
        },
        constraints=(
            *(in_time if wanted.rules >= IN_TIME else ()),
            *((alone,) if wanted.rules >= EACH_FROM_ANOTHER else ()),
            *((paid,) if wanted.rules >= FEES else ()),
        ),
        cost={
            name: {offer.supplier: offer.price * pieces for offer in found}
            for name, found, (_, pieces) in zip(names, by_item, wanted.items, strict=True)
        },
    )


def _prompt(rng: random.Random, wanted: Purchase) -> str:
    items = ", ".join(f"{pieces} of {sku}" for sku, pieces in wanted.items)
    opening = rng.choice(("We need {}.", "Please find suppliers for {}.")).format(items)
    conditions = [
        f"everything must be here within {wanted.max_days} days" * (wanted.rules >= IN_TIME),
        f"the handling fees must stay below {wanted.max_fees} in all" * (wanted.rules >= FEES),
        "the total price is to be as low as possible",
    ]
    *rules, price = [condition for condition in conditions if condition]
    said = f"{', '.join(rules)}, and {price}" if rules else price
    return (
        f"{opening} {said[0].upper()}{said[1:]}. Answer with a JSON list of one object for each item, in "
        "this order, with the keys item (the code) and supplier (the name)."
    )


def plan_bundle(draft: Draft, client: Client, care: Care) -> Plan:
    """Reads all offers and fees and solves. Slips: minds no days or no price of an item, no fees, or not that
    each is from another.
    """
    wanted: Purchase = draft.goal
    offered = [
        Offer(sku=sku, **row)
        for sku, _ in wanted.items
        for row in read_records(draft.tools, client, "offer", sku=sku)
    ]
    suppliers = sorted({offer.supplier for offer in offered}) if wanted.rules >= FEES else []
    fees = {s: client.call("get_supplier", supplier=s).rows[0]["handling"] for s in suppliers}
    if wanted.rules >= IN_TIME:
        unminded = {sku for sku, _ in wanted.items if care.slips()}
        offered = [replace(offer, days=0) if offer.sku in unminded else offer for offer in offered]
    if wanted.rules >= FEES and care.slips():
        wanted = replace(wanted, max_fees=1_000_000)
    problem = bundle_problem(wanted, offered, fees)
    if wanted.rules >= EACH_FROM_ANOTHER and care.slips():
        others = [each for each in problem.constraints if not isinstance(each, AllDifferent)]
        problem = replace(problem, constraints=tuple(others))
    cost = {name: costs for name, costs in problem.cost.items() if not care.slips()}
    best = care.choose(replace(problem, cost=cost))
    rows = [{"item": sku, "supplier": best[f"{row}.supplier"]} for row, (sku, _) in enumerate(wanted.items)]
    return Plan(calls=tuple(client.calls), answer=json.dumps(rows))


def _clauses(wanted: Purchase, optimum: int) -> tuple[Clause, ...]:
    items = " ".join(f"WHEN {row} THEN {quote(sku)}" for row, (sku, _) in enumerate(wanted.items))
    pieces = " ".join(f"WHEN {row} THEN {count}" for row, (_, count) in enumerate(wanted.items))
    joined = (
        "answer a LEFT JOIN initial.offers o ON o.sku = a.item AND o.supplier = a.supplier "
        "LEFT JOIN initial.suppliers s ON s.supplier = a.supplier"
    )
    total = f'sum(o.price * CASE a."row" {pieces} END)'
    clauses = [
        Clause(
            name="the items in the order of the request",
            part="answer",
            sql=f'SELECT 1 FROM answer WHERE item <> CASE "row" {items} END',
        ),
        Clause(
            name="each offered in time" if wanted.rules >= IN_TIME else "each offered",
            part="answer",
            sql=f"SELECT 1 FROM {joined} WHERE coalesce(o.days, 1000) > {wanted.max_days}"
            if wanted.rules >= IN_TIME
            else f"SELECT 1 FROM {joined} WHERE o.days IS NULL",
        ),
    ]
    if wanted.rules >= EACH_FROM_ANOTHER:
        sql = "SELECT 1 FROM answer GROUP BY supplier HAVING count(*) > 1"
        clauses.append(Clause(name="no supplier twice", part="answer", sql=sql))
    if wanted.rules >= FEES:
        sql = f"SELECT 1 WHERE (SELECT sum(s.handling) FROM {joined}) >= {wanted.max_fees}"
        clauses.append(Clause(name="the fees stay below the sum", part="answer", sql=sql))
    sql = f"SELECT 1 WHERE coalesce((SELECT {total} FROM {joined}), 1e9) > {optimum}"
    return (*clauses, Clause(name="the lowest total price", part="answer", sql=sql))

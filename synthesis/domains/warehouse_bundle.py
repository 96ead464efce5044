"""Level 5 of the warehouse: whom to buy four items from, at the lowest total price.

The planner solves the problem from what it read, the oracle from the world; both must agree, and the optimum
must be the only one, or the draft is refused.
"""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from envs.task import AnswerSpec, Clause, GuessSpace, Plan, Slot
from envs.tools import Tool
from synthesis.domains.warehouse_world import Offer, draw_world, read_records
from synthesis.grammar import Care, Client, Draft, quote
from synthesis.solver import AllDifferent, Allow, Problem, SumBelow, solve

MAX_DRAWS = 40
"""Worlds drawn from one seed before it is given up."""
SYSTEM = (
    "You buy for a warehouse with the tools.\n"
    "Buy all pieces of an item from one supplier, and no two items from the same one.\n"
    "Every supplier that you buy from charges its handling fee once; the fees do not count as price."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Purchase:
    """items: (code, pieces). All must come within `max_days`. The fees, multiples of 5, stay below
    `max_fees`, which is none.
    """

    items: tuple[tuple[str, int], ...]
    max_days: int
    max_fees: int


def draft_bundle(
    domain: str, level: int, seed: int, rng: random.Random, tools: tuple[Tool, ...]
) -> Draft | None:
    for _ in range(MAX_DRAWS):
        world = draw_world(rng, level)
        skus = list(dict.fromkeys(offer.sku for offer in world.offers))
        fees = {name: handling for name, (_, handling) in world.suppliers.items()}
        wanted = Purchase(
            items=tuple((sku, rng.randrange(5, 50, 5)) for sku in skus),
            max_days=rng.randrange(6, 10),
            max_fees=4 * sum(fees.values()) // 6 // 10 * 10 + rng.choice((-8, 2, 12, 22)),
        )
        problem = bundle_problem(wanted, world.offers, fees)
        solutions = solve(problem, limit=2)
        if not (solutions.proved and solutions.complete and len(solutions.optima) == 1):
            continue
        if not _has_dearer(wanted, world.offers, fees, tuple(solutions.optima[0].values())):
            continue
        return Draft(
            domain=domain,
            level=level,
            seed=seed,
            tables=world.tables(),
            system=SYSTEM,
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
    return None


def _has_dearer(
    wanted: Purchase, offered: Sequence[Offer], fees: Mapping[str, int], best: Sequence[str]
) -> bool:
    """Whether one item could come from another supplier by every rule but the price, which then tells."""
    total = sum(fees[supplier] for supplier in best)
    return any(
        offer.sku == sku
        and offer.days <= wanted.max_days
        and offer.supplier not in best
        and total - fees[supplier] + fees[offer.supplier] < wanted.max_fees
        for (sku, _), supplier in zip(wanted.items, best, strict=True)
        for offer in offered
    )


def bundle_problem(wanted: Purchase, offered: Sequence[Offer], fees: Mapping[str, int]) -> Problem:
    """`offered` and `fees` are the world's, or what a planner has read of them."""
    names = tuple(f"{row}.supplier" for row in range(len(wanted.items)))
    by_item = [[offer for offer in offered if offer.sku == sku] for sku, _ in wanted.items]
    in_time = [
        Allow(
            name="in time",
            variable=name,
            options=frozenset(offer.supplier for offer in found if offer.days <= wanted.max_days),
        )
        for name, found in zip(names, by_item, strict=True)
    ]
    return Problem(
        options={
            n: tuple(offer.supplier for offer in found) for n, found in zip(names, by_item, strict=True)
        },
        constraints=(
            *in_time,
            AllDifferent(name="each from another", variables=names),
            SumBelow(name="the fees", variables=names, cost=fees, bound=wanted.max_fees),
        ),
        cost={
            name: {offer.supplier: offer.price * pieces for offer in found}
            for name, found, (_, pieces) in zip(names, by_item, wanted.items, strict=True)
        },
    )


def _prompt(rng: random.Random, wanted: Purchase) -> str:
    items = ", ".join(f"{pieces} of {sku}" for sku, pieces in wanted.items)
    opening = rng.choice(("We need {}.", "Please find suppliers for {}.")).format(items)
    return (
        f"{opening} Everything must be here within {wanted.max_days} days, the handling fees must stay below "
        f"{wanted.max_fees} in all, and the total price is to be as low as possible. Answer with a JSON list "
        "of "
        "one object for each item, in this order, with the keys item (the code) and supplier (the name)."
    )


def plan_bundle(draft: Draft, client: Client, care: Care) -> Plan:
    """Reads all offers and fees and solves. Slips: minds no days, no fees, or not the price."""
    wanted: Purchase = draft.goal
    offered = [
        Offer(sku=sku, **row)
        for sku, _ in wanted.items
        for row in read_records(draft.tools, client, "offer", sku=sku)
    ]
    suppliers = sorted({offer.supplier for offer in offered})
    fees = {s: client.call("get_supplier", supplier=s).rows[0]["handling"] for s in suppliers}
    if care.slips():
        wanted = replace(wanted, max_days=1000)
    if care.slips():
        wanted = replace(wanted, max_fees=1_000_000)
    problem = bundle_problem(wanted, offered, fees)
    if care.slips():
        problem = replace(problem, cost={})
    best = solve(problem, limit=1).optima[0]
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
    return (
        Clause(
            name="the items in the order of the request",
            part="answer",
            sql=f'SELECT 1 FROM answer WHERE item <> CASE "row" {items} END',
        ),
        Clause(
            name="each offered in time",
            part="answer",
            sql=f"SELECT 1 FROM {joined} WHERE coalesce(o.days, 1000) > {wanted.max_days}",
        ),
        Clause(
            name="no supplier twice",
            part="answer",
            sql="SELECT 1 FROM answer GROUP BY supplier HAVING count(*) > 1",
        ),
        Clause(
            name="the fees stay below the sum",
            part="answer",
            sql=f"SELECT 1 WHERE (SELECT sum(s.handling) FROM {joined}) >= {wanted.max_fees}",
        ),
        Clause(
            name="the lowest total price",
            part="answer",
            sql=f"SELECT 1 WHERE coalesce((SELECT {total} FROM {joined}), 1e9) > {optimum}",
        ),
    )

"""A warehouse and its suppliers: what was ordered, what came, what is billed, and where to buy.

Levels: 1 find the one line of an invoice that does not agree with the order; 2 find it by the delivery
notes too, which write the items carelessly; 3 settle an invoice line by line; 4 the same with deliveries in
parts and a limit to what the desk may approve; 5 the cheapest suppliers for four items, each by another, in
time and within a sum of fees; 6 to 10 the same raised step by step in one world, from two items by price
alone. 1 to 3 may be shown to a cold start.

Goal kinds: find the inconsistency, reconciliation, cascade of updates under a policy, cheapest bundle.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

from envs.task import AnswerSpec, Call, Clause, FrameRule, GuessSpace, Plan, Slot
from envs.tools import Tool
from synthesis.clauses import right_word
from synthesis.domains.warehouse_bundle import LADDER, draft_bundle, plan_bundle
from synthesis.domains.warehouse_tools import REASONS, TOOLSETS
from synthesis.domains.warehouse_world import (
    Bill,
    Paper,
    WarehouseWorld,
    decide,
    draw_world,
    read_records,
    received_pieces,
    right_decisions,
)
from synthesis.facts import Facts, twin_drafts
from synthesis.grammar import Care, Client, Draft, quote
from synthesis.solver import Allow, Problem

VERSION = 1
MAX_DRAWS = 200
"""Worlds drawn from one seed before it is given up."""
GOOD = ("approved", "escalated")


@dataclass(frozen=True, kw_only=True, slots=True)
class Audit:
    """What is asked for, as the prompt says it. settles: decide every line, else name the one at fault.
    max_amount: what the desk may approve.
    """

    invoice: str
    by_notes: bool
    settles: bool
    max_amount: int


@dataclass(frozen=True, slots=True)
class WarehouseDomain:
    name: str = "warehouse"
    version: int = VERSION
    levels: tuple[int, ...] = (1, 2, 3, 4, 5, *LADDER.rungs)
    shown_levels: tuple[int, ...] = (1, 2, 3)
    twin_levels: tuple[int, ...] = (3, 4)
    tools: tuple[Tool, ...] = TOOLSETS[0]
    toolsets: tuple[tuple[Tool, ...], ...] = tuple(dict.fromkeys((*TOOLSETS, *LADDER.toolsets(TOOLSETS))))

    def raised_from(self, level: int) -> int | None:
        return LADDER.raised_from(level)

    def draft(self, level: int, seed: int) -> Draft | None:
        if level not in self.levels:
            raise ValueError(f"domain warehouse has the levels {self.levels}, not {level}")
        rng = random.Random(seed)
        tools = rng.choice(TOOLSETS)
        if level >= 5:
            return draft_bundle(self.name, level, seed, rng, tools)
        world = _drawn(rng, level)
        return None if world is None else self.make(level, seed, rng, tools, world)

    def twins(self, level: int, seed: int) -> Iterator[Draft]:
        """A line bills some pieces more or less, or at another price."""
        rng = random.Random(seed)
        tools = rng.choice(TOOLSETS)
        if (world := _drawn(rng, level)) is not None:
            first, *others = world.papers

            def make(rng: random.Random, paper: Paper) -> Draft:
                papers = (paper, *others)
                return self.make(level, seed, rng, tools, replace(world, papers=papers))

            facts: Facts = {
                "bills.billed": lambda bill: (max(1, bill.billed - 5), bill.billed + 5),
                "bills.unit_price": lambda bill: (max(1, bill.unit_price - 3), bill.unit_price + 3),
            }
            yield from twin_drafts(make, rng, first, facts)

    def make(
        self, level: int, seed: int, rng: random.Random, tools: tuple[Tool, ...], world: WarehouseWorld
    ) -> Draft:
        paper = world.papers[0]
        audit = Audit(
            invoice=paper.invoice, by_notes=level >= 2, settles=level >= 3, max_amount=world.max_amount
        )
        right = right_decisions(world, paper, by_notes=audit.by_notes)
        settled = audit.settles
        plans = _plans(level, right) if settled else {}
        return Draft(
            domain=self.name,
            level=level,
            seed=seed,
            tables=world.tables(),
            system=policy_text(level, world.max_amount),
            prompt=_prompt(rng, audit),
            tools=tools,
            clauses=_settle_clauses(audit, paper) if settled else _fault_clauses(audit, paper),
            frame=tuple(FrameRule(table="bills", key=bill, columns=("decision",)) for bill in right)
            if settled
            else (),
            answer=AnswerSpec(kind="choice", choices=("paid", "held"))
            if settled
            else AnswerSpec(kind="rows", columns=("bill", "fault")),
            guess=GuessSpace(plans=tuple(plans.values()))
            if settled
            else GuessSpace(slots=_cells(world, level)),
            problem=_settle_problem(plans, right) if settled else _fault_problem(world, level, right),
            goal=audit,
            max_turns=40,
        )

    def plan(self, draft: Draft, client: Client, care: Care) -> Plan:
        return plan_bundle(draft, client, care) if draft.level >= 5 else _plan_audit(draft, client, care)


def _drawn(rng: random.Random, level: int) -> WarehouseWorld | None:
    """The world of a level below the bundle, whose first invoice is the one in question."""
    wanted = rng.choice(_faults(level))
    all_good = rng.random() < 1 / 4
    for _ in range(MAX_DRAWS):
        world = draw_world(rng, level)
        right = right_decisions(world, world.papers[0], by_notes=level >= 2)
        bad = [decision for decision in right.values() if decision not in GOOD]
        if bad == [wanted] if level <= 2 else (not bad) == all_good:
            return world
    return None


def _faults(level: int) -> tuple[str, ...]:
    return ("quantity", "price") if level == 1 else REASONS


def policy_text(level: int, max_amount: int) -> str:
    pieces = "than was ordered" if level == 1 else "than came by all delivery notes together"
    lines = ["You check the invoices of a warehouse's suppliers with the tools."]
    if level >= 2:
        lines.append("Delivery notes write the items carelessly: case, blanks and hyphens do not count.")
        lines.append("The fault of a line is unordered if its item is not in the order;")
    else:
        lines.append("The fault of a line is")
    lines[-1] += (
        f" quantity if it bills more pieces {pieces}; price if it bills a higher price than the order's."
    )
    lines.append("To bill fewer pieces or a lower price is no fault. Take the first fault that a line has.")
    if level <= 2:
        lines.append("Answer with a JSON list of one object with the keys bill (the line's id) and fault.")
        return "\n".join(lines)
    over = (
        f", unless its amount (pieces times price) is above {max_amount}: then escalate it"
        if level == 4
        else ""
    )
    lines.append(f"Dispute every line that has a fault, with that reason. Approve every other line{over}.")
    lines.append("If every line was approved, answer paid, else answer held.")
    return "\n".join(lines)


def _prompt(rng: random.Random, audit: Audit) -> str:
    if audit.settles:
        wish = rng.choice(("Please settle invoice {}.", "Invoice {} is due; go through it line by line."))
        return wish.format(audit.invoice)
    ask = rng.choice(
        (
            "One line of invoice {} is wrong. Which, and how?",
            "Invoice {} does not add up: find the line at fault.",
        )
    )
    return ask.format(audit.invoice)


def _cells(world: WarehouseWorld, level: int) -> tuple[Slot, ...]:
    bills = tuple(sorted(bill.bill for paper in world.papers for bill in paper.bills))
    return (Slot(row=0, column="bill", options=bills), Slot(row=0, column="fault", options=_faults(level)))


def _fault_problem(world: WarehouseWorld, level: int, right: dict[str, str]) -> Problem:
    """Which line, and for each line the fault that it has."""
    bills, faults = _cells(world, level)
    wrong = {bill: decision for bill, decision in right.items() if decision not in GOOD}
    constraints = [Allow(name="a line at fault", variable="bill", options=frozenset(wrong))]
    constraints += [
        Allow(
            name="its fault", variable="fault", options=frozenset({fault}), when={"bill": frozenset({bill})}
        )
        for bill, fault in wrong.items()
    ]
    return Problem(options={"bill": bills.options, "fault": faults.options}, constraints=tuple(constraints))


def _call(bill: str, decision: str) -> Call:
    if decision in GOOD:
        tool = "approve_bill" if decision == "approved" else "escalate_bill"
        return Call(tool=tool, arguments={"bill": bill})
    return Call(tool="dispute_bill", arguments={"bill": bill, "reason": decision})


def _plans(level: int, right: dict[str, str]) -> dict[str, Plan]:
    """Every decision about every line of the invoice, without a look at it."""
    choices = (
        ("approved", "quantity", "price") if level == 3 else ("approved", "escalated", "quantity", "price")
    )
    plans = {}
    for decisions in product(
        *([*choices, "unordered"] if d == "unordered" else choices for d in right.values())
    ):
        calls = tuple(_call(bill, decision) for bill, decision in zip(right, decisions, strict=True))
        answer = "paid" if set(decisions) == {"approved"} else "held"
        plans[" ".join(decisions)] = Plan(calls=calls, answer=answer)
    return plans


def _settle_problem(plans: dict[str, Plan], right: dict[str, str]) -> Problem:
    constraints = tuple(
        Allow(
            name=f"the decision about {bill}",
            variable="plan",
            options=frozenset(name for name in plans if name.split()[index] == decision),
        )
        for index, (bill, decision) in enumerate(right.items())
    )
    return Problem(options={"plan": tuple(plans)}, constraints=constraints)


def _decision_sql(audit: Audit, paper: Paper) -> str:
    """The decision about the line `b` of `initial.bills`, in SQL."""
    here = f"po = {quote(paper.po)}"
    ordered = f"FROM initial.lines l WHERE l.{here} AND l.sku = b.sku"
    pieces = f"SELECT l.ordered {ordered}"
    if audit.by_notes:
        code = "upper(replace(replace(r.code, '-', ''), ' ', ''))"
        pieces = f"SELECT sum(r.received) FROM initial.receipts r WHERE r.{here} AND {code} = b.sku"
    return (
        f"CASE WHEN NOT EXISTS (SELECT 1 {ordered}) THEN 'unordered' "
        f"WHEN b.billed > coalesce(({pieces}), 0) THEN 'quantity' "
        f"WHEN b.unit_price > (SELECT l.price {ordered}) THEN 'price' "
        f"WHEN b.billed * b.unit_price > {audit.max_amount} THEN 'escalated' ELSE 'approved' END"
    )


def _fault_clauses(audit: Audit, paper: Paper) -> tuple[Clause, ...]:
    decision = _decision_sql(audit, paper)
    joined = "FROM answer a LEFT JOIN initial.bills b ON b.bill = a.bill"
    return (
        Clause(
            name="a line of the invoice",
            part="answer",
            sql=f"SELECT 1 {joined} WHERE b.invoice IS NOT {quote(audit.invoice)}",
        ),
        Clause(
            name="the line has the fault",
            part="answer",
            sql=f"SELECT 1 {joined} WHERE a.fault <> ({decision}) OR ({decision}) = 'approved'",
        ),
    )


def _settle_clauses(audit: Audit, paper: Paper) -> tuple[Clause, ...]:
    decision = _decision_sql(audit, paper)
    ours = f"b.invoice = {quote(audit.invoice)}"
    other = f"SELECT 1 FROM initial.bills b WHERE {ours} AND ({decision}) <> 'approved'"
    return (
        right_word(f"SELECT CASE WHEN EXISTS ({other}) THEN 'held' ELSE 'paid' END"),
        Clause(
            name="every line is decided by the rules",
            part="goal",
            sql=f"SELECT 1 FROM bills n JOIN initial.bills b ON b.bill = n.bill WHERE {ours} "
            f"AND n.decision <> ({decision})",
        ),
    )


def _plan_audit(draft: Draft, client: Client, care: Care) -> Plan:
    """Reads all papers of the invoice. Slips: takes codes as written, decides a line by chance."""
    audit: Audit = draft.goal
    po = client.call("get_invoice", invoice=audit.invoice).rows[0]["po"]
    lines = read_records(draft.tools, client, "line", po=po)
    ordered = {row["sku"]: row["price"] for row in lines}
    pieces = {row["sku"]: row["ordered"] for row in lines}
    if audit.by_notes:
        notes = [
            (row["code"], row["received"]) for row in read_records(draft.tools, client, "receipt", po=po)
        ]
        pieces = dict(notes) if care.slips() else received_pieces(notes)
    decisions: dict[str, str] = {}
    for row in read_records(draft.tools, client, "bill", invoice=audit.invoice):
        bill = Bill(invoice=audit.invoice, **row)
        decisions[bill.bill] = decide(bill, ordered, pieces, audit.max_amount)
        if care.slips():
            decisions[bill.bill] = care.rng.choice(("approved", *_faults(draft.level)))
    if not audit.settles:
        bad = [(bill, decision) for bill, decision in decisions.items() if decision not in GOOD]
        bill, fault = bad[0] if bad else (next(iter(decisions)), "price")
        return Plan(calls=tuple(client.calls), answer=json.dumps([{"bill": bill, "fault": fault}]))
    for bill, decision in decisions.items():
        call = _call(bill, decision)
        client.call(call.tool, **call.arguments)
    is_paid = set(decisions.values()) == {"approved"}
    return Plan(calls=tuple(client.calls), answer="paid" if is_paid else "held")


DOMAIN = WarehouseDomain()

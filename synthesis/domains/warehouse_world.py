"""The world of the warehouse domain: what was ordered, what came, what is billed, what suppliers offer."""

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from envs.tools import Tool
from envs.world import Table
from synthesis.grammar import Client
from synthesis.surface import offers, read_pages

SUPPLIERS = ("Arboga", "Bexley", "Cordero", "Dalton", "Esbjerg", "Fulmar", "Gossamer")
_TOWNS = ("Aalborg", "Brno", "Cardiff", "Dijon", "Evora", "Faro")
NO_LIMIT = 1_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Bill:
    """A line of an invoice: pieces billed and the price of one."""

    bill: str
    invoice: str
    sku: str
    billed: int
    unit_price: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Offer:
    offer: str
    supplier: str
    sku: str
    price: int
    days: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Paper:
    """One invoice with what it belongs to: the order's lines (id, item, pieces, price) and the delivery notes
    (id, item's code as somebody wrote it, pieces).
    """

    invoice: str
    po: str
    supplier: str
    bills: tuple[Bill, ...]
    lines: tuple[tuple[str, str, int, int], ...]
    receipts: tuple[tuple[str, str, int], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class WarehouseWorld:
    """suppliers: name to (town, handling fee). max_amount: what the desk may approve."""

    papers: tuple[Paper, ...]
    suppliers: dict[str, tuple[str, int]]
    offers: tuple[Offer, ...]
    max_amount: int

    def tables(self) -> tuple[Table, ...]:
        bills = [
            (b.bill, b.invoice, b.sku, b.billed, b.unit_price, "open") for p in self.papers for b in p.bills
        ]
        offered = [(o.offer, o.supplier, o.sku, o.price, o.days) for o in self.offers]
        return (
            _table("invoices", "invoice supplier po", ((p.invoice, p.supplier, p.po) for p in self.papers)),
            _table("bills", "bill invoice sku billed: unit_price: decision", bills),
            _table(
                "lines", "line po sku ordered: price:",
                ((line, p.po, *rest) for p in self.papers for line, *rest in p.lines),
            ),
            _table(
                "receipts", "receipt po code received:",
                ((receipt, p.po, *rest) for p in self.papers for receipt, *rest in p.receipts),
            ),
            _table("suppliers", "supplier town handling:", ((k, *row) for k, row in self.suppliers.items())),
            _table("offers", "offer supplier sku price: days:", offered),
            _table("desk", "desk max_amount:", [("accounts", self.max_amount)]),
        )  # fmt: skip


def _table(name: str, columns: str, rows: Iterable[Sequence[Any]]) -> Table:
    """columns: their names, those of integers with a colon."""
    kinds = ((c.removesuffix(":"), "INTEGER" if c.endswith(":") else "TEXT") for c in columns.split())
    return Table(name=name, columns=tuple(kinds), rows=sorted(rows, key=lambda row: row[0]))


def clean_code(code: str) -> str:
    """The item that a delivery note means: case, blanks and hyphens do not count."""
    return code.upper().replace("-", "").replace(" ", "")


def received_pieces(receipts: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Pieces by item, of notes as (code, pieces): an item may have come in parts."""
    found: dict[str, int] = {}
    for code, pieces in receipts:
        found[clean_code(code)] = found.get(clean_code(code), 0) + pieces
    return found


def decide(
    bill: Bill, ordered: Mapping[str, int], received: Mapping[str, int], max_amount: int = NO_LIMIT
) -> str:
    """What the rules make of a line. ordered: price by item. received: pieces by item."""
    if bill.sku not in ordered:
        return "unordered"
    if bill.billed > received.get(bill.sku, 0):
        return "quantity"
    if bill.unit_price > ordered[bill.sku]:
        return "price"
    return "escalated" if bill.billed * bill.unit_price > max_amount else "approved"


def right_decisions(world: WarehouseWorld, paper: Paper, *, by_notes: bool) -> dict[str, str]:
    """By line. by_notes: what came is what the notes say, else what was ordered."""
    pieces = {sku: count for _, sku, count, _ in paper.lines}
    if by_notes:
        pieces = received_pieces((code, count) for _, code, count in paper.receipts)
    prices = {sku: price for _, sku, _, price in paper.lines}
    return {bill.bill: decide(bill, prices, pieces, world.max_amount) for bill in paper.bills}


def draw_world(rng: random.Random, level: int, *, num_items: int = 4, offers_each: int = 4) -> WarehouseWorld:
    """Two invoices with their papers, and offers of `num_items` items, from six suppliers at level 5."""
    suppliers = {
        name: (rng.choice(_TOWNS), rng.randrange(10, 60, 5))
        for name in rng.sample(SUPPLIERS, 6 if level == 5 else 2)
    }
    size = {1: rng.randrange(4, 6), 2: rng.randrange(4, 6)}.get(level, 3)
    numbers = iter(rng.sample(range(100, 1000), 80))
    papers = tuple(
        _draw_paper(rng, numbers, supplier, count, dirty=level >= 2, split=level >= 4)
        for supplier, count in zip(list(suppliers)[:2], (size, 3), strict=True)
    )
    selling = min(offers_each, len(suppliers))
    offered = _draw_offers(rng, numbers, list(suppliers), num_items, selling)
    limit = rng.choice((400, 600, 800)) if level == 4 else NO_LIMIT
    return WarehouseWorld(papers=papers, suppliers=suppliers, offers=offered, max_amount=limit)


def _draw_skus(rng: random.Random, count: int) -> list[str]:
    letters = "ABDEFGHKLMNPRSTUVWXZ"
    return [f"{rng.choice(letters)}{rng.choice(letters)}{n}" for n in rng.sample(range(10, 100), count)]


def _draw_paper(
    rng: random.Random, numbers: Iterator[int], supplier: str, size: int, *, dirty: bool, split: bool
) -> Paper:
    """Any line may be at fault; to bill less, or below the price, is none. Where notes are dirty, the
    invoice may bill an item that nobody ordered.
    """
    invoice, po = f"I{next(numbers)}", f"PO{next(numbers)}"
    *skus, stranger = _draw_skus(rng, size + 1)
    lines, receipts, bills = [], [], []
    for sku in skus:
        ordered, price = rng.randrange(10, 60, 5), rng.randrange(6, 40)
        came = ordered - rng.choice((0, 0, 0, 5))
        lines.append((f"N{next(numbers)}", sku, ordered, price))
        parts = [5, came - 5] if split and came > 5 and rng.random() < 0.4 else [came]
        receipts += [(f"R{next(numbers)}", _written(rng, sku, dirty=dirty), part) for part in parts]
        bills.append(
            Bill(
                bill=f"B{next(numbers)}",
                invoice=invoice,
                sku=sku,
                billed=came + rng.choice((0, 0, 0, 0, -2, 1, 5)),
                unit_price=price + rng.choice((0, 0, 0, 0, -1, 1, 3)),
            )
        )
    if dirty and rng.random() < 0.3:
        bills[-1] = replace(bills[-1], sku=stranger)
    return Paper(
        invoice=invoice,
        po=po,
        supplier=supplier,
        bills=tuple(bills),
        lines=tuple(lines),
        receipts=tuple(receipts),
    )


def _written(rng: random.Random, sku: str, *, dirty: bool) -> str:
    if not dirty:
        return sku
    return rng.choice(
        (sku, sku.lower(), f"{sku[:2]}-{sku[2:]}", f"{sku[:2]} {sku[2:]}", f"{sku[:2].lower()}-{sku[2:]}")
    )


def _draw_offers(
    rng: random.Random, numbers: Iterator[int], suppliers: list[str], num_items: int, num_selling: int
) -> tuple[Offer, ...]:
    """Each item is offered by `num_selling` of the suppliers, at prices of their own."""
    found = []
    for sku in _draw_skus(rng, num_items):
        selling = rng.sample(suppliers, num_selling)
        for supplier, price in zip(selling, rng.sample(range(10, 40), len(selling)), strict=True):
            number, days = f"F{next(numbers)}", rng.randrange(2, 12)
            found.append(Offer(offer=number, supplier=supplier, sku=sku, price=price, days=days))
    return tuple(found)


def read_records(tools: Sequence[Tool], client: Client, thing: str, **key: str) -> list[dict[str, Any]]:
    """All bills, lines, receipts or offers of a key, by the tools that there are."""
    if offers(tools, f"search_{thing}s"):
        return list(client.call(f"search_{thing}s", **key).rows)
    found = read_pages(client, f"list_{thing}s", **key)
    return [{thing: name, **client.call(f"get_{thing}", **{thing: name}).rows[0]} for name in found]

"""A household's books: accounts, payees, entries with their receipts, bills; and the tools, on each
surface.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from envs.task import AnswerSpec, Clause, FrameRule, GuessSpace
from envs.tools import Param, Tool, Write
from envs.world import Table
from synthesis.solver import Problem
from synthesis.surface import AFTER, SURFACES, Surface, exists, page_of

PAYEES = {
    "bakery": ("Kornblum", "Brotzeit", "Ofenrund"),
    "pharmacy": ("Heilquell", "Salvia", "Medikus"),
    "bookshop": ("Seitenweise", "Folio", "Lesbar"),
    "garage": ("Radlager", "Zylinder", "Hubraum"),
}
MONTHS = {"January": "01", "February": "02", "March": "03"}
ACCOUNTS = ("giro", "savings")
NUM_ENTRIES, NUM_BILLS = 12, 5
WORDS = ("corrected", "clean", "paid")
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Chore:
    """What is asked. Level 1: trade and month; 2 and 3: account; 4: reserve, in euros, to be left in the
    giro.
    """

    tip: int
    account: str = ACCOUNTS[0]
    trade: str = ""
    month: str = ""
    reserve: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A goal with what its task needs beside the world."""

    goal: Chore
    prompt: str
    clauses: tuple[Clause, ...]
    guess: GuessSpace
    problem: Problem
    answer: AnswerSpec
    frame: tuple[FrameRule, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Books:
    """The tables' rows, by column. Amounts are whole euros."""

    accounts: Sequence[Row]
    payees: Sequence[Row]
    entries: Sequence[Row]
    receipts: Sequence[Row]
    bills: Sequence[Row]

    def receipt_of(self) -> Mapping[str, Row]:
        """By entry."""
        return {row["entry_id"]: row for row in self.receipts}

    def tables(self) -> tuple[Table, ...]:
        names = ("accounts", "payees", "entries", "receipts", "bills")
        return tuple(
            Table(
                name=name,
                columns=tuple((c, "INTEGER" if isinstance(v, int) else "TEXT") for c, v in rows[0].items()),
                rows=sorted(tuple(row.values()) for row in rows),
            )
            for name in names
            for rows in (getattr(self, name),)
        )


def draw_books(rng: random.Random, *, tip: int, num_faults: int) -> Books:
    """`num_faults` entries differ from their receipts by more than `tip`; others by a tip at most, and some
    have no receipt.
    """
    payees = [
        {"payee": payee, "trade": trade} for trade, names in PAYEES.items() for payee in rng.sample(names, 2)
    ]
    ids = rng.sample(range(100, 1000), NUM_ENTRIES)
    amounts = rng.sample(range(20, 200), NUM_ENTRIES)
    entries = []
    for number, amount in zip(ids, amounts, strict=True):
        day = f"2025-{rng.choice(tuple(MONTHS.values()))}-{rng.randrange(1, 29):02d}"
        payee = rng.choice(payees)["payee"]
        account = ACCOUNTS[0] if rng.random() < 0.6 else ACCOUNTS[1]
        entries.append(
            {"entry_id": f"N{number}", "account": account, "day": day, "payee": payee, "amount": amount}
        )
    receipted = [row for row in entries if rng.random() < 0.75]
    faulty = rng.sample(range(len(receipted)), min(num_faults, len(receipted)))
    numbers = rng.sample(range(1000, 10000), len(receipted))
    receipts = []
    for index, (row, number) in enumerate(zip(receipted, numbers, strict=True)):
        below = rng.randrange(0, tip + 1) if rng.random() < 0.5 else 0
        if index in faulty:
            below = rng.choice((-1, 1)) * rng.randrange(tip + 1, tip + 12)
        receipts.append(
            {"receipt_id": f"C{number}", "entry_id": row["entry_id"], "total": row["amount"] - below}
        )
    bills = [
        {
            "bill_id": f"D{number}",
            "account": ACCOUNTS[0],
            "payee": rng.choice(payees)["payee"],
            "amount": amount,
            "late_fee": late_fee,
            "state": "open" if index else "paid",
        }
        for index, (number, amount, late_fee) in enumerate(
            zip(
                rng.sample(range(100, 1000), NUM_BILLS + 1),
                rng.sample(range(30, 200), NUM_BILLS + 1),
                rng.sample(range(3, 40), NUM_BILLS + 1),
                strict=True,
            )
        )
    ]
    accounts = [{"account": account, "balance": rng.randrange(250, 600)} for account in ACCOUNTS]
    return Books(accounts=accounts, payees=payees, entries=entries, receipts=receipts, bills=bills)


_ENTRY = Param(name="entry_id", description="The entry's id.")
_ACCOUNT = Param(name="account", description="The account.", enum=ACCOUNTS)
_BILL = Param(name="bill_id", description="The bill's id.")


def _fixed(surface: Surface) -> tuple[Tool, ...]:
    return (
        Tool(
            name="get_balance",
            description="What an account holds.",
            parameters=(_ACCOUNT,),
            query="SELECT balance FROM accounts WHERE account = :account",
            row_format="{balance}",
            reads=("accounts",),
        ),
        Tool(
            name="find_payees",
            description="The payees of a trade.",
            parameters=(Param(name="trade", description="The trade.", enum=tuple(PAYEES)),),
            query="SELECT payee FROM payees WHERE trade = :trade ORDER BY payee",
            row_format="{payee}",
            reads=("payees",),
        ),
        Tool(
            name="get_receipt",
            description="The receipt of an entry and its total.",
            parameters=(_ENTRY,),
            requires=(exists(surface, "entry", "entries", "entry_id"),),
            query="SELECT receipt_id, total FROM receipts WHERE entry_id = :entry_id",
            row_format="{receipt_id}: {total}",
            empty="no receipt",
            reads=("entries", "receipts"),
        ),
    )


def _varied(surface: Surface) -> tuple[Tool, ...]:
    late = surface.word("late fee", "if late")
    entry = "{day} {payee} {amount} from {account}"
    if surface.search:
        return (
            Tool(
                name="search_entries",
                description="The entries of an account with a payee, or with any: id, day, payee, amount.",
                parameters=(_ACCOUNT, Param(name="payee", description="The payee; % for any.")),
                query="SELECT entry_id, account, day, payee, amount FROM entries WHERE account = :account "
                "AND payee LIKE :payee ORDER BY entry_id",
                row_format=f"{{entry_id}}: {entry}",
                reads=("entries",),
            ),
            Tool(
                name="search_bills",
                description="The open bills: id, payee, amount, late fee.",
                query="SELECT bill_id, payee, amount, late_fee FROM bills WHERE state = 'open' ORDER BY "
                "bill_id",
                row_format=f"{{bill_id}}: {{payee}} {{amount}}, {late} {{late_fee}}",
                reads=("bills",),
            ),
        )
    return (
        Tool(
            name="list_entries",
            description="The ids of an account's entries.",
            parameters=(_ACCOUNT, AFTER),
            query=page_of("entries", "entry_id", "account = :account"),
            row_format="{entry_id}",
            reads=("entries",),
        ),
        Tool(
            name="get_entry",
            description="An entry's account, day, payee and amount.",
            parameters=(_ENTRY,),
            requires=(exists(surface, "entry", "entries", "entry_id"),),
            query="SELECT account, day, payee, amount FROM entries WHERE entry_id = :entry_id",
            row_format=entry,
            reads=("entries",),
        ),
        Tool(
            name="list_bills",
            description="The ids of the open bills.",
            parameters=(AFTER,),
            query=page_of("bills", "bill_id", "state = 'open'"),
            row_format="{bill_id}",
            reads=("bills",),
        ),
        Tool(
            name="get_bill",
            description="A bill's payee, amount and late fee.",
            parameters=(_BILL,),
            requires=(exists(surface, "bill", "bills", "bill_id"),),
            query="SELECT payee, amount, late_fee FROM bills WHERE bill_id = :bill_id",
            row_format=f"{{payee}} {{amount}}, {late} {{late_fee}}",
            reads=("bills",),
        ),
    )


def _writes(surface: Surface) -> tuple[Tool, ...]:
    return (
        Tool(
            name="correct_entry",
            description="Puts another amount into an entry.",
            parameters=(_ENTRY, Param(name="amount", description="Whole euros.", type="integer")),
            requires=(exists(surface, "entry", "entries", "entry_id"),),
            statements=("UPDATE entries SET amount = :amount WHERE entry_id = :entry_id",),
            done="corrected",
            reads=("entries",),
            writes=(Write(table="entries", operation="update", columns=("amount",)),),
        ),
        Tool(
            name="pay_bill",
            description="Pays a bill from its account.",
            parameters=(_BILL,),
            requires=(exists(surface, "bill", "bills", "bill_id"),),
            statements=(
                "UPDATE accounts SET balance = balance - (SELECT amount FROM bills WHERE bill_id = :bill_id) "
                "WHERE account = (SELECT account FROM bills WHERE bill_id = :bill_id)",
                "UPDATE bills SET state = 'paid' WHERE bill_id = :bill_id",
            ),
            done="paid",
            reads=("accounts", "bills"),
            writes=(
                Write(table="accounts", operation="update", columns=("balance",)),
                Write(table="bills", operation="update", columns=("state",)),
            ),
        ),
    )


TOOLSETS = tuple((*_fixed(surface), *_varied(surface), *_writes(surface)) for surface in SURFACES)

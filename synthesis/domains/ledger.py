"""A household's books: find a payment, find the entry that is wrong, put the books right, pay the right
bills.

Levels: 1 the largest payment to a trade in a month, over payees and entries; 2 the one entry of an account
that its receipt contradicts; 3 correct every such entry, or find that there is none; 4 pay those bills that
keep the late fees lowest while the reserve stays whole. 1 and 2 may be shown to a cold start.
"""

import itertools
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from envs.task import AnswerSpec, Call, Clause, FrameRule, GuessSpace, Plan, Slot
from envs.tools import Tool
from synthesis.clauses import all_rows, read_before, right_word
from synthesis.domains.ledger_bills import bills_case, pay_bills
from synthesis.domains.ledger_world import (
    ACCOUNTS,
    MONTHS,
    PAYEES,
    TOOLSETS,
    WORDS,
    Books,
    Case,
    Chore,
    Row,
    draw_books,
)
from synthesis.grammar import Care, Client, Draft, quote
from synthesis.solver import Allow, Problem
from synthesis.surface import FROM_THE_START, offers, read_pages

VERSION = 2
MAX_DRAWS = 200
"""Worlds drawn from one seed before it is given up."""
MAX_CHECKED = 6
"""Entries of level 3's account that are not what their receipts say: the guess space holds each set of
them.
"""
TIPS = (3, 5, 8)


def policy_text(tip: int) -> str:
    return (
        "You keep a household's books with the tools. Amounts are whole euros.\n"
        "Asked for an entry, answer with a JSON list of one object with the keys that the request names.\n"
        f"An entry agrees with its receipt if it differs from the total by at most {tip}: that is a tip. If "
        "it differs by more, the receipt is right. An entry without a receipt is left as it is.\n"
        "Asked to put an account right, go through its entries, correct those that their receipts "
        "contradict and answer corrected; if there are none, answer clean.\n"
        "Asked to pay bills, look at the balance first and answer paid. What you pay leaves the account."
    )


def contradicts(entry: Mapping[str, int], total: int, tip: int) -> bool:
    return abs(entry["amount"] - total) > tip


@dataclass(frozen=True, slots=True)
class LedgerDomain:
    name: str = "ledger"
    version: int = VERSION
    levels: tuple[int, ...] = (1, 2, 3, 4)
    shown_levels: tuple[int, ...] = (1, 2)
    tools: tuple[Tool, ...] = TOOLSETS[0]
    toolsets: tuple[tuple[Tool, ...], ...] = field(default=TOOLSETS, repr=False)

    def draft(self, level: int, seed: int) -> Draft | None:
        if level not in self.levels:
            raise ValueError(f"domain ledger has the levels {self.levels}, not {level}")
        rng = random.Random(seed)
        tools, tip = rng.choice(self.toolsets), rng.choice(TIPS)
        num_faults = rng.choice((0, 0, 0, 2, 3, 4)) if level == 3 else 2
        make = {1: _largest, 2: _inconsistency, 3: _reconciliation, 4: bills_case}[level]
        for _ in range(MAX_DRAWS):
            books = draw_books(rng, tip=tip, num_faults=num_faults)
            case = make(rng, books, tools, tip)
            if case is not None:
                return Draft(
                    domain=self.name,
                    level=level,
                    seed=seed,
                    tables=books.tables(),
                    system=policy_text(tip),
                    prompt=case.prompt,
                    tools=tools,
                    clauses=case.clauses,
                    frame=case.frame,
                    answer=case.answer,
                    guess=case.guess,
                    problem=case.problem,
                    goal=case.goal,
                    max_turns=60,
                )
        return None

    def plan(self, draft: Draft, client: Client, care: Care) -> Plan:
        play = {1: _find_largest, 2: _find_inconsistency, 3: _reconcile, 4: pay_bills}[draft.level]
        answer = play(client, draft.tools, draft.goal, care)
        return Plan(calls=tuple(client.calls), answer=answer)


def _largest(rng: random.Random, books: Books, tools: Sequence[Tool], tip: int) -> Case | None:
    trade, month = rng.choice(tuple(PAYEES)), rng.choice(tuple(MONTHS))
    payees = {row["payee"] for row in books.payees if row["trade"] == trade}
    rows = [r for r in books.entries if r["payee"] in payees and r["day"][5:7] == MONTHS[month]]
    if len(rows) < 2:
        return None
    entries = tuple(row["entry_id"] for row in books.entries)
    amounts = {row["entry_id"]: row["amount"] for row in books.entries}
    right = (
        "SELECT e.entry_id FROM initial.entries e JOIN initial.payees p ON p.payee = e.payee WHERE p.trade "
        f"= {quote(trade)} AND e.day LIKE '2025-{MONTHS[month]}-%' ORDER BY e.amount DESC LIMIT 1"
    )
    texts = (
        "Which of our payments to any {} in {} was the largest, from whichever account? Key: entry_id.",
        "What was the most that we spent at a {} at once in {}, on all accounts? Give me its entry_id.",
    )
    return Case(
        goal=Chore(tip=tip, trade=trade, month=month),
        prompt=rng.choice(texts).format(trade, month),
        clauses=(
            Clause(
                name="the largest payment",
                part="answer",
                sql=f"SELECT 1 FROM answer WHERE entry_id IS NOT ({right})",
            ),
        ),
        guess=GuessSpace(slots=(Slot(row=0, column="entry_id", options=entries),)),
        problem=Problem(
            options={"entry_id": entries},
            constraints=(
                Allow(
                    name="trade and month",
                    variable="entry_id",
                    options=frozenset(row["entry_id"] for row in rows),
                ),
            ),
            cost={"entry_id": {entry: -amount for entry, amount in amounts.items()}},
        ),
        answer=AnswerSpec(kind="rows", columns=("entry_id",)),
    )


def _faults(books: Books, account: str, tip: int) -> dict[str, int]:
    """What the entries of an account should be that their receipts contradict."""
    receipt_of = books.receipt_of()
    return {
        row["entry_id"]: receipt_of[row["entry_id"]]["total"]
        for row in books.entries
        if row["account"] == account
        and row["entry_id"] in receipt_of
        and contradicts(row, receipt_of[row["entry_id"]]["total"], tip)
    }


def _faults_sql(account: str, tip: int) -> str:
    return (
        "SELECT e.entry_id, r.total FROM initial.entries e JOIN initial.receipts r ON r.entry_id = "
        f"e.entry_id WHERE e.account = {quote(account)} AND abs(e.amount - r.total) > {tip}"
    )


def _inconsistency(rng: random.Random, books: Books, tools: Sequence[Tool], tip: int) -> Case | None:
    fitting = [account for account in ACCOUNTS if len(_faults(books, account, tip)) == 1]
    if not fitting:
        return None
    account = rng.choice(fitting)
    entries = tuple(row["entry_id"] for row in books.entries)
    totals = tuple(dict.fromkeys(str(row["total"]) for row in books.receipts))
    ((entry, total),) = _faults(books, account, tip).items()
    right = {"entry_id": entry, "total": str(total)}
    options = {"entry_id": entries, "total": totals}
    texts = (
        "One entry of our {} account is wrong. Which, and what does its receipt say? Keys: entry_id, total.",
        "The {} account does not add up: one entry is not what was paid. Give me entry_id and the "
        "receipt's total.",
    )
    return Case(
        goal=Chore(tip=tip, account=account),
        prompt=rng.choice(texts).format(account),
        clauses=(
            Clause(
                name="the entry that its receipt contradicts",
                part="answer",
                sql="SELECT 1 FROM answer WHERE (entry_id, total) NOT IN "
                f"(SELECT entry_id, CAST(total AS TEXT) FROM ({_faults_sql(account, tip)}))",
            ),
        ),
        guess=GuessSpace(slots=tuple(Slot(row=0, column=c, options=each) for c, each in options.items())),
        problem=Problem(
            options=options,
            constraints=tuple(Allow(name=c, variable=c, options=frozenset({v})) for c, v in right.items()),
        ),
        answer=AnswerSpec(kind="rows", columns=("entry_id", "total")),
    )


def _reconciliation(rng: random.Random, books: Books, tools: Sequence[Tool], tip: int) -> Case | None:
    account = rng.choice(ACCOUNTS)
    faults = _faults(books, account, tip)
    amounts = {row["entry_id"]: row["amount"] for row in books.entries if row["account"] == account}
    totals = {
        row["entry_id"]: row["total"]
        for row in books.receipts
        if row["total"] != amounts.get(row["entry_id"], row["total"])
    }
    is_clean = not any(_faults(books, each, tip) for each in ACCOUNTS)
    if not 3 <= len(totals) <= MAX_CHECKED or (len(faults) < 2 and not is_clean):
        return None
    look = _first_look(tools, account)
    plans = {}
    for count in range(min(len(totals), 4) + 1):
        for chosen in itertools.combinations(sorted(totals), count):
            fixes = [
                Call(tool="correct_entry", arguments={"entry_id": entry, "amount": totals[entry]})
                for entry in chosen
            ]
            plans[" ".join(chosen) or "clean"] = Plan(
                calls=(look, *fixes), answer="corrected" if chosen else "clean"
            )
    wrong = f"SELECT entry_id FROM ({_faults_sql(account, tip)})"
    right = " ".join(sorted(faults)) or "clean"
    texts = ("Please put the {} account right.", "Check the {} account against the receipts and mend it.")
    return Case(
        goal=Chore(tip=tip, account=account),
        prompt=rng.choice(texts).format(account),
        clauses=(
            all_rows(
                "every wrong entry is corrected",
                "entries",
                f"entry_id IN ({wrong})",
                "amount = (SELECT total FROM initial.receipts r WHERE r.entry_id = entries.entry_id)",
            ),
            right_word(f"SELECT iif(EXISTS ({wrong}), 'corrected', 'clean')"),
            read_before(
                look.tool, {"account": account}, ("correct_entry",), name="the account was read first"
            ),
        ),
        guess=GuessSpace(plans=tuple(plans.values())),
        problem=Problem(
            options={"plan": tuple(plans)},
            constraints=(Allow(name="the receipts", variable="plan", options=frozenset({right})),),
        ),
        answer=AnswerSpec(kind="choice", choices=WORDS),
        frame=tuple(FrameRule(table="entries", key=entry, columns=("amount",)) for entry in sorted(faults)),
    )


def _first_look(tools: Sequence[Tool], account: str) -> Call:
    if offers(tools, "search_entries"):
        return Call(tool="search_entries", arguments={"account": account, "payee": "%"})
    return Call(tool="list_entries", arguments={"account": account, "after": FROM_THE_START})


def _find_largest(client: Client, tools: Sequence[Tool], chore: Chore, care: Care) -> str:
    """Slips: forgets an account, the month, or a payee of the trade."""
    payees = client.values("find_payees", trade=chore.trade)
    if len(payees) > 1 and care.slips():
        payees = payees[:1]
    accounts = ACCOUNTS[:1] if care.slips() else ACCOUNTS
    every = [row for account in accounts for row in _entries(client, tools, account, payees)]
    in_month = [row for row in every if row["day"][5:7] == MONTHS[chore.month]]
    rows = every if care.slips() else in_month
    best = max(rows, key=lambda row: row["amount"], default=None)
    return json.dumps([{"entry_id": best["entry_id"] if best else "none"}])


def _entries(
    client: Client, tools: Sequence[Tool], account: str, payees: Sequence[str] = ("%",)
) -> list[Row]:
    """An account's entries with any of the payees; `%` is everybody."""
    if offers(tools, "search_entries"):
        return [row for p in payees for row in client.call("search_entries", account=account, payee=p).rows]
    ids = read_pages(client, "list_entries", account=account)
    rows = [{"entry_id": each, **client.call("get_entry", entry_id=each).rows[0]} for each in ids]
    return [row for row in rows if "%" in payees or row["payee"] in payees]


def _contradicted(client: Client, tools: Sequence[Tool], chore: Chore, care: Care) -> list[tuple[str, int]]:
    """(entry, the receipt's total). Slips: overlooks an entry, takes a tip for a fault."""
    found = []
    for row in _entries(client, tools, chore.account):
        if care.slips():
            continue
        receipts = client.call("get_receipt", entry_id=row["entry_id"]).rows
        tip = 0 if receipts and care.slips() else chore.tip
        if receipts and contradicts(row, receipts[0]["total"], tip):
            found.append((row["entry_id"], receipts[0]["total"]))
    return found


def _find_inconsistency(client: Client, tools: Sequence[Tool], chore: Chore, care: Care) -> str:
    entry, total = next(iter(_contradicted(client, tools, chore, care)), ("none", "none"))
    return json.dumps([{"entry_id": entry, "total": str(total)}])


def _reconcile(client: Client, tools: Sequence[Tool], chore: Chore, care: Care) -> str:
    found = _contradicted(client, tools, chore, care)
    for entry, total in found:
        client.call("correct_entry", entry_id=entry, amount=total)
    return "corrected" if found else "clean"


DOMAIN = LedgerDomain()

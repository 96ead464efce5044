"""Level 4 of the household's books: which bills to pay while the reserve stays whole, at the lowest late
fees.

The oracle and the planner choose among all sets of bills by CP-SAT, from the world and from what was read;
the verifier does it again in SQL.
"""

import itertools
import random
from collections.abc import Sequence

from envs.task import AnswerSpec, Call, Clause, FrameRule, GuessSpace, Plan
from envs.tools import Tool
from synthesis.clauses import all_rows, once_each, read_before, right_word
from synthesis.domains.ledger_world import ACCOUNTS, WORDS, Books, Case, Chore, Row
from synthesis.grammar import Care, Client, quote
from synthesis.solver import Allow, Problem, solve
from synthesis.surface import offers, read_pages


def bills_case(rng: random.Random, books: Books, tools: Sequence[Tool], tip: int) -> Case | None:
    """Neither all of the bills nor only one can be paid, and one choice of them leaves the lowest late
    fees.
    """
    balance = next(row["balance"] for row in books.accounts if row["account"] == ACCOUNTS[0])
    reserve = rng.randrange(50, 250, 10)
    due = [row for row in books.bills if row["state"] == "open"]
    total = sum(row["amount"] for row in due)
    problem = bills_problem(due, balance - reserve)
    found = solve(problem, limit=2)
    if not (len(found.optima) == 1 and found.complete) or total <= balance - reserve:
        return None
    chosen = found.optima[0]["plan"].split()
    if len(chosen) < 2:
        return None
    look = Call(tool="get_balance", arguments={"account": ACCOUNTS[0]})
    plans = [
        Plan(
            calls=(look, *(Call(tool="pay_bill", arguments={"bill_id": bill}) for bill in name.split())),
            answer="paid",
        )
        for name in problem.options["plan"]
    ]
    texts = (
        "Money is short: leave at least {} euros in the giro account and pay the open bills that keep the "
        "late fees as low as they can be.",
        "Please pay what we can of the open bills, but {} euros must stay in the giro account. The late "
        "fees of what stays open should be as low as possible.",
    )
    return Case(
        goal=Chore(tip=tip, reserve=reserve),
        prompt=rng.choice(texts).format(reserve),
        clauses=_bills_clauses(reserve),
        guess=GuessSpace(plans=tuple(plans)),
        problem=problem,
        answer=AnswerSpec(kind="choice", choices=WORDS),
        frame=(
            FrameRule(table="accounts", key=ACCOUNTS[0], columns=("balance",)),
            *(FrameRule(table="bills", key=bill, columns=("state",)) for bill in chosen),
        ),
    )


def bills_problem(due: Sequence[Row], budget: int) -> Problem:
    """Which bills to pay: every set of them is a plan, which costs the late fees of the rest."""
    names = sorted(row["bill_id"] for row in due)
    sets = [s for count in range(len(names) + 1) for s in itertools.combinations(names, count)]
    amount = {row["bill_id"]: row["amount"] for row in due}
    fee = {row["bill_id"]: row["late_fee"] for row in due}
    affordable = frozenset(" ".join(s) for s in sets if sum(amount[bill] for bill in s) <= budget)
    return Problem(
        options={"plan": tuple(" ".join(s) for s in sets)},
        constraints=(Allow(name="the reserve", variable="plan", options=affordable),),
        cost={"plan": {" ".join(s): sum(fee[bill] for bill in fee if bill not in s) for s in sets}},
    )


def _bills_clauses(reserve: int) -> tuple[Clause, ...]:
    giro = quote(ACCOUNTS[0])
    best = (
        "WITH RECURSIVE due AS (SELECT row_number() OVER (ORDER BY bill_id) AS n, amount, late_fee "
        "FROM initial.bills WHERE state = 'open'), sets(n, spent, fees) AS (SELECT 0, 0, 0 UNION ALL "
        "SELECT due.n, spent + t.value * amount, fees + (1 - t.value) * late_fee "
        "FROM sets JOIN due ON due.n = sets.n + 1 JOIN (SELECT 0 AS value UNION ALL SELECT 1) t) "
        "SELECT min(fees) FROM sets WHERE n = (SELECT count(*) FROM due) AND spent <= "
        f"(SELECT balance - {reserve} FROM initial.accounts WHERE account = {giro})"
    )
    paid = "SELECT sum(amount) FROM bills b WHERE state = 'paid' AND bill_id IN "
    return (
        all_rows("the reserve is whole", "accounts", f"account = {giro}", f"balance >= {reserve}"),
        all_rows(
            "every bill was paid once",
            "accounts",
            f"account = {giro}",
            f"balance = (SELECT balance FROM initial.accounts WHERE account = {giro}) - ({paid}"
            "(SELECT bill_id FROM initial.bills WHERE state = 'open'))",
        ),
        Clause(
            name="the lowest late fees",
            part="goal",
            sql=f"SELECT 1 WHERE (SELECT total(late_fee) FROM bills WHERE state = 'open') > ({best})",
        ),
        right_word("SELECT 'paid'"),
        once_each(("pay_bill",), "bill_id"),
        read_before(
            "get_balance", {"account": ACCOUNTS[0]}, ("pay_bill",), name="the balance was read first"
        ),
    )


def pay_bills(client: Client, tools: Sequence[Tool], chore: Chore, care: Care) -> str:
    """Slips: forgets the reserve, pays the cheapest bills first."""
    balance = client.values("get_balance", account=ACCOUNTS[0])[0]
    if offers(tools, "search_bills"):
        due = list(client.call("search_bills").rows)
    else:
        ids = read_pages(client, "list_bills")
        due = [{"bill_id": each, **client.call("get_bill", bill_id=each).rows[0]} for each in ids]
    budget = balance - (0 if care.slips() else chore.reserve)
    if care.slips():
        sums = itertools.accumulate(row["amount"] for row in sorted(due, key=lambda row: row["amount"]))
        num_paid = sum(spent <= budget for spent in sums)
        chosen = [row["bill_id"] for row in sorted(due, key=lambda row: row["amount"])[:num_paid]]
    else:
        chosen = care.choose(bills_problem(due, budget))["plan"].split()
    for bill in chosen:
        client.call("pay_bill", bill_id=bill)
    return "paid"

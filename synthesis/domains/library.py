"""A library's catalogue and loans: look a copy up, renew within the house rules, take copies back.

Levels: 1 find the one copy on the shelf of a title that another author used too; 2 renew a loan by its id, or
refuse; 3 the same for a book that a member names; 4 take a book back, which closes its loan, may cost a
fine and goes to the next in the queue whose fines allow it; 5 two books at once. 1 to 3 may be shown to a
cold start.

Goal kinds: multi-hop look-up with an answer, refusal is correct, cascade of updates under a policy.
"""

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from envs.task import AnswerSpec, Call, Clause, FrameRule, GuessSpace, Plan, Slot
from envs.tools import Tool
from synthesis.clauses import read_before, right_word
from synthesis.domains.library_tools import LATE_RATE, TOOLSETS
from synthesis.domains.library_world import (
    BRANCHES,
    GRACE_DAYS,
    MAX_RENEWALS,
    READ_FIRST,
    LibraryWorld,
    Loan,
    Request,
    draw_request,
    draw_world,
    is_charged,
    may_renew,
    policy_text,
    prompt_text,
)
from synthesis.grammar import Care, Client, Draft, quote
from synthesis.solver import Allow, Problem
from synthesis.surface import offers, read_pages

VERSION = 1
MAX_DRAWS = 200
"""Worlds drawn from one seed before it is given up."""
WRITES = ("renew_loan", "close_loan", "charge_late", "shelve_copy", "reserve_copy")
SHELF = "shelf"
Moves = tuple[Call, ...]


@dataclass(frozen=True, slots=True)
class LibraryDomain:
    name: str = "library"
    version: int = VERSION
    levels: tuple[int, ...] = (1, 2, 3, 4, 5)
    shown_levels: tuple[int, ...] = (1, 2, 3)
    tools: tuple[Tool, ...] = TOOLSETS[0]
    toolsets: tuple[tuple[Tool, ...], ...] = TOOLSETS

    def draft(self, level: int, seed: int) -> Draft | None:
        if level not in self.levels:
            raise ValueError(f"domain library has the levels {self.levels}, not {level}")
        rng = random.Random(seed)
        wants_refusal = rng.random() < 1 / 3
        for _ in range(MAX_DRAWS):
            world = draw_world(rng, level)
            request = draw_request(rng, world, level)
            made = self.make(level, seed, rng, world, request)
            is_refused = made is not None and request.action == "renew" and not made.frame
            if made is not None and (request.action != "renew" or is_refused == wants_refusal):
                return made
        return None

    def make(
        self, level: int, seed: int, rng: random.Random, world: LibraryWorld, request: Request
    ) -> Draft | None:
        """The draft of a world and a request, or None where they hold no task."""
        parts = {"find": _find_parts, "renew": _renew_parts, "return": _return_parts}[request.action](
            world, request
        )
        if parts is None:
            return None
        return Draft(
            domain=self.name,
            level=level,
            seed=seed,
            tables=world.tables(),
            system=policy_text(request),
            prompt=prompt_text(rng, request),
            tools=rng.choice(self.toolsets),
            goal=request,
            max_turns=40,
            **parts,
        )

    def plan(self, draft: Draft, client: Client, care: Care) -> Plan:
        desk = Desk(draft, client, care)
        return {"find": desk.find, "renew": desk.renew, "return": desk.take_back}[draft.goal.action]()


def _find_parts(world: LibraryWorld, request: Request) -> dict[str, Any] | None:
    """A look-up: which copy, at which branch."""
    wanted = [key for key, row in world.titles.items() if row == (request.titles[0], request.author)]
    right = [
        copy
        for copy, (title_id, _, state) in world.copies.items()
        if title_id in wanted and state == "shelved"
    ]
    if len(right) != 1:
        return None
    options = {"copy": tuple(sorted(world.copies)), "branch": BRANCHES}
    at = {b: frozenset(copy for copy, row in world.copies.items() if row[1] == b) for b in BRANCHES}
    constraints = [Allow(name="on the shelf", variable="copy", options=frozenset(right))]
    constraints += [
        Allow(name="its branch", variable="branch", options=frozenset({b}), when={"copy": at[b]})
        for b in BRANCHES
        if at[b]
    ]
    sql = (
        "SELECT 1 FROM answer a LEFT JOIN initial.copies c ON c.copy = a.copy "
        "LEFT JOIN initial.titles t ON t.title_id = c.title_id WHERE "
    )
    tests = {
        "the title": f"t.title IS NOT {quote(request.titles[0])}",
        "the author": f"t.author IS NOT {quote(request.author)}",
        "on the shelf": "c.state IS NOT 'shelved'",
        "the copy's branch": "c.branch IS NOT a.branch",
    }
    return {
        "clauses": tuple(Clause(name=name, part="answer", sql=sql + test) for name, test in tests.items()),
        "frame": (),
        "answer": AnswerSpec(kind="rows", columns=("copy", "branch")),
        "guess": GuessSpace(
            slots=tuple(Slot(row=0, column=column, options=names) for column, names in options.items())
        ),
        "problem": Problem(options=options, constraints=tuple(constraints)),
    }


def _meant(world: LibraryWorld, request: Request) -> list[str]:
    """The loans that the request is about."""
    own = [loan.loan for loan in world.loans.values() if world.members[loan.member_id][0] == request.name]
    return sorted(loan for loan in own if loan in request.loans or world.title_of(loan) in request.titles)


def _read(loan: str) -> Call:
    return Call(tool="get_loan", arguments={"loan": loan})


def _plan_parts(
    plans: Mapping[str, Plan], rules: Mapping[str, Callable[[str], bool]], answers: tuple[str, ...]
) -> dict[str, Any]:
    """A choice among whole plans by their names; the one that keeps every rule is right."""
    constraints = tuple(
        Allow(name=name, variable="plan", options=frozenset(key for key in plans if rule(key)))
        for name, rule in rules.items()
    )
    return {
        "answer": AnswerSpec(kind="choice", choices=answers),
        "guess": GuessSpace(plans=tuple(plans.values())),
        "problem": Problem(options={"plan": tuple(plans)}, constraints=constraints),
    }


def _renew_parts(world: LibraryWorld, request: Request) -> dict[str, Any]:
    (meant,) = _meant(world, request)
    plans: dict[str, Plan] = {}
    for key in sorted(world.loans):
        plans[f"refuse {key}"] = Plan(calls=(_read(key),), answer="refused")
        renew = Call(tool="renew_loan", arguments={"loan": key})
        plans[f"renew {key}"] = Plan(calls=(_read(key), renew), answer="done")
    loan = world.loans[meant]
    allowed = may_renew(
        loan,
        num_waiting=len(world.queue(loan.copy)),
        fines=world.members[loan.member_id][2],
        fine_limit=world.fine_limit,
    )
    rules = {
        "the loan that is meant": lambda key: key.endswith(f" {meant}"),
        "the house rules": lambda key: key.startswith("renew") == allowed,
    }
    ours = f"l.loan = {quote(meant)}"
    may = (
        "SELECT 1 FROM initial.loans l JOIN initial.members m ON m.member_id = l.member_id "
        f"JOIN initial.copies c ON c.copy = l.copy WHERE {ours} AND l.renewals < {MAX_RENEWALS} "
        f"AND l.days_late = 0 AND m.fines < {world.fine_limit} AND NOT EXISTS "
        "(SELECT 1 FROM initial.holds h WHERE h.title_id = c.title_id AND h.state = 'waiting')"
    )
    once = (
        f"SELECT 1 FROM loans l JOIN initial.loans o ON o.loan = l.loan WHERE {ours} "
        f"AND l.renewals <> o.renewals + EXISTS ({may})"
    )
    return {
        "clauses": (
            right_word(f"SELECT CASE WHEN EXISTS ({may}) THEN 'done' ELSE 'refused' END"),
            read_before(
                "get_loan", {"loan": meant}, WRITES, name="the loan was opened first", phrase=READ_FIRST
            ),
            Clause(name="the loan is renewed once if the rules allow it", part="goal", sql=once),
        ),
        "frame": (FrameRule(table="loans", key=meant, columns=("due", "renewals")),) if allowed else (),
        **_plan_parts(plans, rules, ("done", "refused")),
    }


def _next_hold(world: LibraryWorld, copy: str) -> str:
    """The hold that gets the copy, or SHELF."""
    fit = (hold.hold for hold in world.queue(copy) if world.members[hold.member_id][2] < world.fine_limit)
    return next(fit, SHELF)


def _return_moves(loan: Loan, *, charge: bool, goes_to: str) -> Moves:
    calls = [Call(tool="close_loan", arguments={"loan": loan.loan})]
    if charge:
        late = {"member_id": loan.member_id, "days_late": loan.days_late}
        calls.append(Call(tool="charge_late", arguments=late))
    if goes_to == SHELF:
        calls.append(Call(tool="shelve_copy", arguments={"copy": loan.copy}))
    else:
        calls.append(Call(tool="reserve_copy", arguments={"copy": loan.copy, "hold": goes_to}))
    return tuple(calls)


def _return_parts(world: LibraryWorld, request: Request) -> dict[str, Any]:
    meant = _meant(world, request)
    loans = [world.loans[key] for key in meant]
    kind = world.members[loans[0].member_id][1]
    own = sorted(loan.loan for loan in world.loans.values() if loan.member_id == loans[0].member_id)
    right = {x.loan: (is_charged(x.days_late, kind), _next_hold(world, x.copy)) for x in loans}
    plans: dict[str, Plan] = {}
    chosen: dict[str, dict[str, tuple[bool, str]]] = {}
    for keys in [meant] if len(meant) > 1 else [[key] for key in own]:
        for choice in product(*(_fates(world, key) for key in keys)):
            fates = dict(zip(keys, choice, strict=True))
            calls = [_read(key) for key in keys]
            for key, (charge, to) in fates.items():
                calls += _return_moves(world.loans[key], charge=charge, goes_to=to)
            name = " ".join(
                f"{key} {'charge' if charge else 'spare'} {to}" for key, (charge, to) in fates.items()
            )
            plans[name], chosen[name] = Plan(calls=tuple(calls), answer="done"), fates
    rules = {
        "the books that came back": lambda name: chosen[name].keys() == right.keys(),
        "the fines": lambda name: all(right.get(k, fate)[0] == fate[0] for k, fate in chosen[name].items()),
        "the queue": lambda name: all(right.get(k, fate)[1] == fate[1] for k, fate in chosen[name].items()),
    }
    return {
        "clauses": _return_clauses(world.fine_limit, meant, loans[0].member_id),
        "frame": _return_frame(loans, list(right.values())),
        **_plan_parts(plans, rules, ("done", "refused")),
    }


def _fates(world: LibraryWorld, loan: str) -> list[tuple[bool, str]]:
    """What may become of a copy that comes back: charged or not (if late at all), and to whom it goes."""
    charges = (True, False) if world.loans[loan].days_late else (False,)
    queue = [hold.hold for hold in world.queue(world.loans[loan].copy)]
    return [(charge, to) for charge in charges for to in (*queue, SHELF)]


def _return_frame(loans: list[Loan], right: list[tuple[bool, str]]) -> tuple[FrameRule, ...]:
    """What the tools that are called may write in the rows that change."""
    columns = ("state",) if all(to == SHELF for _, to in right) else ("held_for", "state")
    rules = [FrameRule(table="loans", key=loan.loan, columns=("state",)) for loan in loans]
    rules += [FrameRule(table="copies", key=loan.copy, columns=columns) for loan in loans]
    rules += [FrameRule(table="holds", key=to, columns=("state",)) for _, to in right if to != SHELF]
    if any(charge for charge, _ in right):
        rules.append(FrameRule(table="members", key=loans[0].member_id, columns=("fines",)))
    return tuple(rules)


def _return_clauses(fine_limit: int, loans: list[str], member_id: str) -> tuple[Clause, ...]:
    ours = f"l.loan IN ({', '.join(map(quote, loans))})"
    owed = (
        f"SELECT coalesce(sum({LATE_RATE} * l.days_late), 0) FROM initial.loans l JOIN initial.members m "
        f"ON m.member_id = l.member_id WHERE {ours} "
        f"AND l.days_late > CASE m.kind WHEN 'student' THEN {GRACE_DAYS} ELSE 0 END"
    )
    queue = (
        "SELECT h.{} FROM initial.holds h JOIN initial.members m ON m.member_id = h.member_id "
        f"WHERE h.title_id = c.title_id AND h.state = 'waiting' AND m.fines < {fine_limit} "
        "ORDER BY h.place LIMIT 1"
    )
    back = f"SELECT 1 FROM loans l JOIN copies c ON c.copy = l.copy WHERE {ours} AND "
    who, hold = f"({queue.format('member_id')})", f"({queue.format('hold')})"
    goals = {
        "the loans are closed": f"SELECT 1 FROM loans l WHERE {ours} AND l.state <> 'closed'",
        "the fines are those of the rules": "SELECT 1 FROM members m JOIN initial.members o "
        f"ON o.member_id = m.member_id WHERE m.member_id = {quote(member_id)} "
        f"AND m.fines <> o.fines + ({owed})",
        "a copy is kept for the next in the queue": f"{back} {who} IS NOT NULL "
        f"AND (c.state <> 'reserved' OR c.held_for IS NOT {who} "
        f"OR NOT EXISTS (SELECT 1 FROM holds x WHERE x.hold = {hold} AND x.state = 'ready'))",
        "a copy that nobody gets is shelved": f"{back} {who} IS NULL AND c.state <> 'shelved'",
    }
    reads = (
        read_before("get_loan", {"loan": x}, WRITES, name=f"{x} was opened first", phrase=READ_FIRST)
        for x in loans
    )
    return (
        right_word("SELECT 'done'"),
        *reads,
        *(Clause(name=name, part="goal", sql=sql) for name, sql in goals.items()),
    )


class Desk:
    """One play of a request by calls, from the prompt and what they give back."""

    def __init__(self, draft: Draft, client: Client, care: Care) -> None:
        self.request: Request = draft.goal
        self.client = client
        self.care = care
        self.known: dict[tuple[str, ...], dict[str, Any]] = {}
        self.searches = offers(draft.tools, "search_loans")

    def _row(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """What a getter gives; it is called once for each thing."""
        key = (tool, *arguments.values())
        if key not in self.known:
            self.known[key] = self.client.call(tool, **arguments).rows[0]
        return self.known[key]

    def _plan(self, answer: str) -> Plan:
        return Plan(calls=tuple(self.client.calls), answer=answer)

    def find(self) -> Plan:
        """Slips: does not mind the author, or the copy's state."""
        title = self.request.titles[0]
        any_author, any_state = self.care.slips(), self.care.slips()
        copies: list[str] = []
        if self.searches:
            rows = self.client.call("search_catalogue", title=title).rows
            copies = [row["copy"] for row in rows if any_author or row["author"] == self.request.author]
        else:
            for title_id in self.client.values("find_titles", title=title):
                if any_author or self._row("get_title", title_id=title_id)["author"] == self.request.author:
                    copies += read_pages(self.client, "list_copies", title_id=title_id)
        found = {copy: self._row("get_copy", copy=copy) for copy in copies}
        copy = next(key for key, row in found.items() if any_state or row["state"] == "shelved")
        return self._plan(json.dumps([{"copy": copy, "branch": found[copy]["branch"]}]))

    def _loans(self) -> list[tuple[str, dict[str, Any]]]:
        """The loans that are meant, each with its record; a slip takes any of the member's."""
        if self.request.loans:
            return [(loan, self._row("get_loan", loan=loan)) for loan in self.request.loans]
        if self.searches:
            rows = self.client.call("search_loans", name=self.request.name).rows
            titles = {row["loan"]: row["title"] for row in rows}
        else:
            member_id = self.client.values("find_member_id", name=self.request.name)[0]
            titles = {}
            for loan in read_pages(self.client, "list_loans", member_id=member_id):
                copy = self._row("get_loan", loan=loan)["copy"]
                title_id = self._row("get_copy", copy=copy)["title_id"]
                titles[loan] = self._row("get_title", title_id=title_id)["title"]
        meant = [loan for loan, title in titles.items() if title in self.request.titles]
        if self.care.slips():
            meant = [self.care.rng.choice(list(titles))]
        return [(loan, self._row("get_loan", loan=loan)) for loan in meant]

    def _queue(self, copy: str) -> list[tuple[str, int]]:
        """The holds that wait for the copy's title, with their members' fines."""
        title_id = self._row("get_copy", copy=copy)["title_id"]
        if self.searches:
            rows = self.client.call("search_holds", title_id=title_id).rows
            return [(row["hold"], row["fines"]) for row in rows]
        found = []
        for hold in self.client.values("list_holds", title_id=title_id):
            member_id = self._row("get_hold", hold=hold)["member_id"]
            found.append((hold, self._row("get_member", member_id=member_id)["fines"]))
        return found

    def renew(self) -> Plan:
        """A slip decides the other way."""
        ((key, row),) = self._loans()
        fines = self._row("get_member", member_id=row["member_id"])["fines"]
        loan = Loan(loan=key, due=0, **row)
        waiting = len(self._queue(loan.copy))
        allowed = may_renew(loan, num_waiting=waiting, fines=fines, fine_limit=self.request.fine_limit)
        if allowed == self.care.slips():
            return self._plan("refused")
        self.client.call("renew_loan", loan=key)
        return self._plan("done")

    def take_back(self) -> Plan:
        """Slips: charges or spares against the rules, serves the first in the queue whatever the fines."""
        for key, row in self._loans():
            loan = Loan(loan=key, due=0, **row)
            kind = self._row("get_member", member_id=loan.member_id)["kind"]
            charge = is_charged(loan.days_late, kind) != self.care.slips()
            queue = self._queue(loan.copy)
            limit = 1_000_000 if self.care.slips() else self.request.fine_limit
            goes_to = next((hold for hold, fines in queue if fines < limit), SHELF)
            for call in _return_moves(loan, charge=charge, goes_to=goes_to):
                self.client.call(call.tool, **call.arguments)
        return self._plan("done")


DOMAIN = LibraryDomain()

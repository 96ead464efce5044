"""The world of the library domain, the house rules as functions, and what a member may ask for."""

import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from envs.world import Table
from synthesis.domains.names import FIRST_NAMES, LAST_NAMES

MAX_RENEWALS = 2
GRACE_DAYS = 3
BRANCHES = ("Harbour", "Hillside", "Market", "Station")
_FIRST_WORDS = ("Amber", "Broken", "Distant", "Hidden", "Northern", "Quiet", "Silver", "Winter")
_SECOND_WORDS = ("Bridges", "Gardens", "Harvest", "Letters", "Orchards", "Rivers", "Shores", "Voices")
_AUTHORS = ("Almeida", "Barrow", "Calloway", "Demir", "Eskola", "Fontaine", "Grimaldi", "Halvorsen")
READ_FIRST = "Open a loan with get_loan before you renew it, close it or refuse."


@dataclass(frozen=True, kw_only=True, slots=True)
class Loan:
    loan: str
    member_id: str
    copy: str
    due: int
    days_late: int
    renewals: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Hold:
    """place: its place in the queue for the title, from 1."""

    hold: str
    member_id: str
    title_id: str
    place: int


@dataclass(frozen=True, kw_only=True, slots=True)
class LibraryWorld:
    """members: id to (name, kind, fines). titles: id to (title, author). copies: id to (title_id, branch,
    state). The first member is the one who asks.
    """

    members: dict[str, tuple[str, str, int]]
    titles: dict[str, tuple[str, str]]
    copies: dict[str, tuple[str, str, str]]
    loans: dict[str, Loan]
    holds: dict[str, Hold]
    fine_limit: int

    def queue(self, copy: str) -> list[Hold]:
        title_id = self.copies[copy][0]
        return sorted((h for h in self.holds.values() if h.title_id == title_id), key=lambda hold: hold.place)

    def title_of(self, loan: str) -> str:
        return self.titles[self.copies[self.loans[loan].copy][0]][0]

    def tables(self) -> tuple[Table, ...]:
        loans = [
            (x.loan, x.member_id, x.copy, x.due, x.days_late, x.renewals, "open") for x in self.loans.values()
        ]
        holds = [(h.hold, h.member_id, h.title_id, h.place, "waiting") for h in self.holds.values()]
        return (
            _table("members", "member_id name kind fines:", ((k, *row) for k, row in self.members.items())),
            _table("titles", "title_id title author", ((k, *row) for k, row in self.titles.items())),
            _table(
                "copies", "copy title_id branch state held_for",
                ((k, *row, "nobody") for k, row in self.copies.items()),
            ),
            _table("loans", "loan member_id copy due: days_late: renewals: state", loans),
            _table("holds", "hold member_id title_id place: state", holds),
        )  # fmt: skip


def _table(name: str, columns: str, rows: Iterable[tuple[object, ...]]) -> Table:
    """columns: their names, those of integers with a colon."""
    kinds = ((c.removesuffix(":"), "INTEGER" if c.endswith(":") else "TEXT") for c in columns.split())
    return Table(name=name, columns=tuple(kinds), rows=sorted(rows, key=lambda row: str(row[0])))


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What is asked for, as the prompt says it. loans: empty where name and titles say which."""

    action: Literal["find", "renew", "return"]
    name: str
    titles: tuple[str, ...]
    author: str
    loans: tuple[str, ...]
    fine_limit: int


def policy_text(request: Request) -> str:
    if request.action == "find":
        return (
            "You help the readers of a library with the tools.\n"
            "Several books may share a title; the author tells them apart. A copy can be taken home only "
            "while "
            "it is shelved.\n"
            "Answer with a JSON list of one object with the keys copy (its id) and branch."
        )
    opening = f"You keep the loans of a library with the tools.\n{READ_FIRST}\n"
    if request.action == "renew":
        return (
            f"{opening}A loan may be renewed once for each request, and only if it has been renewed fewer "
            "than "
            f"{MAX_RENEWALS} times, is not late, nobody waits for the title, and the member's fines are "
            "below "
            f"{request.fine_limit}.\n"
            "If a request is against these rules, change nothing and answer refused. Else do it and answer "
            "done."
        )
    return (
        f"{opening}When a copy comes back, close its loan.\n"
        f"If it is late, charge the member for the late days; students are not charged for {GRACE_DAYS} days "
        "or fewer.\n"
        f"Then keep the copy for the first in the queue whose fines are below {request.fine_limit}: the "
        "others "
        "keep their place and wait. If nobody is left, shelve it.\n"
        "Do this for each copy, then answer done. If a copy is not on loan to the member who brings it, "
        "change "
        "nothing and answer refused."
    )


def may_renew(loan: Loan, *, num_waiting: int, fines: int, fine_limit: int) -> bool:
    return loan.renewals < MAX_RENEWALS and loan.days_late == 0 and num_waiting == 0 and fines < fine_limit


def is_charged(days_late: int, kind: str) -> bool:
    return days_late > (GRACE_DAYS if kind == "student" else 0)


def draw_world(rng: random.Random, level: int) -> LibraryWorld:
    """Two titles (at level 1 three, of which two share a name but not an author) with some copies each. The
    first member has borrowed a copy of each of the first two, others what is left of them.
    """
    words = [f"{a} {b}" for a in _FIRST_WORDS for b in _SECOND_WORDS]
    size = 3 if level <= 2 else 2
    names = rng.sample(words, size)
    if level == 1:
        names[1] = names[0]
    authors: list[str] = rng.sample(_AUTHORS, size)
    title_ids = [f"T{n}" for n in rng.sample(range(100, 1000), size)]
    titles = dict(zip(title_ids, zip(names, authors, strict=True), strict=True))
    num_copies = [rng.randrange(3, 6) if level == 1 else rng.randrange(2, 4) for _ in title_ids]
    numbers = iter(rng.sample(range(100, 1000), sum(num_copies)))
    copies: dict[str, tuple[str, str, str]] = {
        f"C{next(numbers)}": (title_id, rng.choice(BRANCHES), rng.choice(("shelved", "lent", "repair")))
        for title_id, count in zip(title_ids, num_copies, strict=True)
        for _ in range(count)
    }
    people = zip(rng.sample(FIRST_NAMES, 4), rng.sample(LAST_NAMES, 4), strict=True)
    members = {
        f"M{n}": (f"{first} {last}", rng.choice(("adult", "student")), rng.randrange(0, 16))
        for n, (first, last) in zip(rng.sample(range(100, 1000), 4), people, strict=True)
    }
    loans = _draw_loans(rng, list(members), copies, title_ids, level)
    for loan in loans.values():
        copies[loan.copy] = (*copies[loan.copy][:2], "lent")
    return LibraryWorld(
        members=members,
        titles=titles,
        copies=copies,
        loans=loans,
        holds=_draw_holds(rng, list(members)[1:], title_ids, level),
        fine_limit=rng.choice((6, 8, 10, 12)),
    )


def _draw_loans(
    rng: random.Random,
    members: list[str],
    copies: dict[str, tuple[str, str, str]],
    title_ids: list[str],
    level: int,
) -> dict[str, Loan]:
    by_title = [[copy for copy, row in copies.items() if row[0] == title_id] for title_id in title_ids]
    borrowed = [(members[0], by_title[0][0]), (members[0], by_title[1][0])]
    borrowed += [(member, by_title[index][1]) for index, member in enumerate(members[1:3])]
    numbers = rng.sample(range(100, 1000), len(borrowed))
    loans = {}
    for number, (member_id, copy) in zip(numbers, borrowed, strict=True):
        late = rng.choice((0, 0, 1, 2, 3, 4, 5, 9) if level >= 4 else (0, 0, 0, 0, 2, 5))
        loans[f"L{number}"] = Loan(
            loan=f"L{number}",
            member_id=member_id,
            copy=copy,
            due=100 - late if late else rng.randrange(101, 121),
            days_late=late,
            renewals=rng.choice((0, 0, 1, 2)),
        )
    return loans


def _draw_holds(rng: random.Random, members: list[str], title_ids: list[str], level: int) -> dict[str, Hold]:
    holds = {}
    for title_id in title_ids:
        size = rng.randrange(1, 3) if level >= 4 else rng.choice((0, 0, 1, 2))
        numbers = rng.sample(range(100, 1000), size)
        for place, (number, member_id) in enumerate(
            zip(numbers, rng.sample(members, size), strict=True), start=1
        ):
            hold = Hold(hold=f"H{title_id[1:]}{number}", member_id=member_id, title_id=title_id, place=place)
            holds[hold.hold] = hold
    return holds


def draw_request(rng: random.Random, world: LibraryWorld, level: int) -> Request:
    """About the first member's loans: one of them, or both at level 5."""
    own = sorted(loan.loan for loan in world.loans.values() if loan.member_id == next(iter(world.members)))
    meant = own if level == 5 else [rng.choice(own)]
    title, author = next(iter(world.titles.values()))
    return Request(
        action="find" if level == 1 else "renew" if level < 4 else "return",
        name=next(iter(world.members.values()))[0],
        titles=(title,) if level == 1 else tuple(world.title_of(loan) for loan in meant),
        author=author,
        loans=tuple(meant) if level == 2 else (),
        fine_limit=world.fine_limit,
    )


def prompt_text(rng: random.Random, request: Request) -> str:
    books = " and ".join(f'"{title}"' for title in request.titles)
    if request.action == "find":
        ask = rng.choice(("Where can I pick up {} by {} today?", "Which branch has {} by {} on the shelf?"))
        return ask.format(books, request.author) + " Please tell me the copy too."
    opening = rng.choice(("Hello, I am {}.", "This is {}.", "{} here.")).format(request.name)
    if request.action == "renew":
        wish = rng.choice(("Please renew {}.", "I would like to keep {} for longer.", "Can you extend {}?"))
        return f"{opening} {wish.format(f'loan {request.loans[0]}' if request.loans else books)}"
    back = rng.choice(("I have brought back {}.", "I would like to hand {} back.", "I am returning {}."))
    return f"{opening} {back.format(books)}"

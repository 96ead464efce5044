"""The tools of the library domain: catalogue, members, loans and holds to read, loans and copies to write."""

from envs.tools import Param, Tool, Write
from synthesis.surface import AFTER, SURFACES, Surface, exists, page_of

LATE_RATE = 2
"""What a late day costs."""
_TITLE_ID = Param(name="title_id", description="The title's id.")
_COPY = Param(name="copy", description="The copy's id.")
_LOAN = Param(name="loan", description="The loan's id.")
_HOLD = Param(name="hold", description="The hold's id.")
_MEMBER = Param(name="member_id", description="The member's id.")
_NAME = Param(name="name", description="First and last name.")
_TITLE = Param(name="title", description="The book's title.")


def _finding(surface: Surface) -> tuple[Tool, ...]:
    """How the catalogue, a member's loans and a title's holds are found: what the granularity changes."""
    if surface.search:
        return (
            _query(
                "search_catalogue", "The copies of the books with this title.", (_TITLE,),
                "SELECT t.title_id, t.author, c.copy, c.branch FROM titles t "
                "JOIN copies c ON c.title_id = t.title_id WHERE t.title = :title ORDER BY c.copy",
                "{title_id} by {author}: copy {copy}, {branch}", ("copies", "titles"),
            ),
            _query(
                "search_loans", "The open loans of the member with this name.", (_NAME,),
                "SELECT l.loan, l.copy, t.title FROM loans l JOIN members m ON m.member_id = l.member_id "
                "JOIN copies c ON c.copy = l.copy JOIN titles t ON t.title_id = c.title_id "
                "WHERE m.name = :name AND l.state = 'open' ORDER BY l.loan",
                "{loan}: copy {copy} of {title}", ("copies", "loans", "members", "titles"),
            ),
            _query(
                "search_holds", "Who waits for a title, in the order of the queue.", (_TITLE_ID,),
                "SELECT h.hold, h.member_id, m.fines FROM holds h JOIN members m ON m.member_id = "
                "h.member_id "
                "WHERE h.title_id = :title_id AND h.state = 'waiting' ORDER BY h.place",
                "{hold}: {member_id}, fines {fines}", ("holds", "members"),
            ),
        )  # fmt: skip
    return (
        _query(
            "find_titles", "The ids of the books with this title.", (_TITLE,),
            "SELECT title_id FROM titles WHERE title = :title ORDER BY title_id", "{title_id}", ("titles",),
        ),
        _query(
            "list_copies", "The ids of a title's copies.", (_TITLE_ID, AFTER),
            page_of("copies", "copy", "title_id = :title_id"), "{copy}", ("copies",),
        ),
        _query(
            "find_member_id", "The id of the member with this name.", (_NAME,),
            "SELECT member_id FROM members WHERE name = :name", "{member_id}", ("members",),
        ),
        _query(
            "list_loans", "The ids of a member's open loans.", (_MEMBER, AFTER),
            page_of("loans", "loan", "member_id = :member_id AND state = 'open'"), "{loan}", ("loans",),
        ),
        _query(
            "list_holds", "The holds that wait for a title, in the order of the queue.", (_TITLE_ID,),
            "SELECT hold FROM holds WHERE title_id = :title_id AND state = 'waiting' ORDER BY place",
            "{hold}", ("holds",),
        ),
    )  # fmt: skip


def _query(
    name: str,
    description: str,
    parameters: tuple[Param, ...],
    sql: str,
    row: str,
    reads: tuple[str, ...],
) -> Tool:
    return Tool(
        name=name,
        description=description,
        parameters=parameters,
        query=sql,
        row_format=row,
        reads=reads,
    )


def _getter(surface: Surface, thing: str, key: Param, columns: str, row: str) -> Tool:
    table = f"{thing}s" if thing != "copy" else "copies"
    return Tool(
        name=f"get_{thing}",
        description=f"What is known of a {thing}.",
        parameters=(key,),
        requires=(exists(surface, thing, table, key.name),),
        query=f"SELECT {columns} FROM {table} WHERE {key.name} = :{key.name}",
        row_format=row,
        reads=(table,),
    )


def _update(table: str, *columns: str) -> Write:
    return Write(table=table, operation="update", columns=columns)


def _writes(surface: Surface) -> tuple[Tool, ...]:
    loan = exists(surface, "loan", "loans", "loan")
    copy = exists(surface, "copy", "copies", "copy")
    return (
        Tool(
            name="close_loan",
            description="Closes a loan whose copy came back.",
            parameters=(_LOAN,),
            requires=(loan,),
            statements=("UPDATE loans SET state = 'closed' WHERE loan = :loan",),
            done="closed",
            reads=("loans",),
            writes=(_update("loans", "state"),),
        ),
        Tool(
            name="charge_late",
            description=f"Charges a member {LATE_RATE} for each late day.",
            parameters=(_MEMBER, Param(name="days_late", description="For how many days.", type="integer")),
            requires=(exists(surface, "member", "members", "member_id"),),
            statements=(
                f"UPDATE members SET fines = fines + {LATE_RATE} * :days_late WHERE member_id = :member_id",
            ),
            done="charged",
            reads=("members",),
            writes=(_update("members", "fines"),),
        ),
        Tool(
            name="shelve_copy",
            description="Puts a copy back on the shelf.",
            parameters=(_COPY,),
            requires=(copy,),
            statements=("UPDATE copies SET state = 'shelved' WHERE copy = :copy",),
            done="shelved",
            reads=("copies",),
            writes=(_update("copies", "state"),),
        ),
        Tool(
            name="reserve_copy",
            description="Keeps a copy for the member who holds.",
            parameters=(_COPY, _HOLD),
            requires=(copy, exists(surface, "hold", "holds", "hold")),
            statements=(
                "UPDATE copies SET state = 'reserved', held_for = (SELECT member_id FROM holds "
                "WHERE hold = :hold) WHERE copy = :copy",
                "UPDATE holds SET state = 'ready' WHERE hold = :hold",
            ),
            done="reserved",
            reads=("copies", "holds"),
            writes=(_update("copies", "held_for", "state"), _update("holds", "state")),
        ),
        Tool(
            name="renew_loan",
            description="Renews a loan by 14 days.",
            parameters=(_LOAN,),
            requires=(loan,),
            statements=("UPDATE loans SET renewals = renewals + 1, due = due + 14 WHERE loan = :loan",),
            done="renewed",
            reads=("loans",),
            writes=(_update("loans", "due", "renewals"),),
        ),
    )


def _toolset(surface: Surface) -> tuple[Tool, ...]:
    late, fines = surface.word("days late", "overdue days"), surface.word("fines", "owes")
    return (
        *_finding(surface),
        _getter(surface, "title", _TITLE_ID, "title, author", "{title} by {author}"),
        _getter(surface, "copy", _COPY, "title_id, branch, state", "title {title_id}; {branch}; {state}"),
        _getter(
            surface, "loan", _LOAN, "member_id, copy, days_late, renewals",
            f"member {{member_id}}; copy {{copy}}; {{days_late}} {late}; renewed {{renewals}} times",
        ),
        _getter(
            surface, "hold", _HOLD, "member_id, title_id, state", "{member_id} waits for {title_id}; {state}"
        ),
        _getter(surface, "member", _MEMBER, "name, kind, fines", f"{{name}}; {{kind}}; {fines} {{fines}}"),
        *_writes(surface),
    )  # fmt: skip


TOOLSETS = tuple(_toolset(surface) for surface in SURFACES)

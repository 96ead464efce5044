"""How a world shows itself: what a domain draws beside its content, so that no agent learns one tool list.

Three things vary: the granularity of the reads (one search with filters that gives whole records, or a list
of ids in pages and a getter for each), the style of errors, and the names under which fields are shown. A
domain makes one list of tools a `Surface` and lists them as its `toolsets`; a draft draws one of them. The
planner must work with what it got: `read_pages` turns pages, `offers` says which tools there are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from envs.tools import Param, Requirement, Tool
from synthesis.grammar import Client

PAGE_ROWS = 4
FROM_THE_START = "-"
"""Stands before every letter and digit, so that `id > '-'` is true of each id."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Surface:
    search: bool
    """True: searches that give whole records. False: lists of ids in pages of `PAGE_ROWS`, and getters."""
    coded: bool
    """Errors begin with a code, and some fields are shown under another name."""

    def missing(self, thing: str, parameter: str) -> str:
        """The error for a `parameter` that names no `thing` of the world."""
        if self.coded:
            return f"E404 {parameter} {{{parameter}}}: not found"
        return f"error: there is no {thing} {{{parameter}}}"

    def refusal(self, why: str) -> str:
        """The error for a call that the caller may not make."""
        return f"E403 {why}" if self.coded else f"error: {why}"

    def word(self, plain: str, other: str) -> str:
        """The name under which a field is shown."""
        return other if self.coded else plain


SURFACES = tuple(Surface(search=search, coded=coded) for search in (False, True) for coded in (False, True))


def exists(surface: Surface, thing: str, table: str, column: str) -> Requirement:
    """The call's parameter of the column's name must be a key of `table`."""
    return Requirement(
        sql=f"SELECT 1 FROM {table} WHERE {column} = :{column}", error=surface.missing(thing, column)
    )


AFTER = Param(
    name="after",
    description=f"Gives at most {PAGE_ROWS}, those after this one; {FROM_THE_START} for the first.",
)


def page_of(table: str, column: str, where: str) -> str:
    """A query for one page of keys, in their order: those after `:after`."""
    return (
        f"SELECT {column} FROM {table} WHERE {where} AND {column} > :after"
        f" ORDER BY {column} LIMIT {PAGE_ROWS}"
    )


def read_pages(client: Client, tool: str, **arguments: Any) -> list[str]:
    """Every key that a paged tool lists: turns pages until one is not full."""
    found: list[str] = []
    while True:
        page = client.values(tool, after=found[-1] if found else FROM_THE_START, **arguments)
        found += page
        if len(page) < PAGE_ROWS:
            return found


def offers(tools: Sequence[Tool], name: str) -> bool:
    return any(tool.name == name for tool in tools)

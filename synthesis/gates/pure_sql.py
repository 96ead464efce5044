"""SQL whose result depends on anything but the world, the journal and the answer: clocks, chance, the
connection.

Such a tool or clause gives another result when it is played or graded again, so the same episode would have
two verdicts.
"""

import re
from collections.abc import Iterator
from functools import lru_cache

from envs.task import Task

_STRING = re.compile(r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|`[^`]*`|\[[^\]]*\]|--[^\n]*|/\*.*?\*/""", re.DOTALL)
_DATES = r"date|time|datetime|julianday|unixepoch|strftime|timediff"
_IMPURE = re.compile(
    r"\b(?:random|randomblob|changes|total_changes|last_insert_rowid|sqlite_version|sqlite_source_id)\s*\("
    r"|\bcurrent_(?:date|time|timestamp)\b",
    re.IGNORECASE,
)
_CLOCK = re.compile(
    rf"\b(?:(?:{_DATES})\s*\(\s*\)|strftime\s*\(\s*''\s*\)|(?:{_DATES})\s*\([^()]*'now')", re.IGNORECASE
)


@lru_cache(maxsize=4096)
def impure(sql: str) -> str | None:
    """What in the SQL depends on the clock, on chance or on the connection; None when nothing does."""
    code = _STRING.sub(_shortened, sql)
    found = _IMPURE.search(code) or _CLOCK.search(code)
    return None if found is None else " ".join(found[0].split())


def _shortened(found: re.Match[str]) -> str:
    """A string or a quoted name without its content, but for the word that SQLite takes for the clock."""
    text = found[0]
    if text.startswith(("--", "/*")):
        return " "
    return "'now'" if text[1:-1].strip().lower() == "now" else "''"


def sql_of(task: Task) -> Iterator[tuple[str, str]]:
    """(where, SQL) of everything that the task has the database run."""
    for clause in task.clauses:
        yield f"clause {clause.name}", clause.sql
    for tool in task.tools:
        statements = [*(need.sql for need in tool.requires), *tool.statements]
        for sql in (*statements, *([tool.query] if tool.query is not None else [])):
            yield f"tool {tool.name}", sql

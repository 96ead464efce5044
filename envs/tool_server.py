"""Runs tool calls against a task's world and keeps the hash-chained journal of them.

The world is a private in-memory database. SQL from a task file is data from outside: an authorizer lets
through only reads and writes of the world's own tables and pure functions (no ATTACH, PRAGMA, VACUUM INTO or
extension), and a step budget ends a query that runs away.
"""

import json
import math
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from envs.task import Call, canonical_json, digest
from envs.tools import Tool, Write, argument_error, render_rows
from envs.world import load_image, open_image, state_hash

MAX_SQL_STEPS: Final = 2_000_000
MAX_RESULT_CHARS: Final = 20_000
_ALLOWED_ACTIONS: Final = frozenset(
    {
        sqlite3.SQLITE_SELECT,
        sqlite3.SQLITE_READ,
        sqlite3.SQLITE_FUNCTION,
        sqlite3.SQLITE_INSERT,
        sqlite3.SQLITE_UPDATE,
        sqlite3.SQLITE_DELETE,
        sqlite3.SQLITE_TRANSACTION,
        sqlite3.SQLITE_RECURSIVE,
    }
)
_FORBIDDEN_FUNCTIONS: Final = frozenset(
    {"load_extension", "readfile", "writefile", "random", "randomblob", "fts3_tokenizer", "edit", "zeroblob"}
)
GENESIS: Final = "0" * 64


@dataclass(frozen=True, kw_only=True, slots=True)
class JournalEntry:
    """One call. `chain` hashes the entry together with the chain before it."""

    step: int
    tool: str
    arguments: str
    """Canonical JSON."""
    result: str
    error: bool
    chain: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Observation:
    """What a call gives back: the agent reads `text`; `rows` are the query's rows, for planners."""

    text: str
    error: bool
    rows: tuple[dict[str, Any], ...] = ()


def plain_call(call: Call) -> Call:
    """The call as the journal can hold it and any clause can read it, whatever an agent sent.

    A value that no parameter type has (a list, NaN) becomes null, which every tool refuses; a lone surrogate,
    which is no text, becomes its escape.
    """
    arguments = {_storable(str(name)): _plain_value(value) for name, value in call.arguments.items()}
    tool = _storable(call.tool)
    same = tool == call.tool and all(arguments.get(name) is value for name, value in call.arguments.items())
    return call if same else Call(tool=tool, arguments=arguments)


def _plain_value(value: object) -> object:
    if isinstance(value, str):
        return _storable(value)
    is_plain = isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value))
    return value if is_plain else None


def _storable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode()
    return text


def chain_hash(previous: str, step: int, tool: str, arguments: str, result: str, error: bool) -> str:
    return digest(previous, str(step), tool, arguments, result, str(int(error)))


def authorize(action: int, first: str | None, second: str | None, *_: object) -> int:
    """SQLite authorizer for SQL that came in a task file."""
    if action not in _ALLOWED_ACTIONS:
        return sqlite3.SQLITE_DENY
    if action == sqlite3.SQLITE_FUNCTION and (second or "").lower() in _FORBIDDEN_FUNCTIONS:
        return sqlite3.SQLITE_DENY
    writes = action in (sqlite3.SQLITE_INSERT, sqlite3.SQLITE_UPDATE, sqlite3.SQLITE_DELETE)
    if writes and (first or "").lower().startswith("sqlite_"):
        return sqlite3.SQLITE_DENY
    return sqlite3.SQLITE_OK


def guard(db: sqlite3.Connection, *, with_json: bool = True) -> None:
    """Puts a connection under the authorizer and the step budget. with_json: its SQL may use `json_each`."""
    if with_json:  # SQLite builds this table at first use, which must be before the guard
        db.execute("SELECT 1 FROM json_each('[]')").fetchall()
    db.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
    db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 4_000_000)
    db.set_authorizer(authorize)
    limit_steps(db)


def limit_steps(db: sqlite3.Connection) -> None:
    budget = MAX_SQL_STEPS // 10_000

    def spend() -> int:
        nonlocal budget
        budget -= 1
        return int(budget < 0)

    db.set_progress_handler(spend, 10_000)


def _sql_of(tool: Tool) -> Iterator[str]:
    yield from tool.statements
    yield from (requirement.sql for requirement in tool.requires)
    if tool.query is not None:
        yield tool.query


class ToolServer:
    """One episode's world and journal. Not shared between episodes; `close` frees it."""

    def __init__(self, image: bytes, tools: Sequence[Tool]) -> None:
        self._tools = {tool.name: tool for tool in tools}
        self.journal: list[JournalEntry] = []
        self.db = open_image(image)
        in_tools = any("json" in sql.lower() for tool in tools for sql in _sql_of(tool))
        self._with_json = in_tools or b"json" in image.lower()  # a view of the world may use it, too
        guard(self.db, with_json=self._with_json)

    def restart(self, image: bytes) -> None:
        """Begins another episode at `image`, a later state of the same world, as a new server would."""
        self.journal = []
        if self._with_json:  # SQLite 3.40 crashes where json_each meets another image on one connection
            self.db.close()
            self.db = open_image(image)
            guard(self.db)
        else:
            self.db.set_authorizer(None)
            load_image(self.db, image, schema="main")
            guard(self.db, with_json=False)

    def call(self, call: Call) -> Observation:
        """Runs one call and writes it into the journal.

        A call that cannot run (unknown tool, wrong arguments, requirement not met, SQL fault) changes nothing
        and is an observation with `error` set; it never raises for what an agent sent.
        """
        call = plain_call(call)
        observation = self._run(call)
        arguments = canonical_json(call.arguments)
        step = len(self.journal)
        previous = self.journal[-1].chain if self.journal else GENESIS
        chain = chain_hash(previous, step, call.tool, arguments, observation.text, observation.error)
        self.journal.append(
            JournalEntry(
                step=step,
                tool=call.tool,
                arguments=arguments,
                result=observation.text,
                error=observation.error,
                chain=chain,
            )
        )
        return observation

    def _run(self, call: Call) -> Observation:
        tool = self._tools.get(call.tool)
        if tool is None:
            return Observation(text=f"error: no tool {call.tool[:80]!r}", error=True)
        if (fault := argument_error(tool, call.arguments)) is not None:
            return Observation(text=fault, error=True)
        try:
            return self._execute(tool, call.arguments)
        except (sqlite3.Error, UnicodeEncodeError, OverflowError) as error:
            return Observation(text=f"error: {tool.name} failed: {type(error).__name__}", error=True)

    def _execute(self, tool: Tool, arguments: dict[str, Any]) -> Observation:
        for requirement in tool.requires:
            if self.db.execute(requirement.sql, arguments).fetchone() is None:
                return Observation(text=requirement.error.format_map(arguments), error=True)
        if tool.statements:
            self._write(tool.statements, arguments)
        if tool.query is None:
            return Observation(text=tool.done, error=False)
        cursor = self.db.execute(tool.query, arguments)
        names = [column[0] for column in cursor.description]
        rows = [dict(zip(names, row, strict=True)) for row in cursor.fetchmany(1000)]
        text = render_rows(tool, rows)
        if len(text) > MAX_RESULT_CHARS:
            text = text[:MAX_RESULT_CHARS] + f" [cut: {len(text) - MAX_RESULT_CHARS} characters]"
        return Observation(text=text, error=False, rows=tuple(rows))

    def _write(self, statements: Sequence[str], arguments: dict[str, Any]) -> None:
        self.db.execute("BEGIN")
        try:
            for statement in statements:
                self.db.execute(statement, arguments)
        except BaseException:
            self.db.execute("ROLLBACK")
            raise
        self.db.execute("COMMIT")

    def state_hash(self) -> str:
        self.db.set_authorizer(None)
        try:
            return state_hash(self.db)
        finally:
            self.db.set_authorizer(authorize)

    def snapshot(self) -> bytes:
        """The live database as an image."""
        return self.db.serialize()

    def close(self) -> None:
        self.db.close()


def replay(server: ToolServer, journal: Sequence[JournalEntry]) -> None:
    """Makes the journal's calls again on a fresh server. Raises ValueError for an entry that no call can have
    left.
    """
    for entry in journal:
        server.call(Call(tool=entry.tool, arguments=json.loads(entry.arguments)))


def observe_effects(image: bytes, tool: Tool, arguments: dict[str, Any]) -> tuple[set[str], set[Write]]:
    """The tables that a call reads and the writes that it makes, as SQLite itself reports them."""
    server = ToolServer(image, [tool])
    reads: set[str] = set()
    updated: dict[str, set[str]] = {}
    whole: set[Write] = set()

    def watch(action: int, first: str | None, second: str | None, *rest: object) -> int:
        if action == sqlite3.SQLITE_READ and first:
            reads.add(first)
        elif action == sqlite3.SQLITE_UPDATE and first and second:
            updated.setdefault(first, set()).add(second)
        elif action == sqlite3.SQLITE_INSERT and first:
            whole.add(Write(table=first, operation="insert"))
        elif action == sqlite3.SQLITE_DELETE and first:
            whole.add(Write(table=first, operation="delete"))
        return authorize(action, first, second, *rest)

    server.db.set_authorizer(watch)
    server.call(Call(tool=tool.name, arguments=arguments))
    server.close()
    updates = {
        Write(table=table, operation="update", columns=tuple(sorted(columns)))
        for table, columns in updated.items()
    }
    return {name for name in reads if not name.startswith("json_")}, whole | updates

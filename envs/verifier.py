"""Grades an episode: goal and frame and policy and answer, over what the episode left behind.

The verifier sees the first snapshot, the last one, the journal and the final answer, and runs no agent code.
It first plays the journal again: a last snapshot that the journal's calls do not produce is tampering. Every
part must hold; a part that could not be measured raises `GraderError` and is never a score.
"""

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Self

from envs.task import AnswerSpec, FrameRule, Task
from envs.tool_server import GENESIS, JournalEntry, ToolServer, authorize, chain_hash, limit_steps, replay
from envs.world import columns_of, load_image, state_hash

MAX_ANSWER_CHARS = 20_000
_OWN = "/* the grader's own */"
"""Keeps these statements apart from a clause of the same text in the statement cache."""


class GraderError(RuntimeError):
    """The verifier itself could not run; the episode is not measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Episode:
    """What an episode left behind, as the verifier sees it."""

    initial: bytes
    final: bytes
    journal: tuple[JournalEntry, ...]
    answer: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """score is 1.0 when every part holds, else 0.0. `reason` names the first thing that does not hold,
    `faults` all that were found.
    """

    score: float
    goal: bool
    frame: bool
    policy: bool
    answer: bool
    tampering: bool
    reason: str
    faults: tuple[str, ...] = ()


def judge(task: Task, episode: Episode) -> Verdict:
    """Grades `episode` under `task`. Raises GraderError when a clause cannot be evaluated."""
    return judge_answers(task, episode, [episode.answer])[0]


def judge_answers(task: Task, episode: Episode, answers: Sequence[str]) -> list[Verdict]:
    """Grades one play under each of several final answers, as `judge` would, with one replay for all."""
    with _Replay(task, episode) as again:
        fault = again.fault or again.state_fault(episode.final)
    if fault is not None:
        return [_failed(tampering=True, reason=f"tampering: {fault}") for _ in answers]
    return grade_answers(task, episode, answers)


def grade_answers(task: Task, episode: Episode, answers: Sequence[str]) -> list[Verdict]:
    """Goal, frame, policy and answer alone, for a play whose journal and snapshot come from the caller's own
    server.

    What an agent's side had in its hands goes through `judge`, which plays the journal again first.
    """
    grader = Grader(task, episode.initial)
    try:
        return grader.grade_play(episode, answers)
    finally:
        grader.close()


class Grader:
    """Evaluates a task's parts over any number of plays that begin at `initial`; `close` frees it.

    One connection holds the final tables as main, `initial`, and the temporary tables `journal` and `answer`.
    """

    def __init__(self, task: Task, initial: bytes) -> None:
        self._task = task
        self._initial = initial
        self._strays: list[str] = []
        self._known: dict[str, _Known] = {}
        self._loaded: bytes | None = None
        """The last snapshot that main holds: no clause can write, so it stays what it is."""
        self._db = sqlite3.connect(":memory:", isolation_level=None)
        self._db.execute("ATTACH ':memory:' AS initial")
        try:
            load_image(self._db, initial, schema="initial")
        except ValueError as error:
            raise GraderError(f"task {task.task_id}: {error}") from error
        self._db.execute(
            "CREATE TEMP TABLE journal (step INTEGER, tool TEXT, arguments TEXT, result TEXT, error INTEGER)"
        )
        names = ", ".join(f'"{column}" TEXT' for column in _answer_columns(task.answer))
        self._db.execute(f'CREATE TEMP TABLE answer ("row" INTEGER, {names})')
        self._is_own_statement = False
        self._db.set_authorizer(self._authorize)

    def close(self) -> None:
        self._db.close()

    def grade_play(self, episode: Episode, answers: Sequence[str]) -> list[Verdict]:
        """The verdict for each of several final answers after the same play."""
        assert episode.initial == self._initial, "a grader serves plays of one world"
        entries = [(e.step, e.tool, e.arguments, e.result, int(e.error)) for e in episode.journal]
        with self._own_statements():
            if episode.final != self._loaded:
                self._load(episode.final)
            self._db.execute(f"DELETE FROM temp.journal {_OWN}")
            self._db.executemany(f"INSERT INTO temp.journal VALUES (?, ?, ?, ?, ?) {_OWN}", entries)
        return [self._grade(answer) for answer in answers]

    def _load(self, final: bytes) -> None:
        self._loaded = None
        try:
            load_image(self._db, final, schema="main")
        except ValueError as error:  # `judge` has found a damaged one before
            raise GraderError(f"task {self._task.task_id}: last snapshot: {error}") from error
        is_new = final != self._initial
        self._strays = _stray_changes(self._db, self._task.frame, self._known) if is_new else []
        self._loaded = final

    def _grade(self, answer: str) -> Verdict:
        rows = parse_answer(self._task.answer, answer)
        if rows is None:
            form = self._task.answer.kind
            return _failed(answer=False, reason=f"answer: not of the form that the task asks for ({form})")
        self._fill_answer(rows)
        limit_steps(self._db)
        violated = [
            clause for clause in self._task.clauses if _is_violated(self._db, clause.name, clause.sql)
        ]
        broken = {clause.part for clause in violated}
        reasons = [f"frame: {stray}" for stray in self._strays]
        reasons += [f"{clause.part}: {clause.name}" for clause in violated]
        return Verdict(
            score=0.0 if reasons else 1.0,
            goal="goal" not in broken,
            frame=not self._strays,
            policy="policy" not in broken,
            answer="answer" not in broken,
            tampering=False,
            reason=reasons[0] if reasons else "all parts hold",
            faults=tuple(reasons),
        )

    def accepts(self, sql: str) -> bool:
        """Whether a clause of this SQL can judge the play and the answer that were graded last."""
        limit_steps(self._db)
        try:
            self._db.execute(sql).fetchone()
        except sqlite3.Error:
            return False
        return True

    def _fill_answer(self, rows: list[dict[str, str]]) -> None:
        columns = _answer_columns(self._task.answer)
        marks = ", ".join("?" * (len(columns) + 1))
        values = [(index, *(row[column] for column in columns)) for index, row in enumerate(rows)]
        with self._own_statements():
            self._db.execute(f"DELETE FROM temp.answer {_OWN}")
            self._db.executemany(f"INSERT INTO temp.answer VALUES ({marks}) {_OWN}", values)

    @contextmanager
    def _own_statements(self) -> Iterator[None]:
        self._is_own_statement = True
        try:
            yield
        finally:
            self._is_own_statement = False

    def _authorize(self, action: int, *rest: str | None) -> int:
        """A clause reads; only the grader itself writes."""
        if self._is_own_statement:
            return sqlite3.SQLITE_OK
        if action in (sqlite3.SQLITE_INSERT, sqlite3.SQLITE_UPDATE, sqlite3.SQLITE_DELETE):
            return sqlite3.SQLITE_DENY
        return authorize(action, *rest)


def parse_answer(spec: AnswerSpec, answer: str) -> list[dict[str, str]] | None:
    """The answer's rows, or None when it is not of the form that the spec asks for."""
    if len(answer) > MAX_ANSWER_CHARS:
        return None
    if spec.kind == "choice":
        word = answer.strip().removesuffix(".").strip().lower()
        return [{"choice": word}] if word in spec.choices else None
    try:
        rows = json.loads(answer)
    except (ValueError, RecursionError):
        return None
    if not isinstance(rows, list) or len(rows) != spec.num_rows:
        return None
    for row in rows:
        if not isinstance(row, dict) or set(row) != set(spec.columns):
            return None
        if not all(isinstance(value, str) and _is_storable(value) for value in row.values()):
            return None
    return rows


def _is_storable(text: str) -> bool:
    """False for a lone surrogate, which SQLite cannot hold and which is no name of anything in a world."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _failed(*, reason: str, tampering: bool = False, answer: bool = True) -> Verdict:
    return Verdict(
        score=0.0,
        goal=False,
        frame=not tampering,
        policy=not tampering,
        answer=answer,
        tampering=tampering,
        reason=reason,
        faults=(reason,),
    )


def judge_snapshots(task: Task, episode: Episode, finals: Sequence[bytes]) -> list[Verdict]:
    """Grades the same journal and answer before each of several last snapshots, with one replay for all of
    them.
    """
    verdicts: list[Verdict] = []
    with _Replay(task, episode) as again:
        for final in finals:
            if (fault := again.fault or again.state_fault(final)) is not None:
                verdicts.append(_failed(tampering=True, reason=f"tampering: {fault}"))
            else:
                verdicts += grade_answers(task, replace(episode, final=final), [episode.answer])
    return verdicts


class _Replay:
    """The journal checked and played again. `fault`: how its chain or its results are not what they should
    be.
    """

    def __init__(self, task: Task, episode: Episode) -> None:
        self.fault = _chain_fault(episode.journal)
        self._state: str | None = None
        try:
            self._server = ToolServer(episode.initial, task.tools)
        except ValueError as error:
            raise GraderError(f"task {task.task_id}: {error}") from error
        if self.fault is None:
            self.fault = self._play(episode.journal)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.close()

    def _play(self, journal: Sequence[JournalEntry]) -> str | None:
        try:
            replay(self._server, journal)
        except (ValueError, RecursionError):
            return "a call cannot be read"
        for old, new in zip(journal, self._server.journal, strict=True):
            if old.chain != new.chain:
                return f"step {old.step} ({old.tool}) gives another result when played again"
        return None

    def state_fault(self, final: bytes) -> str | None:
        # Equal bytes are an equal state; other bytes may be one too, so then the content decides.
        if self._server.snapshot() == final:
            return None
        self._state = self._state or self._server.state_hash()
        if self._state == _image_state(final):
            return None
        return "the last snapshot is not what the journal's calls produce"


def _chain_fault(journal: Sequence[JournalEntry]) -> str | None:
    previous = GENESIS
    for step, entry in enumerate(journal):
        chain = chain_hash(previous, step, entry.tool, entry.arguments, entry.result, entry.error)
        if entry.step != step or entry.chain != chain:
            return f"the journal's chain breaks at step {step}"
        previous = chain
    return None


def _image_state(image: bytes) -> str | None:
    db = sqlite3.connect(":memory:", isolation_level=None)
    try:
        load_image(db, image, schema="main")
        return state_hash(db)
    except (ValueError, TypeError, sqlite3.DatabaseError):
        return None  # bytes that the agent's side damaged: equal to no state
    finally:
        db.close()


def _answer_columns(spec: AnswerSpec) -> tuple[str, ...]:
    return spec.columns if spec.kind == "rows" else ("choice",)


def _is_violated(db: sqlite3.Connection, name: str, sql: str) -> bool:
    try:
        return db.execute(sql).fetchone() is not None
    except sqlite3.Error as error:
        raise GraderError(f"clause {name}: {error}") from error


@dataclass(frozen=True, slots=True)
class _Known:
    """A table as it was at first: what every play is compared with."""

    columns: list[str]
    rows: list[tuple[Any, ...]]
    row_set: frozenset[tuple[Any, ...]]


def _known(db: sqlite3.Connection, table: str) -> _Known:
    rows = db.execute(f'SELECT * FROM initial."{table}"').fetchall()
    return _Known(columns_of(db, table, "initial"), rows, frozenset(rows))


def _stray_changes(db: sqlite3.Connection, frame: Sequence[FrameRule], known: dict[str, _Known]) -> list[str]:
    """Every change from initial to final that the frame does not name. known: the initial tables by name,
    kept for the next play.
    """
    strays: list[str] = []
    objects = "SELECT type, name, coalesce(sql, '') FROM {}.sqlite_master ORDER BY type, name"
    now, before = (db.execute(objects.format(schema)).fetchall() for schema in ("main", "initial"))
    if now != before:
        strays.append("the schema changed")
    allowed = {(rule.table, rule.key): set(rule.columns) for rule in frame}
    final_tables = {name for kind, name, _ in now if kind == "table"}
    for table in (name for kind, name, _ in before if kind == "table"):
        if table not in final_tables:
            strays.append(f"table {table} is gone")
            continue
        if table not in known:
            known[table] = _known(db, table)
        final = db.execute(f'SELECT * FROM main."{table}"').fetchall()
        if final != known[table].rows:
            strays += _stray_rows(table, known[table], final, allowed)
    return strays


def _stray_rows(
    table: str, first: _Known, final: list[tuple[Any, ...]], allowed: dict[tuple[str, str], set[str]]
) -> list[str]:
    final_set = frozenset(final)
    added = {str(row[0]): row for row in final if row not in first.row_set}
    removed = {str(row[0]): row for row in first.rows if row not in final_set}
    strays: list[str] = []
    for key in sorted(set(added) | set(removed)):
        new, old = added.get(key), removed.get(key)
        if new is None or old is None:
            strays.append(f"{table} row {key} was {'deleted' if new is None else 'inserted'}")
            continue
        if len(new) != len(old):
            strays.append(f"{table} row {key}: its columns changed")
            continue
        changed = {name for name, a, b in zip(first.columns, old, new, strict=True) if a != b}
        if stray := sorted(changed - allowed.get((table, key), set())):
            strays.append(f"{table} row {key}: {stray[0]} changed")
    return strays

"""G6: an edit of the database or of the journal behind the tool server's back scores 0, also after the gold's
play.
"""

import random
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import replace

from envs.task import GateRecord, Plan, stable_seed
from envs.tool_server import GENESIS, JournalEntry, chain_hash
from envs.verifier import Episode, judge, judge_snapshots
from envs.world import columns_of, open_image, tables_of
from synthesis.gates.trial import Trial

GATE, TITLE, VERSION = "G6", "state tampering", 1


def check(trial: Trial) -> GateRecord:
    edits = dict(snapshot_attacks(trial))
    verdicts = judge_snapshots(trial.task, trial.gold, list(edits.values()))
    names = list(edits)
    accepted = [name for name, verdict in zip(names, verdicts, strict=True) if verdict.score != 0.0]
    for name, episode in journal_attacks(trial):
        names.append(name)
        if judge(trial.task, episode).score != 0.0:
            accepted.append(name)
    killed = len(names) - len(accepted)
    evidence = f"accepted: {accepted[0]}; " if accepted else ""
    return GateRecord(
        gate=GATE,
        passed=not accepted,
        value=killed / len(names),
        evidence=f"{evidence}{killed} of {len(names)} attacks scored 0",
        version=VERSION,
    )


def snapshot_attacks(trial: Trial) -> Iterator[tuple[str, bytes]]:
    """(name, the last snapshot that the attack leaves). The rows that it touches differ from task to task."""
    rng = random.Random(stable_seed(GATE, trial.task.world.content_hash, trial.task.level))
    for name, statements in _edits(trial, rng):
        yield name, _edited(trial.gold.final, statements)
    yield "the snapshot is no database", b"SQLite format 3\0" + bytes(512)
    yield "the snapshot is cut", trial.gold.final[: len(trial.gold.final) // 2]


def _edits(trial: Trial, rng: random.Random) -> Iterator[tuple[str, Sequence[str]]]:
    db = open_image(trial.image)
    tables = [name for name in tables_of(db) if db.execute(f"SELECT 1 FROM {name}").fetchone()]
    for attack in ("a cell edited", "a row forged", "a row deleted", "a row renamed"):
        table = rng.choice(tables)
        columns = columns_of(db, table)
        key = columns[0]
        keys = [row[0] for row in db.execute(f"SELECT {key} FROM {table} ORDER BY {key}")]
        where = f"WHERE {key} = {_literal(rng.choice(keys))}"
        cell = rng.choice(columns[1:])
        rest = ", ".join(columns[1:])
        sql = {
            "a cell edited": f"UPDATE {table} SET {cell} = {cell} || '~' {where}",
            "a row forged": f"INSERT INTO {table} SELECT {key} || '0', {rest} FROM {table} {where}",
            "a row deleted": f"DELETE FROM {table} {where}",
            "a row renamed": f"UPDATE {table} SET {key} = {key} || '0' {where}",
        }[attack]
        yield f"{attack} in {table}", [sql]
    table = rng.choice(tables)
    key = columns_of(db, table)[0]
    db.close()
    yield "a trigger added", [f"CREATE TRIGGER t AFTER UPDATE ON {table} BEGIN DELETE FROM {table}; END"]
    yield "a view added", [f"CREATE VIEW v AS SELECT {key} FROM {table}"]
    yield "a table dropped", [f"DROP TABLE {table}"]


def _literal(value: object) -> str:
    return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else repr(value)


def _edited(image: bytes, statements: Sequence[str]) -> bytes:
    db = open_image(image)
    try:
        for statement in statements:
            db.execute(statement)
        return db.serialize()
    except sqlite3.Error as error:  # our own attack must run
        raise AssertionError(f"attack {statements}: {error}") from error
    finally:
        db.close()


def journal_attacks(trial: Trial) -> Iterator[tuple[str, Episode]]:
    """Forgers that know how to compute the chain, and one that does not."""
    gold = trial.gold
    tools = {tool.name for tool in trial.task.tools if tool.writes}
    writes = [entry for entry in gold.journal if entry.tool in tools]
    if writes:  # the goal's state without a call that leads to it
        rest = Plan(calls=tuple(c for c in trial.task.gold.calls if c.tool not in tools), answer=gold.answer)
        yield "the goal state, no write in the journal", replace(trial.play(rest), final=gold.final)
        yield "the writes in the journal, not in the state", replace(gold, final=gold.initial)
    if gold.journal:
        last = gold.journal[-1]
        edited = replace(last, result=f"{last.result} 0")
        yield "a result edited", replace(gold, journal=(*gold.journal[:-1], edited))
        yield (
            "a result edited, chain computed",
            replace(gold, journal=rechained([*gold.journal[:-1], edited])),
        )
    if len(gold.journal) > 1:  # the only one dropped leaves a whole journal: of a guess, which G4 is about
        yield "an entry dropped", replace(gold, journal=gold.journal[1:])
    forged = JournalEntry(step=0, tool=_reader(trial), arguments="{}", result="forged", error=False, chain="")
    yield "an entry forged, chain computed", replace(gold, journal=rechained([*gold.journal, forged]))


def _reader(trial: Trial) -> str:
    return next(tool.name for tool in trial.task.tools if tool.query is not None)


def rechained(entries: Sequence[JournalEntry]) -> tuple[JournalEntry, ...]:
    """The entries with steps and chain as if they had happened."""
    chain = GENESIS
    found: list[JournalEntry] = []
    for step, entry in enumerate(entries):
        chain = chain_hash(chain, step, entry.tool, entry.arguments, entry.result, entry.error)
        found.append(replace(entry, step=step, chain=chain))
    return tuple(found)

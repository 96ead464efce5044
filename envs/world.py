"""A world: a small SQLite database as bytes, built the same on every machine, with a hash of its content."""

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from envs.task import canonical_json, digest

PAGE_SIZE = 512
# Bytes 92-99 of an SQLite file name the library version that wrote it; cleared, the image depends on its
# content alone.
_VERSION_FIELD = slice(92, 100)


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """`columns`: (name, SQLite type); the first column is the primary key."""

    name: str
    columns: tuple[tuple[str, str], ...]
    rows: Sequence[Sequence[Any]]


def build_image(tables: Iterable[Table]) -> bytes:
    """The tables as the bytes of an SQLite file; the same tables give the same bytes."""
    db = sqlite3.connect(":memory:", isolation_level=None)
    try:
        db.execute(f"PRAGMA page_size = {PAGE_SIZE}")
        db.execute("PRAGMA journal_mode = OFF")
        db.execute("BEGIN")
        for table in tables:
            (key, key_type), *rest = table.columns
            columns = "".join(f", {name} {kind} NOT NULL" for name, kind in rest)
            db.execute(
                f"CREATE TABLE {table.name} ({key} {key_type} NOT NULL PRIMARY KEY{columns}) WITHOUT ROWID"
            )
            marks = ", ".join("?" * len(table.columns))
            db.executemany(f"INSERT INTO {table.name} VALUES ({marks})", table.rows)
        db.execute("COMMIT")
        image = bytearray(db.serialize())
    finally:
        db.close()
    image[_VERSION_FIELD] = bytes(8)
    return bytes(image)


def open_image(image: bytes, *, schema: str = "main") -> sqlite3.Connection:
    """A private in-memory copy of the world. Raises ValueError when the bytes are not an SQLite database."""
    # An episode's calls follow one another, but not always on one thread.
    db = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    load_image(db, image, schema=schema)
    return db


def load_image(db: sqlite3.Connection, image: bytes, *, schema: str) -> None:
    if not image:
        raise ValueError("world image is empty")  # sqlite3 would call it a lack of memory
    try:
        db.deserialize(image, name=schema)
        db.execute(f"SELECT count(*) FROM {schema}.sqlite_master").fetchone()
    except (sqlite3.DatabaseError, OverflowError) as error:
        raise ValueError(
            f"world image of {len(image)} bytes is not a readable SQLite database: {error}"
        ) from None


def tables_of(db: sqlite3.Connection, schema: str = "main") -> list[str]:
    rows = db.execute(
        f"SELECT name FROM {schema}.sqlite_master WHERE type = 'table' ORDER BY name"
    ).fetchall()
    return [str(row[0]) for row in rows]


def columns_of(db: sqlite3.Connection, table: str, schema: str = "main") -> list[str]:
    return [str(row[1]) for row in db.execute(f'PRAGMA {schema}.table_info("{table}")')]


def state_hash(db: sqlite3.Connection, schema: str = "main") -> str:
    """Hash of everything in the database: every object's SQL (triggers and views too) and every row."""
    objects = db.execute(
        f"SELECT type, name, coalesce(sql, '') FROM {schema}.sqlite_master ORDER BY type, name"
    ).fetchall()
    parts = [canonical_json(objects)]
    for table in tables_of(db, schema):
        rows = db.execute(f'SELECT * FROM {schema}."{table}"').fetchall()
        parts.append(canonical_json([table, sorted(rows, key=repr)]))
    return digest(*parts)


def image_hash(image: bytes) -> str:
    """The content hash of a world image. Raises ValueError when the bytes are not an SQLite database."""
    db = open_image(image)
    try:
        return state_hash(db)
    except (sqlite3.DatabaseError, TypeError) as error:
        raise ValueError(f"world image of {len(image)} bytes is damaged: {error}") from None
    finally:
        db.close()

"""What a run of synthesis has stored so far: each shard's files, then a receipt that says so.

A shard without a receipt, or whose files are no longer those of its receipt, is made again.
"""

import json
from contextlib import AbstractContextManager
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path

from envs.files import lock_file, write_whole
from envs.task import canonical_json
from synthesis.corpus import Shard

WORK = ".synth"
"""The folder of the receipts, gone when the corpus is finished."""


def store_shard(directory: Path, shard: Shard, contents: dict[str, bytes]) -> None:
    """The shard's files, then its receipt. Raises OSError as `store_file` does."""
    for name, content in contents.items():
        store_file(directory, name, content)
    store_file(directory, _receipt_name(shard.kind, shard.name), canonical_json(asdict(shard)).encode())


def store_file(directory: Path, name: str, content: bytes) -> None:
    """Raises OSError that says what to do; the file is then not there, and what was stored before stays."""
    try:
        write_whole(directory / name, content)
    except OSError as error:
        why = error.strerror or str(error)
        raise OSError(
            f"{directory / name}: cannot be written: {why}; make room and run the same command again"
        ) from error


def stored_shard(directory: Path, kind: str, name: str) -> Shard | None:
    """What an earlier run stored of this shard, if its files are still those."""
    try:
        shard = Shard(**json.loads((directory / _receipt_name(kind, name)).read_bytes()))
        whole = all(
            sha256((directory / name).read_bytes()).hexdigest() == sha for name, sha in shard.files.items()
        )
    except (OSError, ValueError, TypeError):
        return None
    return shard if whole else None


def _receipt_name(kind: str, name: str) -> str:
    return f"{WORK}/{kind}-{name}.json"


def locked_directory(directory: Path) -> AbstractContextManager[None]:
    """One run at a time in a directory. Raises ValueError when another one is there."""
    busy = f"{directory}: another synth is writing here; wait for it or give another --out"
    return lock_file(directory / WORK / "lock", busy)

"""A corpus on disk: `corpus.json`, `tasks/*.parquet`, `worlds/*.parquet`, `demonstrations/*.jsonl`,
`toolsets.json`.

`corpus.json` is written last and names every file with its SHA-256, so a directory without it is unfinished.
Every file appears whole or not at all. A file that does not match its digest is refused; nothing in a corpus
is executed.
"""

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter, ValidationError

from envs.task import Task, canonical_json, content_hash, digest, task_from_json, task_to_json
from envs.tools import Tool

CORPUS_VERSION = 1
MANIFEST = "corpus.json"
TOOLSETS = "toolsets.json"
TASK_COLUMNS = ("task_id", "family", "domain", "level", "content_hash", "task", "certificate")
_TASK_SCHEMA = pa.schema([(name, pa.int64() if name == "level" else pa.string()) for name in TASK_COLUMNS])
_WORLD_SCHEMA = pa.schema([("content_hash", pa.string()), ("image", pa.binary())])


@dataclass(frozen=True, kw_only=True, slots=True)
class CorpusTask:
    """One task with its world's bytes; `certificate` is the JSON that `synthesis.certificate` reads."""

    task: Task
    image: bytes
    certificate: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """One entry of the manifest.

    files: path in the corpus and SHA-256. rejections: refused candidates by reason.
    """

    name: str
    kind: str
    domain: str
    level: int
    rows: int
    candidates: int
    files: dict[str, str]
    rejections: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """What a corpus as a whole must hold to; `where`: a domain."""

    name: str
    where: str
    passed: bool
    value: float
    evidence: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    version: int
    generator: str
    config: dict[str, Any]
    config_hash: str
    shards: tuple[Shard, ...]
    files: dict[str, str]
    """The files that belong to no shard, with their SHA-256."""
    num_tasks: int
    num_demonstrations: int
    checks: tuple[Check, ...] = ()
    digest: str = ""
    """Of everything else in the manifest."""


_MANIFEST = TypeAdapter(Manifest)
_TOOLSETS = TypeAdapter(dict[str, tuple[Tool, ...]])


def _digest_of(fields: dict[str, Any]) -> str:
    return digest(canonical_json({name: value for name, value in fields.items() if name != "digest"}))


def manifest_bytes(manifest: Manifest) -> bytes:
    fields = _MANIFEST.dump_python(manifest, mode="json")
    fields["digest"] = _digest_of(fields)
    return (json.dumps(fields, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def read_manifest(directory: Path | str) -> Manifest:
    """Raises ValueError, in one line, when `directory` holds no finished corpus of this version."""
    root = Path(directory)
    if not root.is_dir():
        raise ValueError(f"{root}: no such directory; give the DIR that `worldsmith synth --out DIR` wrote")
    path = root / MANIFEST
    if not path.is_file():
        raise ValueError(
            f"{root}: no finished corpus, it has no {MANIFEST}; run its `worldsmith synth` command (again)"
        )
    try:
        fields = json.loads(path.read_bytes())
        version = fields.get("version")
    except (ValueError, AttributeError):
        raise ValueError(f"{path}: damaged, not a JSON object; make the corpus again") from None
    if version != CORPUS_VERSION:
        newer = isinstance(version, int) and version > CORPUS_VERSION
        advice = "update Worldsmith" if newer else "make the corpus again"
        raise ValueError(
            f"{path}: corpus version {version!r}, this program reads version {CORPUS_VERSION}; {advice}"
        )
    try:
        manifest = _MANIFEST.validate_python(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise ValueError(f"{path}: damaged, {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    if manifest.digest != _digest_of(fields):
        raise ValueError(f"{path}: damaged, its digest does not match its content; make the corpus again")
    return manifest


def read_corpus(
    directory: Path | str, *, domain: str | None = None, level: int | None = None, limit: int | None = None
) -> list[CorpusTask]:
    """The tasks of one domain and level (default: all), in the corpus' order, at most `limit`.

    Raises ValueError for a directory that is no corpus, a damaged file, or a domain or level that it does not
    hold.
    """
    manifest = read_manifest(directory)
    shards = [shard for shard in manifest.shards if shard.kind == "tasks"]
    domains, levels = sorted({s.domain for s in shards}), sorted({s.level for s in shards})
    if domain is not None and domain not in domains:
        raise ValueError(f"{directory}: no tasks of domain {domain!r}; it holds {', '.join(domains)}")
    if level is not None and level not in levels:
        raise ValueError(f"{directory}: no tasks of level {level}; it holds {', '.join(map(str, levels))}")
    tasks: list[CorpusTask] = []
    for shard in shards:
        if limit is not None and len(tasks) >= limit:
            break
        if domain in (None, shard.domain) and level in (None, shard.level):
            tasks += read_shard(Path(directory), shard)
    return tasks[:limit]


def read_shard(root: Path, shard: Shard) -> list[CorpusTask]:
    """The tasks of one shard. Raises ValueError for a file that differs from its digest or cannot be read."""
    contents = {name: read_checked(root, name, sha) for name, sha in shard.files.items()}
    try:
        rows = _rows(contents[f"tasks/{shard.name}.parquet"], _TASK_SCHEMA)
        worlds = _rows(contents[f"worlds/{shard.name}.parquet"], _WORLD_SCHEMA)
    except (KeyError, pa.ArrowException, OSError) as error:
        raise ValueError(
            f"{root}: shard {shard.name} is damaged: {' '.join(str(error).split())[:200]}"
        ) from None
    images = {row["content_hash"]: row["image"] for row in worlds}
    found: list[CorpusTask] = []
    for index, row in enumerate(rows):
        where = f"{root}/tasks/{shard.name}.parquet row {index}"
        task = task_from_json(row["task"], where=where)
        said = {"task_id": task.task_id, "family": task.family, "domain": task.domain, "level": task.level}
        for name, value in (said | {"content_hash": content_hash(task)}).items():
            if row[name] != value:
                raise ValueError(f"{where}: its column {name} says {row[name]!r}, its task {value!r}")
        if task.world.content_hash not in images:
            raise ValueError(f"{where}: its world {task.world.content_hash[:12]} is not in the corpus")
        found.append(
            CorpusTask(task=task, image=images[task.world.content_hash], certificate=row["certificate"])
        )
    return found


def read_checked(root: Path, name: str, sha: str) -> bytes:
    """A file of the corpus. Raises ValueError when it is missing or does not match its digest."""
    path = root / name
    if not path.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"{root / MANIFEST}: names the file {name!r}, which lies outside the corpus")
    if not path.is_file():
        raise ValueError(f"{path}: missing; the corpus is incomplete, make it again or restore the file")
    content = path.read_bytes()
    if (found := sha256(content).hexdigest()) != sha:
        raise ValueError(f"{path}: damaged, its SHA-256 is {found[:12]}, {MANIFEST} says {sha[:12]}")
    return content


def _rows(content: bytes, schema: pa.Schema) -> list[dict[str, Any]]:
    table = pq.read_table(io.BytesIO(content))
    if table.schema.names != schema.names:
        raise pa.ArrowInvalid(f"columns {table.schema.names}, expected {schema.names}")
    return table.to_pylist()


def read_toolsets(directory: Path | str) -> dict[str, tuple[Tool, ...]]:
    """The tool lists that demonstrations name in their field `tools`."""
    manifest = read_manifest(directory)
    if TOOLSETS not in manifest.files:
        raise ValueError(f"{directory}: holds no {TOOLSETS}")
    return _TOOLSETS.validate_json(read_checked(Path(directory), TOOLSETS, manifest.files[TOOLSETS]))


def toolsets_bytes(toolsets: dict[str, tuple[Tool, ...]]) -> bytes:
    return (canonical_json(_TOOLSETS.dump_python(toolsets, mode="json")) + "\n").encode()


@lru_cache(maxsize=256)
def toolset_id(domain: str, tools: tuple[Tool, ...]) -> str:
    fields = TypeAdapter(tuple[Tool, ...]).dump_python(tools, mode="json")
    return f"{domain}-{digest(canonical_json(fields))[:12]}"


def task_files(name: str, tasks: Sequence[CorpusTask]) -> dict[str, bytes]:
    """The two files of a shard of tasks; equal tasks give equal bytes."""
    rows = [
        {
            "task_id": entry.task.task_id,
            "family": entry.task.family,
            "domain": entry.task.domain,
            "level": entry.task.level,
            "content_hash": content_hash(entry.task),
            "task": task_to_json(entry.task),
            "certificate": entry.certificate,
        }
        for entry in tasks
    ]
    images = {entry.task.world.content_hash: entry.image for entry in tasks}
    worlds = [{"content_hash": key, "image": image} for key, image in images.items()]
    return {
        f"tasks/{name}.parquet": _parquet(rows, _TASK_SCHEMA),
        f"worlds/{name}.parquet": _parquet(worlds, _WORLD_SCHEMA),
    }


def _parquet(rows: list[dict[str, Any]], schema: pa.Schema) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), buffer, compression="zstd")
    return buffer.getvalue()


def iterate_hashes(directory: Path | str) -> Iterator[tuple[str, str]]:
    """(content hash, world hash) of every task."""
    for entry in read_corpus(directory):
        yield content_hash(entry.task), entry.task.world.content_hash


def check_disjoint(first: Path | str, second: Path | str) -> None:
    """Raises ValueError when two corpora share a task or a world: a held-out corpus must share none."""
    ours, theirs = list(iterate_hashes(first)), list(iterate_hashes(second))
    for kind, index in (("task", 0), ("world", 1)):
        shared = {pair[index] for pair in ours} & {pair[index] for pair in theirs}
        if shared:
            raise ValueError(
                f"{first} and {second} share {len(shared)} {kind}(s), {min(shared)[:12]} among them; "
                "make one of them with another --seed"
            )

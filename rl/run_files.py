"""A run's directory: `run.json`, `metrics.jsonl`, checkpoints. Every file appears whole or not at all."""

import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from envs.files import lock_file, sync_directory, write_whole
from envs.task import canonical_json, digest

RUN_VERSION = 1


def locked(directory: Path) -> AbstractContextManager[None]:
    """Holds the directory for this process. Raises ValueError when another one does, or it is a file."""
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"{directory}: is a file; give a directory")
    busy = f"{directory}: another run works there; wait for it or choose another --out"
    return lock_file(directory / ".lock", busy)


class RunLog:
    """The run's record as it goes: stages with their times, and one line of metrics at a time.

    A directory that holds a run is gone on with, if it began with this config; a field that there was not yet
    when it began counts as `defaults` has it. Raises ValueError where the config is another.
    """

    def __init__(
        self,
        directory: Path,
        *,
        command: str,
        config: Mapping[str, Any],
        tier: str,
        seed: int,
        defaults: Mapping[str, Any] | None = None,
    ) -> None:
        self.directory = directory
        self._path = directory / "run.json"
        self._stage_started = 0.0
        if self._path.exists():
            self.record: dict[str, Any] = read_record(directory)
            _check_config(self._path, with_defaults(self.record["config"], defaults or {}), config)
            self.record["finished"] = None
            self.record["resumed"] = [*self.record.get("resumed", []), _now()]
        else:
            self.record = {
                "version": RUN_VERSION,
                "command": command,
                "started": _now(),
                "finished": None,
                "stage": "",
                "config": dict(config),
                "config_hash": digest(canonical_json(config)),
                "versions": {name: version(name) for name in ("torch", "transformers", "trl", "ray")},
                "machine": {
                    "cores": os.cpu_count(),
                    "python": platform.python_version(),
                    "system": f"{platform.system()} {platform.machine()}",
                },
                "tier": tier,
                "seeds": {"run": seed},
                "counts": {},
                "stage_log": [],
                "notes": [],
            }
        self.save()

    def save(self) -> None:
        write_whole(self._path, json.dumps(self.record, indent=1, ensure_ascii=False).encode())

    @contextmanager
    def stage(self, name: str, note: str = "") -> Iterator[None]:
        """Times a stage; a stage that a kill cut short keeps its first entry without seconds."""
        started = time.monotonic()
        entry = {"stage": name, "started": _now(), "seconds": None, "note": note}
        self.record["stage"] = name
        self.record["stage_log"].append(entry)
        self.save()
        yield
        entry["seconds"] = round(time.monotonic() - started, 3)
        self.save()

    def note(self, text: str) -> None:
        if text not in self.record["notes"]:
            self.record["notes"].append(text)
            self.save()

    def metric(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Appends one line to metrics.jsonl."""
        line = json.dumps({"kind": kind, **fields}, ensure_ascii=False) + "\n"
        with (self.directory / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(line)
            file.flush()

    def finish(self) -> None:
        self.record["finished"] = _now()
        self.save()


def read_record(directory: Path) -> dict[str, Any]:
    """What stands in a run's `run.json`. Raises ValueError where that is not what a run writes, OSError where
    there is none.
    """
    path = directory / "run.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        record = None
    if isinstance(record, dict):
        record = {"counts": {}, "stage_log": [], "notes": []} | record
        kinds = {"config": dict, "counts": dict, "stage_log": list, "notes": list}
        if all(isinstance(record.get(name), kind) for name, kind in kinds.items()):
            return record
    raise ValueError(f"{path}: damaged, not the record of a run; restore it or take another directory")


def mend_metrics(directory: Path) -> None:
    """Drops what a kill left of a line, so that the next one does not become part of it."""
    _keep_metrics(directory, lambda record: True)


def trim_metrics(directory: Path, *, kind: str, from_step: int) -> None:
    """Drops what a killed run wrote past its last checkpoint, so that steps stay unbroken."""
    _keep_metrics(directory, lambda record: record.get("kind") != kind or record.get("step", -1) < from_step)


def _keep_metrics(directory: Path, wanted: Callable[[Any], bool]) -> None:
    path = directory / "metrics.jsonl"
    if not path.exists():
        return
    kept: list[str] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if wanted(record):
            kept.append(line)
    content = "".join(f"{line}\n" for line in kept).encode()
    if content != path.read_bytes():
        write_whole(path, content)


def publish_directory(temporary: Path, final: Path) -> None:
    """Moves a finished directory into place, over an older one of the same name."""
    for path in sorted(temporary.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    if final.exists():
        shutil.rmtree(final)
    temporary.rename(final)
    sync_directory(final.parent)


def _check_config(path: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    changed = differences(old, new)
    if changed:
        key, was, now = changed[0]
        raise ValueError(
            f"{path}: this run began with {key} = {was!r}, the config now says {now!r}"
            f" ({len(changed)} difference(s)); resume with the old config or choose another --out"
        )


def with_defaults(fields: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of nested mappings with what they lack taken from others."""
    filled = dict(defaults) | dict(fields)
    for name, value in filled.items():
        inner = defaults.get(name)
        if isinstance(value, Mapping) and isinstance(inner, Mapping):
            filled[name] = with_defaults(value, inner)
    return filled


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Fields that two configurations have otherwise, by name, with both values; a missing one is None."""
    flat_old, flat_new = (_flat(json.loads(json.dumps(fields))) for fields in (old, new))
    return [
        (key, flat_old.get(key), flat_new.get(key))
        for key in sorted(flat_old.keys() | flat_new.keys())
        if flat_old.get(key) != flat_new.get(key)
    ]


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

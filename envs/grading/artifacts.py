"""What may leave an agent's box: declared files, regular ones alone, few and small.

They are read through the box's executor by a walk that follows no link, when no process of the agent is left;
nothing is copied through an engine and no archive is ever unpacked. What comes back is a claim of the box:
every name, size and number is checked again here.
"""

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic.dataclasses import dataclass as checked_dataclass

from envs.grading import collector
from envs.sandbox.contract import ExecResult, Sandbox
from envs.tools import STRICT

MAX_TOTAL_BYTES = 16 << 20
MAX_PATH_CHARS = 500
COLLECT_TIMEOUT_S = 30.0


@checked_dataclass(frozen=True, kw_only=True, slots=True, config=STRICT)
class ArtifactSpec:
    """The files that a solution consists of, by path below the agent's folder.

    Example: `ArtifactSpec(paths=("stats.py", "lib/**/*.py"))`. `*` stays within a folder, `**` is any number
    of folders.
    """

    paths: tuple[str, ...]
    max_files: int = 64
    max_file_bytes: int = 1 << 20
    max_bytes: int = 4 << 20
    """All files together."""

    def __post_init__(self) -> None:
        if not self.paths:
            raise ValueError("artifacts.paths is empty: a solution consists of at least one file")
        for path in self.paths:
            if (fault := path_fault(path)) is not None:
                raise ValueError(f"artifacts.paths: {path[:80]!r} {fault}")
        for name in ("max_files", "max_file_bytes", "max_bytes"):
            if not 0 < getattr(self, name) <= MAX_TOTAL_BYTES:
                raise ValueError(f"artifacts.{name} must lie in [1, {MAX_TOTAL_BYTES}]")

    def allows(self, path: str) -> bool:
        segments = path.split("/")
        return any(collector.matches(segments, pattern.split("/")) for pattern in self.paths)


@dataclass(frozen=True, kw_only=True, slots=True)
class Collected:
    """`files`: path to bytes. `fault`: why these artifacts cannot be graded, the agent's own doing, or None.

    baits: what the agent's box says of the asked-for paths, None where one is gone or no regular file.
    """

    files: Mapping[str, bytes] = field(default_factory=dict)
    fault: str | None = None
    baits: Mapping[str, bytes | None] = field(default_factory=dict)


def path_fault(path: str) -> str | None:
    """Why a path is none of a file below a folder, on any system; None where it is one."""
    if not path or len(path) > MAX_PATH_CHARS:
        return f"must have 1 to {MAX_PATH_CHARS} characters"
    if not path.isprintable() or "\\" in path:
        return "holds a character that no portable file name has"
    segments = path.split("/")
    if any(segment in ("", ".", "..") for segment in segments):
        return "must be relative and stay below its folder"
    if len(segments) >= collector.MAX_DEPTH or any(len(segment.encode()) > 200 for segment in segments):
        return "is too deep or too long"
    return None


def run_in_box(
    box: Sandbox, file: Path, mode: str, request: object, *, timeout_s: float, output_cap_bytes: int
) -> ExecResult:
    """Runs one of our files in a box, its request on stdin. Raises SandboxError as `exec` does."""
    # -s: no packages of the user's own. `-c` puts the folder on the path, so it is the root, which no box can
    # write to. The environment holds nothing but what the contract says.
    argv = ["python3", "-sB", "-c", file.read_text(), mode]
    stdin = json.dumps(request).encode()
    return box.exec(argv, stdin=stdin, cwd="/", timeout_s=timeout_s, output_cap_bytes=output_cap_bytes)


def collect(box: Sandbox, spec: ArtifactSpec, *, baits: Sequence[str] = ()) -> Collected:
    """Reads the artifacts out of the agent's box. Raises SandboxError where the box is lost."""
    request = {
        "folder": box.work_dir,
        "patterns": spec.paths,
        "max_files": spec.max_files,
        "max_file_bytes": spec.max_file_bytes,
        "max_bytes": spec.max_bytes,
        "baits": list(baits),
    }
    cap = min(32 << 20, 2 * (spec.max_bytes + len(baits) * spec.max_file_bytes) + (1 << 20))
    walker = Path(collector.__file__)
    result = run_in_box(box, walker, "collect", request, timeout_s=COLLECT_TIMEOUT_S, output_cap_bytes=cap)
    if result.exit_code != 0 or result.truncated_bytes:
        # Only what the agent left in its box can hinder a walk over it; a lost box has raised.
        return Collected(fault="the artifacts could not be read from the box")
    try:
        return _checked(json.loads(result.stdout), spec, baits)
    except (ValueError, TypeError, KeyError, RecursionError, binascii.Error):
        return Collected(fault="the box's list of artifacts is malformed")


def _checked(reply: dict[str, Any], spec: ArtifactSpec, baits: Sequence[str]) -> Collected:
    found = {str(path): _bytes(text) for path, text in reply["files"]}
    seen = {path: None if reply["baits"][path] is None else _bytes(reply["baits"][path]) for path in baits}
    return Collected(files=found, fault=_fault(found, reply, spec), baits=seen)


def _bytes(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def _fault(found: dict[str, bytes], reply: dict[str, Any], spec: ArtifactSpec) -> str | None:
    if reply["refused"]:
        path, why = reply["refused"][0]
        return f"artifact {str(path)[:80]!r}: {str(why)[:120]}; only regular files are taken"
    if len(found) != len(reply["files"]) or len(found) > spec.max_files:
        return f"more than {spec.max_files} artifacts"
    if sum(map(len, found.values())) > spec.max_bytes:
        return f"artifacts of more than {spec.max_bytes} bytes"
    for path, data in found.items():
        if (fault := path_fault(path)) is not None:
            return f"artifact {path[:80]!r} {fault}"
        if not spec.allows(path) or len(data) > spec.max_file_bytes:
            return f"artifact {path[:80]!r} is not one that the task declares"
    return None if found else f"no artifact: the task wants {', '.join(spec.paths)}"

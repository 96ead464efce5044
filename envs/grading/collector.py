"""Runs inside an agent's box when no process of the agent is left: one file alone, sent in as text.

Gives out the files that match declared patterns, as JSON with base64: regular files that have one name, never
a link, a pipe or a device, and never an archive. Folders are walked by descriptor, no link is followed.
"""

from __future__ import annotations

import base64
import fnmatch
import json
import os
import stat
import sys

TYPE_CHECKING = False  # importing typing would take longer than the walk
if TYPE_CHECKING:
    from typing import Any

MAX_DEPTH = 40
MAX_ENTRIES = 100_000
"""Entries of the agent's folders that are looked at; past it nothing is collected."""
MAX_REFUSED = 20


def matches(path: list[str], pattern: list[str]) -> bool:
    """`*` and `?` within one segment, `**` for any number of segments; both given as lists of segments."""
    if not pattern:
        return not path
    if pattern[0] == "**":
        return any(matches(path[skip:], pattern[1:]) for skip in range(len(path) + 1))
    return bool(path) and fnmatch.fnmatchcase(path[0], pattern[0]) and matches(path[1:], pattern[1:])


def collect(request: dict[str, Any]) -> dict[str, Any]:
    """Files that match a pattern, and why others that match were refused; what has become of the baits."""
    patterns = [pattern.split("/") for pattern in request["patterns"]]
    found: dict[str, Any] = {"files": [], "refused": [], "baits": {}, "entries": 0, "bytes": 0}
    root = os.open(request["folder"], os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    _walk(root, [], patterns, request, found)
    for path in request["baits"]:
        found["baits"][path] = _bait(root, path, request["max_file_bytes"])
    return {name: found[name] for name in ("files", "refused", "baits")}


def _walk(folder: int, above: list[str], patterns: Any, request: Any, found: Any) -> None:
    for name in sorted(os.listdir(folder)):
        found["entries"] += 1
        if found["entries"] > MAX_ENTRIES or len(found["refused"]) > MAX_REFUSED:
            found["refused"].append(["", "too many files to look through"])
            return
        path = [*above, name]
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode):
            if len(path) < MAX_DEPTH:
                _enter(folder, path, patterns, request, found)
        elif any(matches(path, pattern) for pattern in patterns):
            _take(folder, path, request, found)


def _enter(folder: int, path: list[str], patterns: Any, request: Any, found: Any) -> None:
    try:
        inner = os.open(path[-1], os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
    except PermissionError:
        return  # the agent closed a folder of its own: what it hides does not count
    try:
        _walk(inner, path, patterns, request, found)
    finally:
        os.close(inner)


def _take(folder: int, path: list[str], request: Any, found: Any) -> None:
    try:
        data = _regular(folder, path[-1], request["max_file_bytes"])
    except (OSError, ValueError) as error:
        found["refused"].append(["/".join(path), str(error)[:200]])
        return
    found["bytes"] += len(data)
    if len(found["files"]) >= request["max_files"] or found["bytes"] > request["max_bytes"]:
        found["refused"].append(["/".join(path), "too many files or bytes in all"])
        return
    found["files"].append(["/".join(path), base64.b64encode(data).decode()])


def _regular(folder: int, name: str, max_bytes: int) -> bytes:
    """The bytes of a regular file that has one name. Raises ValueError for anything else."""
    fd = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY, dir_fd=folder)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("not a regular file")
        if status.st_nlink != 1:
            raise ValueError("a hard link")
        if status.st_size > max_bytes:
            raise ValueError(f"{status.st_size} bytes, at most {max_bytes} are allowed")
        data = b""
        while chunk := os.read(fd, max_bytes + 1 - len(data)):
            data += chunk
        if len(data) != status.st_size:
            raise ValueError("its length changed while it was read")
        return data
    finally:
        os.close(fd)


def _bait(root: int, path: str, max_bytes: int) -> str | None:
    """The bait's text as base64; None where it is gone or no regular file any more."""
    folders, name = path.split("/")[:-1], path.split("/")[-1]
    fd = os.dup(root)
    try:
        for folder in folders:
            inner = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
            os.close(fd)
            fd = inner
        return base64.b64encode(_regular(fd, name, max_bytes)).decode()
    except (OSError, ValueError):
        return None
    finally:
        os.close(fd)


def main() -> None:
    reply = json.dumps(collect(json.loads(sys.stdin.buffer.read())))
    sys.stdout.write(reply)


if __name__ == "__main__":
    main()

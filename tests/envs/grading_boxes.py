"""Boxes for the tests of grading: scripted ones, and one that is a plain process for code of our own."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from envs.sandbox.contract import ExecResult


def done(stdout: bytes = b"", exit_code: int = 0, **more: Any) -> ExecResult:
    return ExecResult(exit_code=exit_code, stdout=stdout, stderr=b"", **more)


class ScriptedBox:
    """Answers each request of a mode by the mode's next reply, the last one again and again."""

    tier, work_dir = "scripted", "/work"

    def __init__(self, replies: Mapping[str, Sequence[Any]]) -> None:
        self._replies = {mode: list(listed) for mode, listed in replies.items()}
        self.files: dict[str, bytes] = {}
        self.requests: list[dict[str, Any]] = []
        self.is_open = False

    def start(self) -> None:
        self.is_open = True

    def exec(self, argv: Sequence[str], *, stdin: bytes = b"", **_: Any) -> ExecResult:
        listed = self._replies[argv[-1]]
        reply = listed.pop(0) if len(listed) > 1 else listed[0]
        self.requests.append(json.loads(stdin or b"{}"))
        if isinstance(reply, Exception):
            raise reply
        return reply if isinstance(reply, ExecResult) else reply(self.requests[-1])

    def read_file(self, path: str, *, max_bytes: int = 0) -> bytes:
        return self.files[path]

    def write_file(self, path: str, data: bytes) -> None:
        self.files[path] = data

    def close(self) -> None:
        self.is_open = False


class LocalBox(ScriptedBox):
    """Runs our own code as a process of this machine, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        super().__init__({})
        self.work_dir = str(folder)
        folder.mkdir()

    def exec(
        self, argv: Sequence[str], *, stdin: bytes = b"", cwd: str | None = None, **_: Any
    ) -> ExecResult:
        result = subprocess.run(
            [sys.executable if argv[0] == "python3" else argv[0], *argv[1:]],
            input=stdin,
            capture_output=True,
            timeout=60,
            cwd=cwd or self.work_dir,
            check=False,
        )
        return ExecResult(exit_code=result.returncode, stdout=result.stdout, stderr=result.stderr)

    def read_file(self, path: str, *, max_bytes: int = 0) -> bytes:
        return (Path(self.work_dir) / path).read_bytes()

    def write_file(self, path: str, data: bytes) -> None:
        target = Path(self.work_dir) / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)

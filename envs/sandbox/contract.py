"""What every box promises, whichever tier it is of: the contract between an episode and its sandbox.

A box is one `Sandbox` instance: started once, used for one episode, closed. A tier says how strongly it
isolates: `docker`, `namespaces`, or `process` (not at all). Two kinds of failure are kept apart. What the
code in the box did (a non-zero exit, a timeout, too much output, a missing file) is an `ExecResult` or an
`OSError` and is an observation. What the machinery did is a `SandboxError`: it says nothing about the policy,
is retried in a new box and never becomes a reward.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Protocol

WORK_DIR = "/work"
DEFAULT_TIMEOUT_S = 30.0

BASE_ENVIRONMENT: Mapping[str, str] = MappingProxyType(
    {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": WORK_DIR,
        "TMPDIR": "/tmp",
        "LANG": "C.UTF-8",
        "TZ": "UTC",
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
)
"""All that a command finds in its environment; the host's own environment never enters a box."""


SYSTEM_FOLDERS = (
    "bin",
    "dev",
    "etc",
    "lib",
    "lib32",
    "lib64",
    "libx32",
    "proc",
    "sbin",
    "sys",
    "tmp",
    "usr",
    "work",
)


def check_folders(folders: Sequence[str]) -> tuple[str, ...]:
    """The folders, each `/NAME` and none of the system's or the box's own. Raises ValueError."""
    for folder in folders:
        name = folder.removeprefix("/")
        if (
            f"/{name}" != folder
            or not name.replace("-", "").replace("_", "").isalnum()
            or name in SYSTEM_FOLDERS
        ):
            raise ValueError(
                f"folders: {folder[:80]!r} cannot be a writable folder of a box; give one such as /app"
            )
    return tuple(dict.fromkeys(folders))


class SandboxError(Exception):
    """The machinery failed, not the code in the box: retry in a new box, never count it as a score."""


class SandboxUnavailableError(SandboxError):
    """A tier cannot be used on this machine; nothing was started. The message says what would mend it."""


class SandboxStartError(SandboxError):
    """A box of a usable tier did not come up."""


class SandboxLostError(SandboxError):
    """A started box stopped answering: killed, out of memory as a whole, or its engine died."""


class SandboxProtocolError(SandboxLostError):
    """A box answered with something that its executor never says; it is closed and not trusted again."""


class FileTooLargeError(OSError):
    """A file in the box is longer than the caller wanted to read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What one box may use. Each field says what happens past it; a tier that cannot enforce one says so."""

    memory_mb: int = 512
    """All processes and temporary files together; past it the kernel kills a process (exit code 137)."""
    pids: int = 128
    """Processes and threads at once; past it fork fails with EAGAIN."""
    cpu: float = 1.0
    """Cores; past it the box is slowed down, nothing fails."""
    tmp_mb: int = 128
    """Size of /tmp and of the work folder, each; past it writes fail with ENOSPC."""
    inodes: int = 65_536
    """Files in /tmp and in the work folder, each; past it creating one fails with ENOSPC."""
    nofile: int = 1024
    """Open files of one process; past it open fails with EMFILE."""
    output_cap_bytes: int = 1 << 20
    """Kept bytes of each of stdout and stderr; past it the middle is dropped and counted."""
    flood_bytes: int = 256 << 20
    """Bytes that a command may write in all; past it the command is killed (`ExecResult.flooded`)."""

    def __post_init__(self) -> None:
        for limit in fields(self):
            if not getattr(self, limit.name) > 0:
                raise ValueError(f"limits.{limit.name} must be positive, got {getattr(self, limit.name)}")
        if self.memory_mb < 32:
            raise ValueError(f"limits.memory_mb must be at least 32, got {self.memory_mb}")
        if self.pids < 8:
            raise ValueError(f"limits.pids must be at least 8, got {self.pids}")
        if self.output_cap_bytes > 32 << 20:
            raise ValueError(f"limits.output_cap_bytes must be at most 32 MiB, got {self.output_cap_bytes}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ExecResult:
    """How one command ended. Output is bytes, exactly as written, except for the middle where it was cut."""

    exit_code: int
    """The command's own, 128 + N where signal N ended it, 126/127 where it could not be run or found."""
    stdout: bytes
    stderr: bytes
    stdout_cut_bytes: int = 0
    """Bytes dropped between the first and the second half of `stdout`; 0 where it is complete."""
    stderr_cut_bytes: int = 0
    timed_out: bool = False
    flooded: bool = False
    """It wrote more than `Limits.flood_bytes` and was killed for it."""
    oom_killed: bool = False
    """The kernel killed a process of the box for memory during the call, as far as the tier can tell."""
    duration_s: float = 0.0

    @property
    def truncated_bytes(self) -> int:
        return self.stdout_cut_bytes + self.stderr_cut_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """The files of a box at a moment, for a box of the same tier and image. Made in one box and read in one.

    The host never unpacks it: to the host it is bytes that somebody else's code may have chosen.
    """

    data: bytes

    @property
    def digest(self) -> str:
        """The same for the same paths, modes, times and contents."""
        return hashlib.sha256(self.data).hexdigest()


class Sandbox(Protocol):
    """One box. Not for use by two threads at once; two boxes are independent of each other."""

    @property
    def tier(self) -> str:
        """`docker`, `namespaces` or `process`."""
        ...

    @property
    def work_dir(self) -> str:
        """The writable folder in which commands start; relative paths are relative to it."""
        ...

    def start(self) -> None:
        """Make the box; SandboxUnavailableError or SandboxStartError where that fails, with nothing left."""
        ...

    def exec(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        output_cap_bytes: int | None = None,
    ) -> ExecResult:
        """Run one command to its end and leave no process of it behind.

        Every command has the box's one unprivileged user: there is no other that it could become.
        The call returns when the command's first process ends, even if a child of it still holds stdout;
        every process that it left is then killed, daemons included.

        Args:
            argv: The program and its arguments, without a shell. A program that is missing gives exit code
                127, one that cannot be run 126, with the reason on stderr.
            stdin: Given whole, then closed; a command that does not read it loses it in silence. Past 64 MiB:
                ValueError.
            env: Added to, or overriding, `BASE_ENVIRONMENT`.
            cwd: Default `work_dir`. A missing one gives exit code 126.
            timeout_s: Past it the whole process group gets SIGTERM, a second later every process of the call
                SIGKILL; the result has `timed_out` and the output up to then.
            output_cap_bytes: Kept per stream, default from `Limits`; past it the middle goes, counted.

        Raises:
            SandboxLostError: the box died or stopped answering; only `close` is of use afterwards.
        """
        ...

    def read_file(self, path: str, *, max_bytes: int = 32 << 20) -> bytes:
        """The bytes of one regular file, read as the box's own user.

        Raises FileNotFoundError, PermissionError, IsADirectoryError, another OSError for a pipe, socket or
        device, and FileTooLargeError past `max_bytes` (never a part of the file).
        """
        ...

    def write_file(self, path: str, data: bytes) -> None:
        """Write one file whole as the box's own user, making its parent folders.

        A full box raises OSError (ENOSPC) and the file may then be there in part.
        """
        ...

    def mark_pristine(self) -> bool:
        """Make a box that `reset` and `snapshot` work on; before its first command, else ValueError.

        False where a box of this tier or image could not be proved clean; it is as good as any other for one
        episode.
        """
        ...

    def snapshot(self, *, max_bytes: int = 64 << 20) -> Snapshot:
        """All files, folders and links that the box's user has made; needs `mark_pristine`.

        Modes and times are kept, hard links become copies, pipes and sockets are left out, processes do not
        take part (no call leaves any). Past `max_bytes` FileTooLargeError; what the box's own user may not
        read is a PermissionError.
        """
        ...

    def reset(self, to: Snapshot | None = None) -> None:
        """Put the box back to its start, prove it, and then write the files of `to`; needs `mark_pristine`.

        Ends processes, empties every place that the box's user can write, removes System V IPC, keys and
        attributes; canaries are planted and must go too; then sizes, lists and limits that the kernel keeps
        must be the same as at the start. Counters of the kernel (such as packets over the loopback or the
        next process id) are not set back.

        Raises:
            SandboxLostError: the box could not be proved clean, or was lost; it is closed.
            OSError: it was clean, but not all files of `to` could be written, as where they do not fit.
        """
        ...

    def close(self) -> None:
        """End every process of the box and free what it held. Any number of times, in any state; never raises
        because the box is already gone."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Capabilities:
    """What attacks on a tier showed on this machine. What could not be shown counts as absent.

    Example: `Capabilities(tier="docker", engine="20.10.24", held={"no_network": True}, evidence={...})`.
    """

    tier: str
    engine: str
    """What stands behind the tier: an engine's or a launcher's name and version."""
    held: Mapping[str, bool] = field(default_factory=dict)
    """Guarantee -> True only where the attack on it failed."""
    evidence: Mapping[str, str] = field(default_factory=dict)
    """Guarantee -> what the attack saw, one line."""

    def holds(self, guarantee: str) -> bool:
        return self.held.get(guarantee, False)

    @property
    def missing(self) -> tuple[str, ...]:
        return tuple(sorted(name for name, held in self.held.items() if not held))

    @property
    def digest(self) -> str:
        """Names this set of guarantees beside a score; evidence takes no part in it."""
        facts = {"tier": self.tier, "engine": self.engine, "held": dict(sorted(self.held.items()))}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def model_view(data: bytes, *, cut_bytes: int = 0, limit_bytes: int = 16_000) -> str:
    """Bytes as a model reads them: UTF-8 with replacement characters, head and tail, a count of what was cut.

    Args:
        data: Output as an `ExecResult` holds it.
        cut_bytes: What is already missing from the middle of `data` (`stdout_cut_bytes`).
        limit_bytes: Past it more of the middle goes.
    """
    if len(data) <= limit_bytes:
        if not cut_bytes:
            return data.decode("utf-8", "replace")
        head, tail = data[: len(data) // 2], data[len(data) // 2 :]
    else:
        half = limit_bytes // 2
        head, tail = data[:half], data[len(data) - half :]
    dropped = cut_bytes + len(data) - len(head) - len(tail)
    notice = f"\n[... {dropped} bytes cut ...]\n"
    return head.decode("utf-8", "replace") + notice + tail.decode("utf-8", "replace")

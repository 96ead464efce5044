"""The `namespaces` tier: Linux namespaces without an engine, by bubblewrap or else by our own launcher.

A box sees this machine's /usr read-only and nothing else of it: no home, no repository, no /etc but a few
files of its own, no network, no process but its own. Inside stand two more walls where this kernel has them,
a seccomp filter and Landlock. Memory and processes are held by a control group where this process may make
one (as root), else by rlimits, which hold each process but not their sum.
"""

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO

from envs.sandbox import cgroups, fork_server, landlock, seccomp
from envs.sandbox.contract import (
    WORK_DIR,
    Limits,
    SandboxError,
    SandboxUnavailableError,
    check_folders,
)
from envs.sandbox.executor_client import PipeTransport, bootstrap_argv
from envs.sandbox.executor_sandbox import ExecutorSandbox
from envs.sandbox.leases import FileLease, Owner, lease_for

NOBODY = 65534
LAUNCHERS = ("bubblewrap", "unshare")


@dataclass(frozen=True, kw_only=True, slots=True)
class Walls:
    """What stands inside a box's namespaces; where the kernel has a wall, a box without it does not start."""

    seccomp: bytes
    """The filter's program; empty: none."""
    landlock_abi: int
    """Which version of Landlock binds the box; 0: none."""


@lru_cache
def walls_of_this_kernel() -> Walls:
    program = b"" if seccomp.why_absent() else seccomp.filter_program(os.uname().machine)
    return Walls(seccomp=program, landlock_abi=landlock.abi() if sys.platform == "linux" else 0)


def describe() -> str:
    """The launcher and the walls of boxes on this machine, and in capitals what they do without."""
    walls = walls_of_this_kernel()
    filtered = "seccomp" if walls.seccomp else f"NO seccomp: {seccomp.why_absent()}"
    version = walls.landlock_abi
    ruled = f"Landlock {version}" if version else "NO Landlock: this kernel has none, or it is off"
    return f"{default_launcher()}, {filtered}, {ruled}"


def namespaces_box(
    limits: Limits | None = None,
    *,
    launcher: str | None = None,
    walls: Walls | None = None,
    folders: Sequence[str] = (),
) -> ExecutorSandbox:
    """A box that is not started yet.

    Args:
        folders: More writable folders, empty at the start, such as /app; none of the system's.
        launcher: `bubblewrap` or `unshare` (our own); default: bubblewrap where it is installed.
        walls: Default: all that this kernel has; fewer only to test what each is good for.
    """
    limits = limits or Limits()
    walls = walls or walls_of_this_kernel()
    carrier = NamespacesCarrier(limits, launcher or default_launcher(), walls, check_folders(folders))
    return ExecutorSandbox(carrier, limits)


@lru_cache
def default_launcher() -> str:
    """Bubblewrap where it is installed and new enough to refuse user namespaces inside, else our own."""
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        return "unshare"
    done = subprocess.run([bwrap, "--help"], capture_output=True, check=False)
    return "bubblewrap" if b"--disable-userns" in done.stdout + done.stderr else "unshare"


def why_unavailable(launcher: str | None = None) -> str | None:
    """None where a box starts on this machine, found by starting one; else what is missing and its remedy."""
    return _why_unavailable(launcher or default_launcher())


@lru_cache
def _why_unavailable(launcher: str) -> str | None:
    box = namespaces_box(launcher=launcher)
    try:
        box.start()
        if box.exec(["true"]).exit_code != 0:
            return "a box started but could not run `true`"
    except SandboxError as error:
        return str(error)
    finally:
        box.close()
    return None


class NamespacesCarrier:
    """Starts the launcher, which starts the box; their deaths follow from each other's."""

    tier = "namespaces"
    work_dir = WORK_DIR

    def __init__(self, limits: Limits, launcher: str, walls: Walls, folders: tuple[str, ...] = ()) -> None:
        if launcher not in LAUNCHERS:
            raise ValueError(f"launcher must be one of {', '.join(LAUNCHERS)}, got {launcher!r}")
        self.name = f"ns-{os.getpid()}-{secrets.token_hex(4)}"
        self.launcher = launcher
        self._limits = limits
        self._walls = walls
        self._folders = folders
        self._launched: fork_server.LaunchedBox | None = None
        self._group: cgroups.BoxCgroup | None = None
        self._errors: IO[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The launcher's, on this machine."""
        return self._launched.pid if self._launched else None

    def start(self) -> PipeTransport:
        python = self._python()
        specification = self._specification(python)
        self._group = cgroups.create(self.name, self._limits)
        specification["cgroup"] = [str(folder) for folder in self._group.folders] if self._group else []
        # A file and not a pipe: nobody has to empty it while the box runs.
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # closed by stop
        try:
            self._launched = fork_server.launch(python, specification, self._errors.fileno())
        except BaseException:
            self.stop()
            raise
        own = self._launched
        return PipeTransport(own.stdin_fd, own.stdout_fd, is_loaded=self.launcher == "unshare")

    def reconnect(self) -> None:
        return None  # the executor is PID 1, which no command can kill: its end is the box's

    def lease(self) -> FileLease | None:
        folders = self._group.folders if self._group else ()
        return lease_for(self.name, self.pid, groups=folders) if self.pid else None

    def oom_kills(self) -> int:
        return self._group.oom_kills() if self._group else 0

    def why_lost(self) -> str:
        reasons = []
        if self._group and self._group.oom_kills():
            reasons.append(f"the kernel killed for memory (limit {self._limits.memory_mb} MiB)")
        if self._errors is not None:
            with contextlib.suppress(OSError, ValueError):
                self._errors.seek(0)
                reasons += self._errors.read(500).decode("utf-8", "replace").split("\n")[:1]
        text = "; ".join(reason for reason in reasons if reason)
        if "Operation not permitted" in text or "No space left" in text:
            text += " (does this kernel allow user namespaces? see docs/sandboxes.md)"
        return text

    def stop(self) -> None:
        if self._launched is not None:
            # Its stdin is closed, so the box ends by itself and the launcher buries its child.
            if not self._launched.wait(2):
                self._launched.kill()
                self._launched.wait(10)
            self._launched.close()
            self._launched = None
        if self._group is not None:
            self._group.kill()
            self._group.remove()
            self._group = None
        if self._errors is not None:
            self._errors.close()
            self._errors = None

    def _specification(self, python: str) -> dict[str, object]:
        if sys.platform != "linux":
            raise SandboxUnavailableError("tier namespaces needs Linux; use Docker: --tier docker")
        bwrap = shutil.which("bwrap") if self.launcher == "bubblewrap" else None
        if self.launcher == "bubblewrap" and bwrap is None:
            raise SandboxUnavailableError("bubblewrap is not installed: apt-get install bubblewrap")
        as_root = os.geteuid() == 0
        host = Owner.current()
        return {
            "host": (host.pid, host.start),
            "argv": _bound_argv(bootstrap_argv(python, "init"), self._walls.landlock_abi, self._folders)
            if bwrap
            else [],
            "landlock_abi": self._walls.landlock_abi,
            "folders": list(self._folders),
            "seccomp": self._walls.seccomp.hex(),
            "bwrap": bwrap and str(Path(bwrap).resolve()),
            "limits": asdict(self._limits),
            "as_root": as_root,
            "outside_uid": NOBODY if as_root else os.geteuid(),
            "outside_gid": NOBODY if as_root else os.getegid(),
        }

    def _python(self) -> str:
        """The one that boxes see: what their executor runs is nothing that they could not read."""
        python = shutil.which("python3", path="/usr/bin:/usr/local/bin")
        if python is None:
            raise SandboxUnavailableError(
                "tier namespaces needs a python3 in /usr, which its boxes see: apt-get install python3"
            )
        return python


def _bound_argv(argv: list[str], landlock_abi: int, folders: tuple[str, ...]) -> list[str]:
    """An executor's argv, whose code binds itself by Landlock before it reads another byte."""
    if not landlock_abi:
        return argv
    code = argv.index("-c") + 1
    bind = f"{Path(landlock.__file__).read_text()}\nrestrict({landlock_abi}, {folders!r})\n"
    return [*argv[:code], bind + argv[code], *argv[code + 1 :]]

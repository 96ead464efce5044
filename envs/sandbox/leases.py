"""Leases: whose a box is and until when, so that what a killed process left can be told from what is in use.

A container carries its lease as labels. What no engine keeps a record of, a namespaces box or the folder of
a bare process, has a file for it, written before the box is given out and removed with it. Whoever reaps
removes a box only where its owner is known to be dead or its lease is over.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import stat
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from envs.sandbox import cgroups
from envs.sandbox.contract import SandboxStartError

DEFAULT_LEASE_S = 4 * 3600
MAX_FILE_BYTES = 4096
FOLDER_PREFIX = "worldsmith-process-"
BOX_PREFIXES = ("ns-", FOLDER_PREFIX)


@dataclass(frozen=True, slots=True)
class Owner:
    """A process of a machine since a moment, so that another one with the same number is not taken for it."""

    boot: str
    """The machine since it booted, and its PID namespace, in which alone the number means that process."""
    pid: int
    start: int
    """In ticks since the machine booted."""

    @classmethod
    def current(cls) -> "Owner":
        return cls.of(os.getpid())

    @classmethod
    def of(cls, pid: int) -> "Owner":
        return cls(_boot(), pid, _start_time(pid) or 0)

    @classmethod
    def parse(cls, text: str) -> "Owner | None":
        parts = text.split(":")
        pid, start = (_count(part) for part in parts[1:]) if len(parts) == 3 else (None, None)
        return None if pid is None or start is None else cls(parts[0], pid, start)

    def __str__(self) -> str:
        return f"{self.boot}:{self.pid}:{self.start}"

    def is_known_dead(self) -> bool:
        """False also where this machine cannot know, as for a process of another one."""
        return self.boot == _boot() and _start_time(self.pid) != self.start


def is_over(owner: str, expires: str) -> bool:
    """Whether a box with these two labels may be removed; labels that we never write may."""
    known, until = Owner.parse(owner), _count(expires)
    return known is None or known.is_known_dead() or until is None or until < time.time()


@dataclass(frozen=True, kw_only=True, slots=True)
class FileLease:
    """The lease of a box that no engine knows of, as its file says it.

    Example: `{"box": "ns-812-5f0c9a1e", "owner": "BOOT:812:99021", "keeper": "BOOT:815:99040",
    "expires": "1790000000", "folder": "", "groups": []}`.
    """

    box: str
    owner: str
    keeper: str
    """The process with which the box ends."""
    expires: str
    """Seconds since 1970."""
    folder: str = ""
    """A temporary folder of the box's, or nothing."""
    groups: tuple[str, ...] = ()
    """Folders of its control group, which lie where its owner ran, not where a reaper runs."""

    @property
    def path(self) -> Path:
        return lease_folder() / f"{self.box}.json"

    def write(self) -> None:
        """Appears whole or not at all; SandboxStartError where it cannot be written."""
        try:
            folder = own_folder()
            temporary = folder / f".{self.box}.{os.getpid()}"
            temporary.write_text(json.dumps(asdict(self)))
            temporary.replace(folder / self.path.name)
        except OSError as error:
            raise SandboxStartError(
                f"the lease of box {self.box} cannot be written: {lease_folder()}: {error.strerror};"
                " a folder of your own with mode 700 is needed there"
            ) from None

    def remove(self) -> None:
        with contextlib.suppress(OSError):
            self.path.unlink()

    def end(self) -> None:
        """End the box, whoever's it is, and free what it held."""
        keeper = Owner.parse(self.keeper)
        if keeper is not None and keeper.pid > 1 and keeper.boot == _boot() and not keeper.is_known_dead():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(keeper.pid, signal.SIGKILL)
        group = cgroups.BoxCgroup(folders=tuple(Path(folder) for folder in self.groups))
        group.kill()
        group.remove()
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.remove()


def lease_for(
    box: str,
    keeper_pid: int,
    *,
    lease_s: float = DEFAULT_LEASE_S,
    folder: str = "",
    groups: Sequence[Path] = (),
) -> FileLease:
    """The lease of a box of this process's, not yet written."""
    return FileLease(
        box=box,
        owner=str(Owner.current()),
        keeper=str(Owner.of(keeper_pid)),
        expires=str(int(time.time() + lease_s)),
        folder=folder,
        groups=tuple(map(str, groups)),
    )


def lease_folder() -> Path:
    """Where this user's lease files lie; the same for every process of a machine, whatever its TMPDIR."""
    shared = Path("/tmp") if Path("/tmp").is_dir() else Path(tempfile.gettempdir())
    return shared / f"worldsmith-leases-{os.geteuid()}"


def reap_files() -> list[str]:
    """End boxes without an engine whose owner is dead or whose lease is over; their names.

    A file that says something else than we write is left alone, as is a folder that others could write to.
    """
    removed = []
    try:
        files = sorted(own_folder().glob("*.json"))
    except OSError:
        return []
    for file in files:
        lease = _read(file)
        if lease is not None and is_over(lease.owner, lease.expires):
            lease.end()
            removed.append(lease.box)
    return removed


def _read(file: Path) -> FileLease | None:
    """None for whatever we would not have written: a reaper kills and deletes by what it reads."""
    try:
        if not stat.S_ISREG(file.lstat().st_mode) or file.stat().st_size > MAX_FILE_BYTES:
            return None
        found = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or set(found) != {field.name for field in fields(FileLease)}:
        return None
    groups = found.pop("groups")
    if not isinstance(groups, list) or not all(isinstance(text, str) for text in [*groups, *found.values()]):
        return None
    lease = FileLease(**found, groups=tuple(groups))
    if not lease.box.startswith(BOX_PREFIXES) or file.name != f"{lease.box}.json":
        return None
    folder = Path(lease.folder)
    has_our_folder = not lease.folder or (folder.name.startswith(FOLDER_PREFIX) and ".." not in folder.parts)
    has_our_groups = all(cgroups.is_folder_of(Path(group), lease.box) for group in groups)
    return lease if has_our_folder and has_our_groups else None


def own_folder() -> Path:
    """The folder, made where it is missing; OSError unless it is a folder that only this user can write."""
    folder = lease_folder()
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise PermissionError(1, "it is not a folder of this user's alone")
    return folder


def _count(text: str) -> int | None:
    return int(text) if text.isdecimal() and len(text) < 20 else None


def _boot() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}.{Path('/proc/self/ns/pid').readlink().name.strip('pid:[]')}"
    except OSError:
        return socket.gethostname()


def _start_time(pid: int) -> int | None:
    """None where there is no such process, or only what a dead one leaves for its parent to see."""
    try:
        state, *others = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return None if state in ("Z", "X") else int(others[18])

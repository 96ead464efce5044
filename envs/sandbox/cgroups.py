"""A control group of one box: the kernel's own limit on its memory, processes and share of the cores.

Works with cgroup v1 and v2, and only where this process may make groups (as root, mostly); where it may not,
`create` gives None and the box has its rlimits alone. The probes find out which of the two holds.
"""

import contextlib
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from envs.sandbox.contract import Limits

ROOT = Path("/sys/fs/cgroup")
PARENT = "worldsmith"
PERIOD_US = 100_000


@dataclass(frozen=True, kw_only=True, slots=True)
class BoxCgroup:
    """The folders that hold one box: one with v2, one per controller with v1."""

    folders: tuple[Path, ...]
    """A process joins by writing its id to `cgroup.procs` in each."""

    def oom_kills(self) -> int:
        """How often the kernel killed a process of this box for memory."""
        for folder in self.folders:
            for name in ("memory.events", "memory.oom_control"):
                with contextlib.suppress(OSError):
                    for line in (folder / name).read_text().splitlines():
                        if line.startswith("oom_kill "):
                            return int(line.split()[1])
        return 0

    def kill(self) -> None:
        """SIGKILL for every process of the group, even where its launcher is gone."""
        for folder in self.folders:
            with contextlib.suppress(OSError):
                for pid in (folder / "cgroup.procs").read_text().split():
                    os.kill(int(pid), signal.SIGKILL)

    def remove(self) -> None:
        """Remove the folders; the kernel needs a moment after the last process has gone."""
        for folder in self.folders:
            for _ in range(200):
                try:
                    folder.rmdir()
                except FileNotFoundError:
                    break
                except OSError:
                    time.sleep(0.005)
                else:
                    break


def create(box: str, limits: Limits) -> BoxCgroup | None:
    """A group named `box` with these limits, or None where no such group can be made."""
    own = _own_groups()
    try:
        if "" in own and (ROOT / "cgroup.controllers").exists():
            return _create_v2(box, limits, own[""])
        return _create_v1(box, limits, own)
    except OSError:
        return None


def _own_groups() -> dict[str, str]:
    """Controller -> this process's group; the empty name is cgroup v2's."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return {}
    groups = {}
    for line in lines:
        _, controllers, path = line.split(":", 2)
        groups |= dict.fromkeys(controllers.split(","), path.lstrip("/"))
    return groups


def _create_v1(box: str, limits: Limits, own: dict[str, str]) -> BoxCgroup | None:
    wanted = {
        "memory": (
            ("memory.limit_in_bytes", limits.memory_mb << 20),
            ("memory.memsw.limit_in_bytes", limits.memory_mb << 20),
        ),
        "pids": (("pids.max", limits.pids),),
        "cpu": (("cpu.cfs_period_us", PERIOD_US), ("cpu.cfs_quota_us", int(limits.cpu * PERIOD_US))),
    }
    if not {"memory", "pids"} <= own.keys():
        return None
    folders: list[Path] = []
    try:
        for controller, settings in wanted.items():
            if controller not in own:
                continue
            folder = ROOT / controller / own[controller] / PARENT / box
            folder.mkdir(parents=True)
            folders.append(folder)
            for name, value in settings:
                # Kernels without swap accounting or CPU quotas lack these two files.
                if name in ("memory.limit_in_bytes", "pids.max") or (folder / name).exists():
                    (folder / name).write_text(str(value))
    except OSError:
        BoxCgroup(folders=tuple(folders)).remove()
        raise
    return BoxCgroup(folders=tuple(folders))


def _create_v2(box: str, limits: Limits, own: str) -> BoxCgroup | None:
    """Below this process's own group where that is delegated, else, as root, below the root."""
    for base in (ROOT / own, ROOT):
        try:
            enabled = (base / "cgroup.subtree_control").read_text().split()
            if not {"memory", "pids"} <= set(enabled):
                continue
            parent = base / PARENT
            parent.mkdir(exist_ok=True)
            for controller in ("memory", "pids", "cpu"):
                if controller in (parent / "cgroup.controllers").read_text().split():
                    (parent / "cgroup.subtree_control").write_text(f"+{controller}")
            folder = parent / box
            folder.mkdir()
        except OSError:
            continue
        group = BoxCgroup(folders=(folder,))
        try:
            (folder / "memory.max").write_text(str(limits.memory_mb << 20))
            (folder / "pids.max").write_text(str(limits.pids))
            with contextlib.suppress(OSError):
                (folder / "memory.swap.max").write_text("0")
            with contextlib.suppress(OSError):
                (folder / "cpu.max").write_text(f"{int(limits.cpu * PERIOD_US)} {PERIOD_US}")
        except OSError:
            group.remove()
            continue
        return group
    return None


def is_folder_of(folder: Path, box: str) -> bool:
    """Whether a path names a group that `create` could have made for this box."""
    return folder.is_relative_to(ROOT) and ".." not in folder.parts and folder.parts[-2:] == (PARENT, box)


def remove_left() -> list[str]:
    """Remove groups that hold no process and whose maker (PID in `ns-PID-...`) is gone; their names."""
    removed = set()
    for controller, path in _own_groups().items():
        for base in {ROOT / controller / path, ROOT / path, ROOT}:
            for folder in (base / PARENT).glob("ns-*"):
                maker = folder.name.split("-")[1]
                if not Path(f"/proc/{maker}").exists():
                    # Nothing is killed: the maker may live in another PID namespace. rmdir spares what runs.
                    with contextlib.suppress(OSError):
                        folder.rmdir()
                        removed.add(folder.name)
    return sorted(removed)

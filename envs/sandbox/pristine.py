"""Runs inside a box: puts it back into the state that it had before its first command, and proves it.

The host sends this text to the executor of a box that will be used again. `mark` finds every place that the
box's user can write and notes what the kernel says of the box; `reset` empties the places, plants canaries of
each kind, cleans again and compares. What differs then is told, and the host gives the box up. `pack` and
`unpack` carry the files of the places out and in, in a form that nobody but this file reads.

Needs ctypes, else the same modules as executor.py, and imports nothing of ours.
"""

# ruff: noqa: PTH101, PTH102, PTH115, PTH116, PTH118, PTH123, PTH208, PTH211

import ctypes
import errno
import os
import stat
import struct
import time

LIBC = ctypes.CDLL(None, use_errno=True)
ENTRY = struct.Struct(">BIIQQ")
"""Kind, mode, length of path, length of data, nanoseconds of the last change."""
FOLDER, FILE, LINK = 0, 1, 2
KERNEL_TYPES = {"proc", "sysfs", "cgroup", "cgroup2", "devpts"}
MAX_SCANNED = 20_000
RLIMIT_MSGQUEUE = 12
# From <asm/unistd.h>: keyctl, sched_getattr, ioprio_get.
NUMBERS = {"x86_64": (250, 315, 252), "aarch64": (219, 275, 31)}
KEYCTL_CLEAR, KEYCTL_READ = 7, 11
KEYRINGS = (-3, -4, -5)
SOCKET_LISTS = ("unix", "tcp", "tcp6", "udp", "udp6", "udplite", "raw", "raw6", "icmp", "packet", "netlink")
IPC_REMOVERS = {"shm": ("shmctl", (0, None)), "msg": ("msgctl", (0, None)), "sem": ("semctl", (0, 0))}
Reply = tuple[dict[str, int], bytes]


class Pristine:
    """What a box was like at its start, and the way back. Works on behalf of one executor."""

    def __init__(self, executor) -> None:
        self.executor = executor
        self.places: dict[str, tuple] = {}
        self.facts: dict[str, object] = {}
        self.packed = b""

    def mark(self, request: dict, body: bytes) -> Reply:
        """Note the state to come back to. ENOTEMPTY or EPERM where such a box could not be proved clean."""
        machine = os.uname().machine
        if not self.executor.hidden or self.executor.mode == "group" or machine not in NUMBERS:
            raise OSError(errno.EPERM, "")  # commands could change this process, or more than the box
        self.executor.end_others()
        # A POSIX message queue can be neither seen nor found without its name: none may be made.
        check(LIBC.prlimit(0, RLIMIT_MSGQUEUE, (ctypes.c_ulong * 2)(0, 0), None))
        for place in writable_places():
            if os.listdir(place):
                raise OSError(errno.ENOTEMPTY, "")
            self.places[place] = place_facts(place)
        self.clean()  # a keyring starts with a link to another one
        self.facts = process_facts()
        return {"places": len(self.places)}, b""

    def reset(self, request: dict, body: bytes) -> Reply:
        """Clean, plant, clean, look; `differing` counts what is not as it was, the body names it."""
        if not self.facts:
            raise OSError(errno.EINVAL, "")
        self.packed = b""
        os.chdir("/")
        self.clean()
        planted = self.plant()
        self.clean()
        found = [f"canary {name}" for name in planted if os.path.lexists(name)]
        found += self.differences()
        return {"planted": len(planted), "differing": len(found)}, "; ".join(found)[:400].encode()

    def clean(self) -> None:
        self.executor.end_others()
        for place, facts in self.places.items():
            empty(place, facts)
        for kind, (remover, arguments) in IPC_REMOVERS.items():
            for line in lines(f"/proc/sysvipc/{kind}")[1:]:
                getattr(LIBC, remover)(int(line.split()[1]), *arguments)
        for ring in KEYRINGS:
            keyctl(KEYCTL_CLEAR, ring)

    def plant(self) -> list[str]:
        """One of everything that an episode may leave; the paths of those that have one."""
        planted = []
        name = ".canary-" + os.urandom(8).hex()
        for place in self.places:
            path = f"{place}/{name}"
            if place == "/dev/mqueue":  # knows neither folders nor, with that limit, files of ours
                continue
            os.mkdir(path)
            os.mkdir(path + "/deep")
            os.symlink("/etc/passwd", path + "/deep/link")
            os.close(os.open(path + "/deep/file", os.O_WRONLY | os.O_CREAT, 0o400))
            os.chmod(path + "/deep", 0)
            planted.append(path)
        LIBC.shmget(0, 4096, 0o1600)  # refused where commands cannot have any either
        if os.fork() == 0:
            os.setsid()
            while True:
                time.sleep(1000)
        return planted

    def differences(self) -> list[str]:
        found = [f"{len(self.executor.others())} processes"] if self.executor.others() else []
        for place, facts in self.places.items():
            left = os.listdir(place)
            found += [f"{len(left)} entries in {place}"] if left else []
            found += [f"{place} is not as it was"] if place_facts(place) != facts else []
        now = process_facts()
        return found + [f"{name} changed" for name in self.facts if now[name] != self.facts[name]]

    def pack(self, request: dict, body: bytes) -> Reply:
        """All files, folders and links of the places, kept for `chunk`; EFBIG past `limit` bytes."""
        parts: list[bytes] = []
        size = 0
        for place in self.places:
            for folder, folders, files in os.walk(place, onerror=fail):
                for name in sorted(folders) + sorted(files):
                    found = entry(os.path.join(folder, name), request["limit"] - size)
                    parts += found
                    size += sum(map(len, found))
                    if size > request["limit"]:
                        raise OSError(errno.EFBIG, "")
        self.packed = b"".join(parts)
        return {"size": len(self.packed)}, b""

    def chunk(self, request: dict, body: bytes) -> Reply:
        begin, end = request["offset"], request["offset"] + request["length"]
        return {"size": len(self.packed)}, self.packed[begin:end]

    def unpack(self, request: dict, body: bytes) -> Reply:
        """Write what `pack` gave into the emptied places; EINVAL for anything else."""
        at, count = 0, 0
        folders = []
        roots = tuple(os.fsencode(place) + b"/" for place in self.places)
        while at < len(body):
            if len(body) - at < ENTRY.size:
                raise OSError(errno.EINVAL, "")
            kind, mode, path_length, data_length, changed = ENTRY.unpack_from(body, at)
            at += ENTRY.size
            path, data = body[at : at + path_length], body[at + path_length : at + path_length + data_length]
            at += path_length + data_length
            if b".." in path.split(b"/") or not path.startswith(roots):
                raise OSError(errno.EINVAL, "")
            if kind == FOLDER:
                os.mkdir(path)
                folders.append((path, mode, changed))
            else:
                unpack_one(kind, path, data, mode)
                os.utime(path, ns=(changed, changed), follow_symlinks=False)
            count += 1
        for path, mode, changed in reversed(folders):  # last, as their contents change them
            os.utime(path, ns=(changed, changed))
            os.chmod(path, mode)
        return {"count": count}, b""


def operations(executor) -> dict[str, object]:
    keeper = Pristine(executor)
    names = ("mark", "reset", "pack", "chunk", "unpack")
    return {name: getattr(keeper, name) for name in names}


def writable_places() -> list[str]:
    """The topmost folders that this user can write to; EPERM where there are files or too many folders."""
    places: list[str] = []
    scanned = 0
    for line in lines("/proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        point, options = before.split()[4:6]
        point = point.encode().decode("unicode_escape").encode("latin-1").decode("utf-8", "surrogateescape")
        kind, _, super_options = after.split(" ", 2)
        read_only = "ro" in options.split(",") or "ro" in super_options.split(",")
        if read_only or kind in KERNEL_TYPES:
            continue
        if stat.S_ISREG(os.stat(point).st_mode) and os.access(point, os.W_OK):
            raise OSError(errno.EPERM, "")
        for folder, folders, files in os.walk(point):
            scanned += 1 + len(files)
            if os.access(folder, os.W_OK):
                places.append(folder)
                folders.clear()
            elif scanned > MAX_SCANNED or any(is_writable_file(os.path.join(folder, name)) for name in files):
                raise OSError(errno.EPERM, "")
    return sorted(set(places))


def is_writable_file(path: str) -> bool:
    return stat.S_ISREG(os.lstat(path).st_mode) and os.access(path, os.W_OK)


def place_facts(place: str) -> tuple:
    """What must be the same again; free blocks and inodes show files that have no name any more."""
    status, space = os.stat(place), os.statvfs(place)
    names = tuple(os.listxattr(place))
    return status.st_mode, status.st_uid, status.st_gid, names, space.f_bfree, space.f_ffree


def process_facts() -> dict[str, object]:
    """What a command could have changed in this process, whose user it shares, or left in the kernel."""
    _, sched_getattr, ioprio_get = NUMBERS[os.uname().machine]
    schedule = ctypes.create_string_buffer(64)
    check(LIBC.syscall(ctypes.c_long(sched_getattr), 0, schedule, 56, 0))
    mask = os.umask(0o022)
    facts: dict[str, object] = {
        "limits": tuple(lines("/proc/self/limits")),
        "schedule": schedule.raw,
        "cores": tuple(sorted(os.sched_getaffinity(0))),
        "ioprio": LIBC.syscall(ctypes.c_long(ioprio_get), 1, 0),
        "umask": mask,
    }
    for kind in IPC_REMOVERS:
        facts[f"sysv {kind}"] = len(lines(f"/proc/sysvipc/{kind}"))
    for name in SOCKET_LISTS:
        facts[f"sockets {name}"] = len(lines(f"/proc/net/{name}"))
    for ring in KEYRINGS:
        facts[f"keyring {ring}"] = keyctl(KEYCTL_READ, ring)
    return facts


def keyctl(operation: int, ring: int) -> int:
    """The length of a keyring's contents, or a negative error, as where the box may not use keys at all."""
    number = ctypes.c_long(NUMBERS[os.uname().machine][0])
    result = LIBC.syscall(number, ctypes.c_long(operation), ctypes.c_long(ring), None, ctypes.c_long(0))
    return result if result >= 0 else -ctypes.get_errno()


def empty(place: str, facts: tuple) -> None:
    """Remove everything in a folder, however deep, and set the folder's own facts back.

    Folders inside folders are moved up and emptied in turn, so that no depth needs a long path, a recursion
    or many open files.
    """
    own = facts[1] == os.getuid()
    if own:
        os.chmod(place, stat.S_IMODE(facts[0]))
    top = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    moved = 0
    prefix = ".moved-" + os.urandom(8).hex()
    try:
        while names := os.listdir(top):
            for name in names:
                if not is_folder(name, top):
                    os.unlink(name, dir_fd=top)
                    continue
                inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=top)
                try:
                    for deeper in os.listdir(inner):
                        if is_folder(deeper, inner):
                            moved += 1
                            os.rename(deeper, f"{prefix}-{moved}", src_dir_fd=inner, dst_dir_fd=top)
                        else:
                            os.unlink(deeper, dir_fd=inner)
                finally:
                    os.close(inner)
                os.rmdir(name, dir_fd=top)
    finally:
        os.close(top)
    if own:
        for attribute in os.listxattr(place):
            if attribute not in facts[3]:
                os.removexattr(place, attribute)
        os.utime(place, ns=(0, 0))


def is_folder(name: str, parent: int) -> bool:
    """True after making it one that can be opened and emptied."""
    if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
        return False
    os.chmod(name, 0o700, dir_fd=parent)
    return True


def entry(path: str, limit: int) -> list[bytes]:
    """One file, folder or link as `unpack` reads it; nothing for a pipe, a socket or a device."""
    status = os.lstat(path)
    name = os.fsencode(path)
    if stat.S_ISDIR(status.st_mode):
        kind, data = FOLDER, b""
    elif stat.S_ISLNK(status.st_mode):
        kind, data = LINK, os.fsencode(os.readlink(path))
    elif stat.S_ISREG(status.st_mode):
        if status.st_size > limit:
            raise OSError(errno.EFBIG, "")
        with open(path, "rb") as file:
            kind, data = FILE, file.read(limit + 1)
    else:
        return []
    header = ENTRY.pack(kind, stat.S_IMODE(status.st_mode), len(name), len(data), max(status.st_mtime_ns, 0))
    return [header, name, data]


def unpack_one(kind: int, path: bytes, data: bytes, mode: int) -> None:
    if kind == LINK:
        os.symlink(data, path)
        return
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with open(fd, "wb") as file:
        file.write(data)
        os.fchmod(fd, mode)


def lines(path: str) -> list[str]:
    """A kernel's list; empty where this kernel or box has none."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read().splitlines()
    except OSError:
        return []


def check(result: int) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), "")


def fail(error: OSError) -> None:
    raise error

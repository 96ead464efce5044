"""Starts namespaces boxes: a process of its own, which fork_server.py keeps and tells what to start.

It forks a box off for each message that it gets. That takes three processes: the first stays outside, writes
the ID maps and waits; its child makes the namespaces; the grandchild is PID 1 of the box, builds a root of
read-only system folders and sized temporary ones, gives up every privilege, loads the seccomp filter, binds
itself by Landlock and becomes the executor, whose code is there already. The death of any of them, or of the
host, is the death of the box; the death of the process that they were forked from is not. With `bwrap` in the
specification, bubblewrap does the middle part and starts the executor's Python itself.

Needs ctypes; imports nothing of ours. What the host sends first is the text of the executor and of Landlock.
"""

import ctypes
import gc
import json
import os
import resource
import signal
import socket
import struct
import sys
import time
import types
from pathlib import Path

LIBC = ctypes.CDLL(None, use_errno=True)
# From <sched.h>, <sys/mount.h>, <linux/prctl.h>, <linux/mount.h>, <asm/unistd.h> (the numbers are the same
# on x86-64 and arm64 where they were added after 5.0; pivot_root is older and differs).
CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_BIND, MS_REC, MS_PRIVATE = 1 << 12, 1 << 14, 1 << 18
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 22, 24, 38
PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER = 4, 36
SECCOMP_MODE_FILTER = 2
PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
SYS_MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE = 442, -100, 0x8000
SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
CAPABILITY_VERSION_3 = 0x20080522

MAX_MESSAGE_BYTES = 1 << 17
MAX_FD = 1 << 20
BOX_ID = 1000
"""The user and group inside; outside it is an unprivileged one (`outside_uid` in the specification)."""
SYSTEM_FOLDERS = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
PROC_READ_ONLY = ("sys", "sysrq-trigger", "irq", "bus", "fs")
PROC_HIDDEN = ("kcore", "keys", "key-users", "timer_list", "sched_debug", "latency_stats")
"""Files of /proc that tell of the whole machine or its kernel's addresses: empty in a box."""
RLIMIT_MSGQUEUE = 12
DEVICES = ("null", "zero", "full", "random", "urandom")
ETC_FROM_HOST = ("/etc/ld.so.cache", "/etc/alternatives", "/etc/ssl/certs")
ETC_FILES = {
    "passwd": "agent:x:1000:1000:agent:/work:/bin/sh\nnobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n",
    "group": "agent:x:1000:\nnogroup:x:65534:\n",
    "hosts": "127.0.0.1 localhost box\n",
    "hostname": "box\n",
}


def call(name: str, *arguments: object) -> int:
    """A libc function by name; an OSError that names it where it fails."""
    result = getattr(LIBC, name)(*arguments)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    try:
        call(
            "mount", source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode()
        )
    except OSError as error:
        raise OSError(
            error.errno, f"mounting {source} on {target}: {os.strerror(error.errno or 0)}"
        ) from None


def make_read_only(target: str, *, devices: bool = False) -> None:
    """Read-only with everything below it, without touching flags that the kernel has locked."""
    set_flags = MS_RDONLY | MS_NOSUID | (0 if devices else MS_NODEV)
    attributes = struct.pack("QQQQ", set_flags, 0, 0, 0)
    numbers = [ctypes.c_long(n) for n in (SYS_MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE, len(attributes))]
    call("syscall", numbers[0], numbers[1], target.encode(), numbers[2], attributes, numbers[3])


def set_limits(limits: dict[str, int], *, has_cgroup: bool) -> None:
    values = {resource.RLIMIT_NOFILE: limits["nofile"], resource.RLIMIT_CORE: 0}
    # Memory that the kernel may not swap or move, and queues that outlive their process.
    values |= {resource.RLIMIT_MEMLOCK: 64 << 10, RLIMIT_MSGQUEUE: 0}
    if not has_cgroup:
        # Weaker: memory for each process alone; processes for the user as a whole.
        values |= {resource.RLIMIT_AS: limits["memory_mb"] << 20, resource.RLIMIT_NPROC: limits["pids"]}
    for name, value in values.items():
        resource.setrlimit(name, (value, value))


def join_cgroup(folders: list[str]) -> None:
    for folder in folders:
        (Path(folder) / "cgroup.procs").write_text(str(os.getpid()))


def die_with_parent() -> None:
    call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def build_root(spec: dict) -> None:
    """A new root in /tmp of this mount namespace, then pivot into it."""
    mount("none", "/", "", MS_REC | MS_PRIVATE)
    root = "/tmp"
    # The box's own tmpfs covers the host's /tmp only in this namespace.
    mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,nr_inodes=1k,mode=755")
    for folder in SYSTEM_FOLDERS:
        if Path(folder).is_symlink():
            Path(root + folder).symlink_to(Path(folder).readlink())
        elif Path(folder).is_dir():
            bind(folder, root + folder)
    Path(root + "/etc").mkdir()
    for name, text in ETC_FILES.items():
        Path(f"{root}/etc/{name}").write_text(text)
    for path in ETC_FROM_HOST:
        if Path(path).exists():
            bind(path, root + path)
    Path(root + "/dev").mkdir()
    for device in DEVICES:
        bind(f"/dev/{device}", f"{root}/dev/{device}", devices=True)
    for name, target in (("fd", "fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        Path(f"{root}/dev/{name}").symlink_to(f"/proc/self/{target}")
    Path(root + "/proc").mkdir()
    mount("proc", root + "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    # Without user namespaces of its own a box cannot reach the kernel code that only their roots reach.
    Path(root + "/proc/sys/user/max_user_namespaces").write_text("0")
    cover_proc(root + "/proc")
    for folder, mode, size_mb in temporary_folders(spec):
        Path(root + folder).mkdir()
        options = f"size={size_mb}m,nr_inodes={spec['limits']['inodes']},mode={mode}"
        mount("tmpfs", root + folder, "tmpfs", MS_NOSUID | MS_NODEV, options)
    mount("none", root, "", MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)
    os.chdir(root)
    call("syscall", ctypes.c_long(SYS_PIVOT_ROOT[os.uname().machine]), b".", b".")
    call("umount2", b".", MNT_DETACH)
    os.chdir("/work")


def cover_proc(proc: str) -> None:
    for name in filter(lambda name: Path(proc, name).exists(), PROC_READ_ONLY):
        mount(f"{proc}/{name}", f"{proc}/{name}", "", MS_BIND | MS_REC)
        make_read_only(f"{proc}/{name}")
    for name in filter(lambda name: Path(proc, name).exists(), PROC_HIDDEN):
        mount("/dev/null", f"{proc}/{name}", "", MS_BIND)
        make_read_only(f"{proc}/{name}", devices=True)


def temporary_folders(spec: dict) -> list[tuple[str, str, int]]:
    """What a box may write: folder, mode, size in MiB."""
    size = spec["limits"]["tmp_mb"]
    own = [("/tmp", "1777", size), ("/work", "755", size), ("/dev/shm", "1777", min(size, 64))]
    return own + [(folder, "755", size) for folder in spec["folders"]]


def bind(source: str, target: str, *, devices: bool = False) -> None:
    if Path(source).is_dir():
        Path(target).mkdir(parents=True)
    else:
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        Path(target).touch()
    mount(source, target, "", MS_BIND | MS_REC)
    make_read_only(target, devices=devices)


def give_up_privileges() -> None:
    call("prctl", PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    for capability in range(64):
        if LIBC.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) < 0:
            break
    header = struct.pack("Ii", CAPABILITY_VERSION_3, 0)
    call("capset", header, bytes(24))
    call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def load_filter(program: bytes) -> None:
    """Filter system calls from here on, for this process and all that it starts."""

    class Program(ctypes.Structure):  # struct sock_fprog
        _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))

    loaded = Program(len(program) // 8, program)
    call("prctl", PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(loaded), 0, 0)


def run_box(spec: dict) -> None:
    """As PID 1 of the box: never returns."""
    die_with_parent()
    os.setsid()
    call("sethostname", b"box", 3)
    build_root(spec)
    give_up_privileges()
    die_with_parent()  # a change of credentials clears it
    if spec["seccomp"]:
        load_filter(bytes.fromhex(spec["seccomp"]))
    os.closerange(3, MAX_FD)
    if spec["landlock_abi"]:
        sys.modules["landlock"].restrict(spec["landlock_abi"], tuple(spec["folders"]))
    # What a change of user took away, as an exec would bring it back: its own files in /proc. It hides anew.
    call("prctl", PR_SET_DUMPABLE, 1, 0, 0, 0)
    sys.argv = ["executor", "init"]
    sys.modules["executor"].main()
    os._exit(0)


def make_namespaces(spec: dict, told: int, tell: int) -> None:
    """In the first child: never returns."""
    die_with_parent()
    namespaces = CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC
    call("unshare", namespaces | CLONE_NEWUTS | CLONE_NEWCGROUP)
    os.write(tell, b"1")
    os.close(tell)
    if os.read(told, 1) != b"1":
        os._exit(1)
    os.close(told)
    if spec["as_root"]:
        os.setgroups([])
    os.setresgid(BOX_ID, BOX_ID, BOX_ID)
    os.setresuid(BOX_ID, BOX_ID, BOX_ID)
    die_with_parent()
    # Root's home must not stay reachable as a working folder.
    os.chdir("/")
    pid = os.fork()
    if pid == 0:
        run_box(spec)
    for fd in (0, 1):
        os.close(fd)
    _, status = os.waitpid(pid, 0)
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def launch(spec: dict) -> int:
    """In the first process: start the box, map its user, wait for its end."""
    (child_told, tell_child), (told, child_tell) = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            for fd in (tell_child, told):
                os.close(fd)
            join_cgroup(spec["cgroup"])
            set_limits(spec["limits"], has_cgroup=bool(spec["cgroup"]))
            if spec["bwrap"]:
                become_bubblewrap(spec)
            make_namespaces(spec, child_told, child_tell)
        except BaseException as error:
            os.write(2, f"{error}\n".encode())
        finally:
            os._exit(1)
    for fd in (0, 1, child_told, child_tell):
        os.close(fd)
    if os.read(told, 1) == b"1":  # nothing from bubblewrap, which maps its user itself
        process = Path(f"/proc/{pid}")
        if not spec["as_root"]:
            (process / "setgroups").write_text("deny")
        (process / "uid_map").write_text(f"{BOX_ID} {spec['outside_uid']} 1")
        (process / "gid_map").write_text(f"{BOX_ID} {spec['outside_gid']} 1")
        os.write(tell_child, b"1")
    for fd in (told, tell_child):
        os.close(fd)
    _, status = os.waitpid(pid, 0)
    if is_gone(*spec["host"]):
        remove_cgroup(spec["cgroup"])
    return os.waitstatus_to_exitcode(status) & 0xFF


def is_gone(pid: int, start: int) -> bool:
    """Whether our host was killed, so that nobody else removes the group. A dying one has no memory left."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[19]) != start or "VmSize" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True


def remove_cgroup(folders: list[str]) -> None:
    for folder in folders:
        for _ in range(200):  # the kernel needs a moment after the last process
            try:
                Path(folder).rmdir()
            except FileNotFoundError:
                break
            except OSError:
                time.sleep(0.005)
            else:
                break


def become_bubblewrap(spec: dict) -> None:
    """In the first child: never returns."""
    die_with_parent()
    if spec["as_root"]:
        # Bubblewrap maps the user who starts it: as root the box's files would be root's.
        os.setgroups([])
        os.setresgid(*[spec["outside_gid"]] * 3)
        os.setresuid(*[spec["outside_uid"]] * 3)
    os.chdir("/")
    os.execve(spec["bwrap"], bubblewrap_argv(spec), {})


def bubblewrap_argv(spec: dict) -> list[str]:
    """The same box in bubblewrap's words; it knows no limit on inodes."""
    shared = ("user", "ipc", "pid", "net", "uts", "cgroup-try")
    argv = ["bwrap", *[f"--unshare-{name}" for name in shared], "--disable-userns", "--die-with-parent"]
    argv += ["--new-session", "--as-pid-1", "--clearenv", "--cap-drop", "ALL", "--hostname", "box"]
    argv += ["--uid", str(BOX_ID), "--gid", str(BOX_ID)]
    for folder in SYSTEM_FOLDERS:
        if Path(folder).is_symlink():
            argv += ["--symlink", str(Path(folder).readlink()), folder]
        elif Path(folder).is_dir():
            argv += ["--ro-bind", folder, folder]
    for path in ETC_FROM_HOST:
        argv += ["--ro-bind-try", path, path]
    for name, text in ETC_FILES.items():
        argv += ["--ro-bind-data", memory_file(name, text.encode()), f"/etc/{name}"]
    argv += ["--proc", "/proc", "--dev", "/dev"]
    for name in PROC_HIDDEN:
        if Path("/proc", name).exists():
            argv += ["--ro-bind", "/dev/null", f"/proc/{name}"]
    if spec["seccomp"]:
        argv += ["--seccomp", memory_file("seccomp", bytes.fromhex(spec["seccomp"]))]
    for folder, mode, size_mb in temporary_folders(spec):
        argv += ["--perms", f"0{mode}", "--size", str(size_mb << 20), "--tmpfs", folder]
    return [*argv, "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/work", "--", *spec["argv"]]


def memory_file(name: str, data: bytes) -> str:
    """The number of a descriptor that bubblewrap inherits and reads."""
    fd = os.memfd_create(name, 0)
    os.write(fd, data)
    os.lseek(fd, 0, os.SEEK_SET)
    return str(fd)


def serve(control: socket.socket) -> int:
    """Fork a box off for each message, until the host closes its end."""
    for _ in range(2):
        name, text = json.loads(control.recv(MAX_MESSAGE_BYTES))
        sys.modules[name] = types.ModuleType(name)
        exec(compile(text, f"{name}.py", "exec"), sys.modules[name].__dict__)
    # The kernel buries launchers, and the rest of a box whose launcher was killed.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    call("prctl", PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    gc.freeze()
    while True:
        message, fds, _, _ = socket.recv_fds(control, MAX_MESSAGE_BYTES, 3, socket.MSG_CMSG_CLOEXEC)
        if not message:
            return 0
        pid = os.fork()
        if pid == 0:
            os._exit(forked(json.loads(message), fds))
        for fd in fds:
            os.close(fd)
        try:
            pidfds = [os.pidfd_open(pid)]
        except ProcessLookupError:  # it has ended and is buried
            pidfds = []
        socket.send_fds(control, [str(pid).encode()], pidfds)
        for fd in pidfds:
            os.close(fd)


def forked(spec: dict, fds: list[int]) -> int:
    """In the process that stays outside a box: lets go of all but the box's three descriptors."""
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        for target, fd in enumerate(fds):
            os.dup2(fd, target)
        os.closerange(3, MAX_FD)
        return launch(spec)
    except BaseException as error:
        os.write(2, f"{error}\n".encode())
        return 1


def main() -> int:
    # Not tied to the host by PR_SET_PDEATHSIG, which would fire when the thread that started this ends: it
    # sees the host's death as the end of its control socket, the executor as that of its stdin.
    os.closerange(3, MAX_FD)
    return serve(socket.socket(fileno=0))


if __name__ == "__main__":
    sys.exit(main())

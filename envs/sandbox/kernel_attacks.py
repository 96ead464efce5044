"""Attacks on what a box shares with this machine: its kernel and the files bound into it.

Each answers whether the box withstood and what was seen, in one line. Whether something failed is not enough
where it would have failed anyway: these look at the way it failed, or try what nothing but the wall forbids.
"""

import os

from envs.sandbox import seccomp
from envs.sandbox.contract import Limits, Sandbox

PROBE_LIMITS = Limits(memory_mb=96, pids=32, tmp_mb=16, inodes=2048, output_cap_bytes=1 << 16)

Finding = tuple[bool, str]


def python(box: Sandbox, code: str, *arguments: str, timeout_s: float = 10.0) -> tuple[int, str]:
    """Exit code and the text of both streams, on one line."""
    result = box.exec(["python3", "-ISc", code, *arguments], timeout_s=timeout_s)
    return result.exit_code, " ".join((result.stdout + result.stderr).decode("utf-8", "replace").split())


def makes_user_namespaces(box: Sandbox) -> Finding:
    """By each of the three calls that can: in one of its own a command would be root to much kernel code."""
    machine = os.uname().machine
    numbers = [seccomp.number_of(name, machine) for name in ("unshare", "clone", "clone3")]
    code, text = python(box, _USER_NAMESPACES, *map(str, numbers))
    words = text.split()
    refused = [word.rpartition("=")[2] for word in words]
    return code == 0 and len(words) == 3 and "made" not in refused, f"new user namespace: {text[:100]}"


def calls_what_is_filtered(box: Sandbox) -> Finding:
    """Calls that any user may make of a kernel without a filter: each must fail with EPERM.

    Keyrings and userfaultfd ask for no privilege, so no capability that is missing explains their failure.
    """
    names = ("add_key", "keyctl", "userfaultfd")
    numbers = [str(seccomp.number_of(name, os.uname().machine)) for name in names]
    code, text = python(box, _FILTERED_CALLS, *numbers)
    return code == 0 and text == "mode 2: EPERM EPERM EPERM", f"{' '.join(names)}: {text[:80]}"


def makes_device_nodes(box: Sandbox) -> Finding:
    """A device of number 0:0 in a folder of its own, which needs no capability; Landlock refuses it."""
    code, text = python(box, _DEVICE_NODE)
    return code == 0 and text == "EACCES", f"mknod: {text[:80]}"


def writes_to_bound_files(box: Sandbox) -> Finding:
    """The error for a new file must be that of a read-only mount, not that of a folder of another owner."""
    code, text = python(box, _BOUND_FOLDERS)
    refusals = dict(word.split("=") for word in text.split() if "=" in word)
    held = code == 0 and len(refusals) >= 3 and set(refusals.values()) == {"EROFS"}
    return held, f"a new file: {text[:100]}"


def takes_the_box_along(box: Sandbox) -> Finding:
    """Memory past the limit in one process: commands are marked as the kernel's victims, the box lives on."""
    box.write_file("before-oom", b"kept")
    _, score = python(box, "print(open('/proc/self/oom_score_adj').read())")
    marked = score.isdigit() and int(score) > 0
    limit_mb = 3 * PROBE_LIMITS.memory_mb
    result = box.exec(["python3", "-c", _HOARD, str(limit_mb)], timeout_s=20)
    lives = box.read_file("before-oom") == b"kept"
    return marked and lives and result.exit_code != 0, (
        f"a command's oom_score_adj is {score[:40]}; it took {limit_mb} MiB, exit code {result.exit_code}"
    )


_HOARD = """
import sys
kept = []
for _ in range(int(sys.argv[1]) // 4):
    kept.append(b"x" * (4 << 20))
"""

_USER_NAMESPACES = """
import ctypes, errno, os, signal, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
unshare, clone, clone3 = (ctypes.c_long(int(number)) for number in sys.argv[1:])
NEWUSER = 0x10000000
arguments = struct.pack("QQQQQQQQ", NEWUSER, 0, 0, 0, signal.SIGCHLD, 0, 0, 0)
calls = {
    "clone": lambda: libc.syscall(clone, ctypes.c_long(NEWUSER | signal.SIGCHLD), 0, 0, 0, 0),
    "clone3": lambda: libc.syscall(clone3, arguments, ctypes.c_size_t(len(arguments))),
    "unshare": lambda: libc.syscall(unshare, ctypes.c_long(NEWUSER)),
}
for name, call in calls.items():
    result = call()
    if result == 0 and name != "unshare":
        os._exit(0)
    print(name, "made" if result >= 0 else errno.errorcode[ctypes.get_errno()], sep="=")
"""

_FILTERED_CALLS = """
import ctypes, errno, sys
libc = ctypes.CDLL(None, use_errno=True)
add_key, keyctl, userfaultfd = (ctypes.c_long(int(number)) for number in sys.argv[1:])
session = ctypes.c_long(-3)
results = []
for call in (
    lambda: libc.syscall(add_key, b"user", b"worldsmith", b"x", ctypes.c_size_t(1), session),
    lambda: libc.syscall(keyctl, ctypes.c_long(0), session, ctypes.c_long(0)),
    lambda: libc.syscall(userfaultfd, ctypes.c_long(1)),
):
    results.append("made" if call() >= 0 else errno.errorcode[ctypes.get_errno()])
mode = [line.split()[1] for line in open("/proc/self/status") if line.startswith("Seccomp:")]
print(f"mode {' '.join(mode)}: {' '.join(results)}")
"""

_DEVICE_NODE = """
import errno, os, stat
try:
    os.mknod("/tmp/worldsmith-probe", stat.S_IFCHR | 0o600, 0)
    os.unlink("/tmp/worldsmith-probe")
    print("made")
except OSError as error:
    print(errno.errorcode[error.errno])
"""

_BOUND_FOLDERS = """
import errno, os
for folder in "/ /usr /usr/bin /usr/lib /etc".split():
    path = folder.rstrip("/") + "/worldsmith-probe"
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        os.unlink(path)
        print(folder, "made", sep="=")
    except OSError as error:
        print(folder, errno.errorcode[error.errno], sep="=")
"""

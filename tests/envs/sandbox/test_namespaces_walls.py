"""What stands inside a namespaces box: each wall is tried with and without it, lest another one be tested."""

import os
import platform
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import pytest

from envs.sandbox import kernel_attacks, namespaces, namespaces_launcher, seccomp
from envs.sandbox.contract import Limits, Sandbox
from envs.sandbox.namespaces import Walls, namespaces_box, walls_of_this_kernel

LIMITS = Limits(memory_mb=128, pids=40, tmp_mb=32, inodes=4096)
NO_WALLS = Walls(seccomp=b"", landlock_abi=0)
OpenBox = Callable[..., Sandbox]


@pytest.fixture(scope="module", params=namespaces.LAUNCHERS)
def launcher(request: pytest.FixtureRequest) -> str:
    if request.param == "bubblewrap" and shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed")
    fault = namespaces.why_unavailable(request.param)
    if fault is not None:
        pytest.skip(f"tier namespaces: {fault}")
    return request.param


@contextmanager
def started(launcher: str, walls: Walls | None = None) -> Iterator[Sandbox]:
    with closing(namespaces_box(LIMITS, launcher=launcher, walls=walls)) as box:
        box.start()
        yield box


def test_more_folders_are_writable_and_sized_and_nothing_else_is(launcher: str) -> None:
    with closing(namespaces_box(LIMITS, launcher=launcher, folders=("/app", "/logs"))) as box:
        box.start()
        script = "for d in / /usr /etc /app /logs; do touch $d/x 2>/dev/null && echo $d; done; true"
        assert box.exec(["sh", "-c", script]).stdout == b"/app\n/logs\n"
        full = box.exec(["sh", "-c", "head -c 40000000 /dev/zero > /app/big"])  # of 32 MiB
        assert full.exit_code != 0
        assert b"No space left" in full.stderr


@pytest.fixture(scope="module")
def box(launcher: str) -> Iterator[Sandbox]:
    with started(launcher) as shared:
        yield shared


@pytest.fixture(scope="module")
def bare_box(launcher: str) -> Iterator[Sandbox]:
    """Namespaces and nothing else."""
    with started(launcher, NO_WALLS) as shared:
        yield shared


@pytest.fixture
def filters() -> None:
    if seccomp.why_absent() is not None:
        pytest.skip(str(seccomp.why_absent()))


@pytest.fixture
def rules() -> None:
    if not walls_of_this_kernel().landlock_abi:
        pytest.skip("this kernel has no Landlock")


def results_of_calls(box: Sandbox, *names: str) -> dict[str, str]:
    """System calls that need no privilege -> `made`, or the name of the error."""
    numbers = {name: seccomp.number_of(name, os.uname().machine) for name in names}
    code, text = kernel_attacks.python(box, CALLS, repr(numbers))
    assert code == 0, text
    return dict(word.split("=") for word in text.split())


@pytest.mark.usefixtures("filters")
def test_calls_that_any_user_may_make_fail_in_a_box_and_only_because_of_the_filter(
    box: Sandbox, bare_box: Sandbox
) -> None:
    names = ("ptrace", "add_key", "keyctl", "userfaultfd", "io_uring_setup", "socket", "unshare")
    refused = dict.fromkeys(names, "EPERM") | {"socket": "EAFNOSUPPORT"}
    assert results_of_calls(box, *names) == refused
    without = results_of_calls(bare_box, *names)
    assert {without[name] for name in ("ptrace", "add_key", "keyctl", "socket")} == {"made"}


@pytest.mark.usefixtures("filters")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="int 0x80 is x86's")
def test_a_call_in_32_bit_clothes_ends_its_process(box: Sandbox, bare_box: Sandbox) -> None:
    if bare_box.exec(["python3", "-c", INT_0X80]).exit_code != 0:
        pytest.skip("this kernel takes no 32-bit calls")
    assert box.exec(["python3", "-c", INT_0X80]).exit_code == 128 + 31  # SIGSYS
    assert box.exec(["echo", "alive"]).stdout == b"alive\n"


@pytest.mark.usefixtures("rules")
def test_landlock_refuses_a_device_node_and_nothing_else_would(box: Sandbox, bare_box: Sandbox) -> None:
    assert kernel_attacks.makes_device_nodes(box) == (True, "mknod: EACCES")
    assert kernel_attacks.makes_device_nodes(bare_box) == (False, "mknod: made")


def test_user_namespaces_are_refused_even_without_the_filter(bare_box: Sandbox) -> None:
    held, seen = kernel_attacks.makes_user_namespaces(bare_box)
    assert held, seen
    assert seen.count("ENOSPC") == 3


def test_no_bound_file_system_is_writable_whoever_owns_its_files(bare_box: Sandbox) -> None:
    held, seen = kernel_attacks.writes_to_bound_files(bare_box)
    assert held, seen
    writable = {path for path, options in mounts(bare_box).items() if "ro" not in options}
    devices = {f"/dev/{name}" for name in (*namespaces_launcher.DEVICES, "tty")}
    assert writable <= {"/proc", "/tmp", "/work", "/dev/shm", "/dev/pts"} | devices, writable


def test_no_mount_gives_privileges_and_only_dev_has_devices(box: Sandbox) -> None:
    for path, options in mounts(box).items():
        assert "nosuid" in options, path
        hidden = path.removeprefix("/proc/") in namespaces_launcher.PROC_HIDDEN  # covered by /dev/null
        assert "nodev" in options or path.startswith("/dev") or hidden, path


def mounts(box: Sandbox) -> dict[str, set[str]]:
    """Mount point -> its own options; what covers another at the same place wins."""
    text = box.read_file("/proc/self/mountinfo").decode()
    return {line.split()[4]: set(line.split()[5].split(",")) for line in text.splitlines()}


def test_proc_tells_nothing_of_keys_and_timers_of_this_machine(box: Sandbox) -> None:
    for name in ("keys", "timer_list", "kcore", "sched_debug"):
        assert box.exec(["cat", f"/proc/{name}"]).stdout == b"", name


def test_rlimits_hold_what_control_groups_do_not_count(box: Sandbox) -> None:
    names = "r.RLIMIT_CORE, r.RLIMIT_MEMLOCK, 12, r.RLIMIT_NOFILE"  # 12: RLIMIT_MSGQUEUE
    code = f"import resource as r; print(*map(r.getrlimit, ({names})))"
    assert box.exec(["python3", "-c", code]).stdout == b"(0, 0) (65536, 65536) (0, 0) (1024, 1024)\n"


def test_ordinary_programs_notice_none_of_it(box: Sandbox) -> None:
    result = box.exec(["python3", "-c", ORDINARY])
    assert (result.exit_code, result.stdout, result.stderr) == (0, b"all done\n", b"")
    assert (
        box.exec(["sh", "-c", "(echo a; echo b) | sort -r > /tmp/f; cat /tmp/f; echo x >/dev/null"]).stdout
        == b"b\na\n"
    )


def test_the_walls_and_their_absence_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namespaces, "walls_of_this_kernel", lambda: Walls(seccomp=b"x", landlock_abi=6))
    assert namespaces.describe().endswith(", seccomp, Landlock 6")
    monkeypatch.setattr(namespaces, "walls_of_this_kernel", lambda: NO_WALLS)
    monkeypatch.setattr(seccomp, "why_absent", lambda: "this kernel has none")
    assert ", NO seccomp: this kernel has none, NO Landlock: " in namespaces.describe()


CALLS = """
import ast, ctypes, errno, os, sys
libc = ctypes.CDLL(None, use_errno=True)
session = ctypes.c_long(-3)
parameters = {
    "ptrace": (0, 0, 0, 0),
    "add_key": (b"user", b"worldsmith", b"x", ctypes.c_size_t(1), session),
    "keyctl": (0, session, 0),
    "userfaultfd": (1,),
    "io_uring_setup": (1, bytes(120)),
    "socket": (16, 3, 0),
    "unshare": (0x10000000,),
}
for name, number in ast.literal_eval(sys.argv[1]).items():
    result = libc.syscall(ctypes.c_long(number), *parameters[name])
    print(f"{name}={'made' if result >= 0 else errno.errorcode[ctypes.get_errno()]}")
"""

INT_0X80 = """
import ctypes, mmap
code = bytes([0xB8, 20, 0, 0, 0, 0xCD, 0x80, 0xC3])  # mov eax, 20 (getpid); int 0x80; ret
page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
page.write(code)
call = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
raise SystemExit(0 if call() > 0 else 1)
"""

ORDINARY = """
import asyncio, concurrent.futures, multiprocessing, os, socket, sqlite3, subprocess, tempfile, threading
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map(abs, [-1, -2]) == [1, 2]
with concurrent.futures.ThreadPoolExecutor(4) as threads:
    assert sum(threads.map(int, "1234")) == 10
one, other = socket.socketpair()
one.send(b"x")
assert other.recv(1) == b"x"
asyncio.run(asyncio.sleep(0))
base = sqlite3.connect("/work/base.db")
base.execute("create table t (n)")
base.commit()
assert subprocess.run(["sh", "-c", "exit 3"]).returncode == 3
with tempfile.TemporaryDirectory() as folder:
    os.mkdir(folder + "/one")
    with open(folder + "/one/file", "w") as file:
        file.write("text")
    os.rename(folder + "/one/file", folder + "/file")
    os.link(folder + "/file", folder + "/link")
    os.symlink("file", folder + "/symlink")
    os.mkfifo(folder + "/fifo")
    assert open(folder + "/symlink").read() == "text"
    os.truncate(folder + "/file", 1)
os.remove("/work/base.db")
print("all done")
"""

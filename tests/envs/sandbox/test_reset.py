"""A reset against all by which one episode could leave something to the next: it goes, or the box does."""

from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from envs.sandbox import docker_engine, namespaces
from envs.sandbox.contract import FileTooLargeError, Limits, SandboxLostError, Snapshot
from envs.sandbox.executor_client import pristine_source
from envs.sandbox.executor_sandbox import ExecutorSandbox
from envs.sandbox.pristine import ENTRY, FILE
from envs.sandbox.trusted_process import trusted_process_box

LIMITS = Limits(memory_mb=128, pids=40, tmp_mb=16, inodes=4096)
TIERS = [pytest.param("namespaces"), pytest.param("docker", marks=pytest.mark.docker)]
SEEN = "find /work /tmp /dev/shm /dev/mqueue ! -path /work ! -path /tmp ! -path /dev/shm ! -path /dev/mqueue"


@pytest.fixture(scope="module", params=TIERS)
def make_box(request: pytest.FixtureRequest) -> Callable[..., ExecutorSandbox]:
    tier = request.param
    fault = namespaces.why_unavailable() if tier == "namespaces" else docker_engine.why_unavailable()
    if fault is not None:
        pytest.skip(f"tier {tier}: {fault}")
    return namespaces.namespaces_box if tier == "namespaces" else docker_engine.docker_box


@pytest.fixture
def box(make_box: Callable[..., ExecutorSandbox]) -> Iterator[ExecutorSandbox]:
    with closing(make_box(LIMITS)) as started:
        started.start()
        assert started.mark_pristine(), started.why_not_pristine
        yield started


def run(box: ExecutorSandbox, code: str, *arguments: str) -> str:
    result = box.exec(["python3", "-c", code, *arguments], timeout_s=60)
    assert result.exit_code == 0, result
    return result.stdout.decode().strip()


def seen(box: ExecutorSandbox) -> bytes:
    return box.exec(["sh", "-c", f"{SEEN} 2>/dev/null"]).stdout


WRITE_EVERYWHERE = """
import os
for place in ("/work", "/tmp", "/dev/shm"):
    os.makedirs(place + "/a/.b/c")
    for name in ("plain", ".hidden", "with space", "new\\nline", "\\udcff", "-rf"):
        open(f"{place}/a/.b/{name}", "w").write("secret")
    os.symlink("/etc", place + "/link")
    os.mkfifo(place + "/fifo")
    os.link(f"{place}/a/.b/plain", place + "/hard")
    os.chmod(place + "/a/.b", 0)
"""
DEEP = """
import os
for place in ("/work", "/tmp"):
    os.chdir(place)
    for _ in range(1500):
        os.mkdir("d" * 60)
        os.chdir("d" * 60)
    open("bottom", "w").close()
"""
FILL = """
import os
for place in ("/work", "/tmp"):
    try:
        with open(place + "/full", "wb", buffering=0) as file:
            while file.write(bytes(1 << 16)):
                pass
    except OSError:
        pass
    try:
        for n in range(99999):
            os.close(os.open(f"{place}/{n}", os.O_CREAT))
    except OSError:
        pass
"""


@pytest.mark.parametrize("code", [WRITE_EVERYWHERE, DEEP, FILL], ids=["everywhere", "deep", "full"])
def test_no_file_of_one_episode_is_seen_by_the_next(box: ExecutorSandbox, code: str) -> None:
    run(box, code)
    assert seen(box) != b""
    box.reset()
    assert seen(box) == b""
    box.write_file("next", b"1")
    assert box.exec(["cat", "next"]).stdout == b"1"


def test_the_work_folder_has_its_own_mode_and_no_attributes_again(box: ExecutorSandbox) -> None:
    run(box, "import os; os.chmod('/work', 0o000)")
    box.reset()
    assert box.exec(["stat", "-c", "%a %Y", "/work"]).stdout == b"755 0\n"
    if box.exec(["python3", "-c", "import os; os.setxattr('/work', 'user.secret', b'1')"]).exit_code == 0:
        box.reset()
        assert run(box, "import os; print(os.listxattr('/work'))") == "[]"


def test_shared_memory_of_system_v_is_gone(box: ExecutorSandbox) -> None:
    code = "import ctypes; print(ctypes.CDLL(None).shmget(0x5EC, 4096, 0o1666))"
    if int(run(box, code)) < 0:
        pytest.skip("commands of this tier cannot have any")
    box.reset()
    assert int(run(box, "import ctypes; print(ctypes.CDLL(None).shmget(0x5EC, 4096, 0o666))")) == -1


def test_no_message_queue_can_be_made_as_none_could_be_found(box: ExecutorSandbox) -> None:
    code = """
import ctypes, errno
library = ctypes.CDLL(None, use_errno=True)
open_queue = getattr(library, "mq_open", None) or ctypes.CDLL("librt.so.1", use_errno=True).mq_open
print(open_queue(b"/secret", 0o102, 0o600, None), errno.errorcode[ctypes.get_errno()])
"""
    assert run(box, code).startswith("-1 ")


def test_a_key_in_the_users_keyring_is_gone(make_box: Callable[..., ExecutorSandbox]) -> None:
    """In a box without the seccomp filter that forbids keys; Docker's cannot be made without its own."""
    if make_box is not namespaces.namespaces_box:
        pytest.skip("commands of this tier cannot have any")
    with closing(make_box(LIMITS, walls=namespaces.Walls(seccomp=b"", landlock_abi=0))) as box:
        box.start()
        assert box.mark_pristine()
        leave_a_key(box)


def leave_a_key(box: ExecutorSandbox) -> None:
    code = """
import ctypes, os, sys
add, control = (248, 250) if os.uname().machine == "x86_64" else (217, 219)
library = ctypes.CDLL(None)
if sys.argv[1] == "add":
    print(library.syscall(add, b"user", b"secret", b"1", 1, -4))
else:
    print(library.syscall(control, 10, -4, b"user", b"secret", 0))
"""
    assert int(run(box, code, "add")) > 0
    assert int(run(box, code, "find")) > 0
    box.reset()
    assert int(run(box, code, "find")) == -1


# What a command can do to the executor, whose user it shares, stays: such a box is not used again.
SPOILERS = {
    "its limits": "import resource, os; resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE, (99, 99))",
    "its priority": "import os; os.setpriority(os.PRIO_PROCESS, os.getppid(), 7)",
    "its scheduler": "import os; os.sched_setscheduler(os.getppid(), os.SCHED_BATCH, os.sched_param(0))",
    "its cores": "import os; os.sched_setaffinity(os.getppid(), {min(os.sched_getaffinity(0))})",
}


@pytest.mark.parametrize("name", SPOILERS)
def test_a_box_that_cannot_be_set_back_is_given_up(box: ExecutorSandbox, name: str) -> None:
    result = box.exec(["python3", "-c", SPOILERS[name]])
    if result.exit_code != 0:
        assert b"PermissionError" in result.stderr  # the tier forbids it: nothing to find
        box.reset()
        return
    with pytest.raises(SandboxLostError, match=r"not clean after a reset: (limits|schedule|cores) changed"):
        box.reset()
    with pytest.raises(SandboxLostError):
        box.exec(["true"])


def test_a_connection_that_the_kernel_still_remembers_gives_the_box_up(box: ExecutorSandbox) -> None:
    code = """
import socket
server = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(server.getsockname())
connection, _ = server.accept()
connection.close(); client.close()
"""
    result = box.exec(["python3", "-c", code])
    if result.exit_code != 0:  # no loopback, or no sockets: nothing to remember
        box.reset()
        return
    with pytest.raises(SandboxLostError, match="sockets tcp changed"):
        box.reset()


def test_an_executor_that_a_command_killed_is_not_trusted_for_a_reset(box: ExecutorSandbox) -> None:
    killed = box.exec(["sh", "-c", "kill -9 -1"])
    if box.tier == "namespaces":  # where it is PID 1, which no command can kill
        assert b"killed or stopped" not in killed.stderr
        box.reset()
        return
    with pytest.raises(SandboxLostError, match="what knew how it was at its start"):
        box.reset()


@pytest.mark.parametrize(
    ("step", "sign"),
    [
        ("            empty(place, facts)\n", "canary /"),
        ("        self.executor.end_others()\n        for place, facts", "1 processes"),
        ("            getattr(LIBC, remover)(int(line.split()[1]), *arguments)\n", "sysv shm changed"),
    ],
)
def test_a_step_of_the_cleaning_that_does_nothing_is_found_out(
    make_box: Callable[..., ExecutorSandbox], monkeypatch: pytest.MonkeyPatch, step: str, sign: str
) -> None:
    text = pristine_source().decode()
    assert text.count(step) == 1
    without = step.split("\n")[1] if "for place" in step else "            pass\n"
    broken = text.replace(step, without).encode()
    monkeypatch.setattr("envs.sandbox.executor_client.pristine_source", lambda: broken)
    with closing(make_box(LIMITS)) as box:
        box.start()
        has_shm = int(run(box, "import ctypes; print(ctypes.CDLL(None).shmget(0, 4096, 0o1600))")) >= 0
    if sign.startswith("sysv") and not has_shm:
        pytest.skip("this tier allows no System V IPC")
    with closing(make_box(LIMITS)) as box:
        box.start()
        assert box.mark_pristine()
        with pytest.raises(SandboxLostError, match=f"not clean after a reset: .*{sign}"):
            box.reset()


def test_a_snapshot_comes_back_after_a_reset_and_in_another_box(
    box: ExecutorSandbox, make_box: Callable[..., ExecutorSandbox]
) -> None:
    script = "mkdir -p d/e; printf data > d/e/f; ln -s d/e l; chmod 700 d; printf x > /tmp/t"
    box.exec(["sh", "-c", f"{script}; touch -d @1000000000 d/e/f d"])
    look = "cd /work; stat -c '%n %a %F %Y' d d/e/f l; cat l/f /tmp/t; ls -A /work /tmp"
    before = box.exec(["sh", "-c", look]).stdout.splitlines()
    taken = box.snapshot()
    box.exec(["sh", "-c", "rm -r d l; echo other > d"])
    box.reset(taken)
    assert box.exec(["sh", "-c", look]).stdout.splitlines() == before
    assert box.snapshot().digest == taken.digest
    with closing(make_box(LIMITS)) as other:
        other.start()
        other.mark_pristine()
        other.reset(taken)
        assert other.exec(["sh", "-c", look]).stdout.splitlines() == before


def test_a_snapshot_has_a_limit_and_a_forged_one_writes_nothing(
    box: ExecutorSandbox,
) -> None:
    box.exec(["truncate", "-s", "1T", "sparse"])
    with pytest.raises(FileTooLargeError, match="longer than 1000000"):
        box.snapshot(max_bytes=1_000_000)
    for path in (b"/etc/evil", b"/work/../etc/evil", b"/workevil", b"evil"):
        entry = ENTRY.pack(FILE, 0o644, len(path), 4, 0) + path + b"evil"
        with pytest.raises(OSError, match="Invalid argument"):
            box.reset(Snapshot(data=entry))
    with pytest.raises(OSError, match="Invalid argument"):
        box.reset(Snapshot(data=b"nonsense"))
    box.reset()
    assert seen(box) == b""


def test_marking_comes_first_and_reset_needs_it(make_box: Callable[..., ExecutorSandbox]) -> None:
    with closing(make_box(LIMITS)) as box:
        box.start()
        with pytest.raises(ValueError, match="not marked"):
            box.reset()
        box.exec(["true"])
        with pytest.raises(ValueError, match="before its first command"):
            box.mark_pristine()


def test_a_bare_process_cannot_be_proved_clean() -> None:
    with closing(trusted_process_box(allow_unsafe=True)) as box:
        box.start()
        assert not box.mark_pristine()
        assert "cannot see" in box.why_not_pristine

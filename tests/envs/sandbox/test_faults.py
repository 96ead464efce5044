"""Faults for real in every isolating tier: the cause is right, the next command works, nothing is left."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from envs.sandbox import docker_engine, leases, namespaces
from envs.sandbox.contract import ExecResult, Limits, SandboxLostError, model_view
from envs.sandbox.executor_sandbox import ExecutorSandbox
from envs.sandbox.pool import BoxPool, PoolConfig
from worldsmith import sandbox_command

LIMITS = Limits(
    memory_mb=128, pids=40, tmp_mb=16, inodes=4096, output_cap_bytes=1 << 16, flood_bytes=64 << 20
)
TIERS = [
    pytest.param("namespaces", marks=pytest.mark.integration),
    pytest.param("docker", marks=pytest.mark.docker),
]
RUN = """
import sys, threading, time
from envs.sandbox.choose import choose_sandbox
from envs.sandbox.pool import BoxPool, PoolConfig
pool = BoxPool(choose_sandbox(sys.argv[1], log=lambda line: None).make, PoolConfig(warm=1))
pool.warm_up()
box = pool.acquire()
busy = "setsid sleep 300 & trap '' TERM; while :; do sleep 1; done"
threading.Thread(target=box.exec, args=(["sh", "-c", busy],), kwargs={"timeout_s": 600}, daemon=True).start()
other = pool.acquire()
print("playing", flush=True)
for line in sys.stdin:
    print(other.exec(["echo", line.strip()]).stdout.decode(), end="", flush=True)
"""


@pytest.fixture(scope="module", params=TIERS)
def tier(request: pytest.FixtureRequest) -> str:
    fault = namespaces.why_unavailable() if request.param == "namespaces" else docker_engine.why_unavailable()
    if fault is not None:
        pytest.skip(f"tier {request.param}: {fault}")
    return request.param


@pytest.fixture
def make_box(tier: str) -> Callable[[], ExecutorSandbox]:
    make = namespaces.namespaces_box if tier == "namespaces" else docker_engine.docker_box
    return lambda: make(LIMITS)


@pytest.fixture
def box(make_box: Callable[[], ExecutorSandbox]) -> Iterator[ExecutorSandbox]:
    with closing(make_box()) as started:
        started.start()
        assert started.mark_pristine(), started.why_not_pristine
        yield started


def eventually(condition: Callable[[], object], timeout_s: float = 60.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return bool(condition())


# F7, F8, F9, F10, F11, F12 and bombs: what a command does is an observation.

OOM = "x = bytearray(400 << 20)"
FORK_BOMB = "bomb() { bomb | bomb & sleep 0.05; bomb; }; bomb"
DISK_BOMB = "dd if=/dev/zero of=/work/full bs=1M 2>&1; dd if=/dev/zero of=/tmp/full bs=1M 2>&1"
INODE_BOMB = """
import os
try:
    for n in range(99999):
        os.close(os.open(f"/tmp/{n}", os.O_CREAT))
except OSError as error:
    print(error.strerror)
"""
ORPHANS = "for i in $(seq 30); do (setsid sleep 300 &) ; done; echo done"
Check = Callable[[ExecResult], bool]
FAULTS: dict[str, tuple[list[str], float, Check]] = {
    "it hangs": (["sleep", "300"], 0.5, lambda r: r.timed_out and r.exit_code == 143),
    "it ignores SIGTERM": (
        ["sh", "-c", "trap '' TERM; while :; do sleep 1; done"],
        0.5,
        lambda r: r.timed_out and r.exit_code == 137,
    ),
    "it opens a pipe that nobody writes": (
        ["sh", "-c", "mkfifo /tmp/pipe; cat /tmp/pipe"],
        0.5,
        lambda r: r.timed_out,
    ),
    "its child holds stdout": (
        ["sh", "-c", "sleep 300 & echo done"],
        250,
        lambda r: r.stdout == b"done\n" and not r.timed_out and r.duration_s < 200,
    ),
    "it leaves thirty orphans": (["sh", "-c", ORPHANS], 60, lambda r: r.stdout == b"done\n"),
    "a fork bomb": (["sh", "-c", FORK_BOMB], 2, lambda r: r.timed_out or r.exit_code != 0),
    "a memory bomb": (["python3", "-c", OOM], 60, lambda r: r.exit_code == 137 and r.oom_killed),
    "a disk bomb": (["sh", "-c", DISK_BOMB], 60, lambda r: r.stdout.count(b"No space left on device") == 2),
    "an inode bomb": (["python3", "-c", INODE_BOMB], 120, lambda r: b"No space left" in r.stdout),
    "endless output": (["yes"], 60, lambda r: r.flooded and len(r.stdout) == LIMITS.output_cap_bytes),
    "one line of ten million bytes": (
        ["python3", "-c", "print('<' + 'x' * 9_999_998 + '>', end='')"],
        60,
        lambda r: r.stdout[:1] + r.stdout[-1:] == b"<>" and r.stdout_cut_bytes == 10_000_000 - 65_536,
    ),
    "bytes that are no text": (
        ["printf", r"\377\000\033[31m\r\n"],
        60,
        lambda r: r.stdout == b"\xff\0\x1b[31m\r\n" and model_view(r.stdout).startswith("\ufffd\0"),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_a_command_is_its_result_and_leaves_nothing(box: ExecutorSandbox, fault: str) -> None:
    argv, timeout_s, is_right = FAULTS[fault]
    result = box.exec(argv, timeout_s=timeout_s)
    assert is_right(result), result
    after = box.exec(["echo", "next"], timeout_s=60)
    assert (after.exit_code, after.stdout, after.stderr, after.oom_killed) == (0, b"next\n", b"", False)
    box.reset()  # which proves that no process, file or page of it is left


def test_a_box_that_is_killed_is_lost_and_the_pool_gives_another(
    make_box: Callable[[], ExecutorSandbox],
) -> None:
    with closing(BoxPool(make_box, PoolConfig(warm=0))) as pool:
        held = pool.acquire()
        assert held._box is not None
        sandbox = held._box.sandbox
        assert isinstance(sandbox, ExecutorSandbox)
        killer = threading.Timer(0.5, kill_box, [sandbox])
        killer.start()
        with pytest.raises(SandboxLostError):
            held.exec(["sleep", "300"], timeout_s=400)
        killer.join()
        held.close()
        with closing(pool.acquire()) as box:
            assert box.exec(["echo", "next"]).stdout == b"next\n"
        assert pool.counts.discarded == 1
        assert eventually(lambda: not remains(sandbox))


def test_the_command_tells_a_lost_box_from_a_failed_tool(
    tier: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    start = ExecutorSandbox.start

    def start_and_kill(box: ExecutorSandbox) -> None:
        start(box)
        kill_box(box)

    argv = ["--tier", tier, "--json", "--", "sh", "-c", "kill -9 $$"]
    assert sandbox_command.main(argv) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["cause"], shown["exit_code"]) == ("tool_failed", 137)
    monkeypatch.setattr(ExecutorSandbox, "start", start_and_kill)
    assert sandbox_command.main(argv) == 3
    assert json.loads(capsys.readouterr().out)["cause"] == "sandbox_lost"


# F1, F2: the processes that own the boxes.


class Playing:
    """A run in a process of its own, with one box in the middle of a command, one idle and one warm."""

    def __init__(self, tier: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", RUN, tier], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.ask("") == "playing"
        self.owner = leases.Owner.of(self.process.pid)
        self.is_docker = tier == "docker"

    def ask(self, word: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        if word:
            self.process.stdin.write(word + "\n")
            self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def boxes(self) -> list[str]:
        """What there is on this machine of its boxes: containers, or processes and control groups."""
        if self.is_docker:
            return [name for name, owner in containers().items() if owner == str(self.owner)]
        found = []
        for lease in file_leases():
            if lease.owner == str(self.owner):
                keeper = leases.Owner.parse(lease.keeper)
                assert keeper is not None
                found += [lease.box] if not keeper.is_known_dead() else []
                found += [group for group in lease.groups if Path(group).exists()]
        return found

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


def test_a_killed_run_leaves_nothing_and_a_concurrent_one_goes_on(tier: str) -> None:
    with closing(Playing(tier)) as killed, closing(Playing(tier)) as other:
        assert eventually(lambda: len(killed.boxes()) >= 3)
        assert eventually(lambda: len(other.boxes()) >= 3)
        sleepers = descendants(killed.process.pid)
        assert tier == "docker" or len(sleepers) >= 3
        killed.process.send_signal(signal.SIGKILL)
        assert eventually(lambda: killed.boxes() == []), killed.boxes()
        assert eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in sleepers))
        killed.process.wait()
        reaped = leases.reap_files()
        assert all(lease.owner != str(killed.owner) for lease in file_leases())
        assert len(other.boxes()) >= 3
        assert other.ask("still here") == "still here"
        assert not {lease.box for lease in file_leases()} & set(reaped)


def containers() -> dict[str, str]:
    client = docker_engine.connect()
    try:
        found = client.containers.list(all=True, filters={"label": docker_engine.LABEL}, ignore_removed=True)
        return {item.labels[docker_engine.LABEL]: item.labels[docker_engine.OWNER_LABEL] for item in found}
    finally:
        client.close()


def file_leases() -> list[leases.FileLease]:
    found = []
    for file in leases.lease_folder().glob("*.json"):
        with suppress(OSError):
            if (lease := leases._read(file)) is not None:
                found.append(lease)
    return found


def descendants(pid: int) -> list[int]:
    """Processes below a process of this machine, by their numbers here."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, IndexError):
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    found, level = [], {pid}
    while level:
        level = {child for child, parent in parents.items() if parent in level}
        found += level
    return found


def remains(box: ExecutorSandbox) -> list[str]:
    if box.tier == "docker":
        return [name for name in containers() if name == box.name]
    return [lease.box for lease in file_leases() if lease.box == box.name]


def kill_box(box: ExecutorSandbox) -> None:
    carrier = box._carrier
    if isinstance(carrier, namespaces.NamespacesCarrier):
        assert carrier.pid is not None
        os.kill(carrier.pid, signal.SIGKILL)
        return
    assert isinstance(carrier, docker_engine.DockerCarrier)
    client = docker_engine.connect()
    client.containers.get(carrier.container_id or "").kill()
    client.close()

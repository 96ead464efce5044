"""The process that namespaces boxes are forked from: what it knows, what it survives, what survives it."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from envs.sandbox import fork_server, namespaces
from envs.sandbox.contract import SandboxStartError
from envs.sandbox.executor_sandbox import ExecutorSandbox

pytestmark = pytest.mark.integration
CANARY = f"canary-{os.urandom(16).hex()}"


@pytest.fixture(autouse=True)
def boxes_start() -> None:
    fault = namespaces.why_unavailable("unshare")
    if fault is not None:
        pytest.skip(f"tier namespaces: {fault}")


@pytest.fixture
def box() -> Iterator[ExecutorSandbox]:
    with closing(new_box()) as started:
        started.start()
        yield started


def new_box() -> ExecutorSandbox:
    return namespaces.namespaces_box(launcher="unshare")


def server() -> fork_server.ForkServer:
    assert fork_server._server is not None
    return fork_server._server


def children(pid: int) -> list[int]:
    with suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def processes_of(box: ExecutorSandbox) -> list[int]:
    """A box's three, outermost first: its launcher, what made the namespaces, the executor."""
    assert isinstance(box._carrier, namespaces.NamespacesCarrier)
    assert box._carrier.pid is not None
    chain = [box._carrier.pid]
    while below := children(chain[-1]):
        chain += below
    return chain


def eventually(condition: Callable[[], object], timeout_s: float = 20.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return bool(condition())


def echoes(box: ExecutorSandbox) -> bool:
    return box.exec(["echo", "right"]).stdout == b"right\n"


def test_boxes_outlive_it_and_the_next_start_gets_another(box: ExecutorSandbox) -> None:
    killed = server().pid
    os.kill(killed, signal.SIGKILL)
    assert eventually(lambda: not children(killed))
    with closing(new_box()) as second:
        second.start()
        assert server().pid != killed
        assert echoes(second)
        assert echoes(box)
    group = box._carrier._group  # type: ignore[attr-defined]
    box.close()
    assert group is None or not any(folder.exists() for folder in group.folders)


def test_every_start_survives_a_server_that_is_killed_again_and_again() -> None:
    for _ in range(5):
        with closing(new_box()) as box:
            box.start()
            assert echoes(box)
            os.kill(server().pid, signal.SIGKILL)


def test_a_start_that_is_interrupted_leaves_no_answer_for_the_next_one(
    box: ExecutorSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    killed = server().pid
    with monkeypatch.context() as patched:
        patched.setattr(socket, "recv_fds", interrupt)
        with pytest.raises(KeyboardInterrupt):
            new_box().start()
    with closing(new_box()) as second:
        second.start()
        assert server().pid != killed
        assert processes_of(second)[0] not in processes_of(box)
        assert echoes(second)
    assert echoes(box)


def test_many_threads_get_boxes_of_their_own() -> None:
    said: list[bytes] = []

    def play(number: int) -> None:
        with closing(new_box()) as box:
            box.start()
            box.write_file("mine", str(number).encode())
            said.append(box.read_file("mine"))

    threads = [threading.Thread(target=play, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(said) == [str(number).encode() for number in range(8)]


def test_no_descriptor_of_the_host_or_of_another_box_gets_into_a_box(box: ExecutorSandbox) -> None:
    end, other_end = os.pipe()
    os.set_inheritable(end, True)
    os.kill(server().pid, signal.SIGKILL)  # so that the next one is started with that descriptor about
    try:
        with closing(new_box()) as second:
            second.start()
            for process in processes_of(second):
                fds = {int(fd.name) for fd in Path(f"/proc/{process}/fd").iterdir()}
                assert fds <= {0, 1, 2} | own_pipes(process), process
            *_, executor = processes_of(second)
            links = {fd.readlink().name for fd in Path(f"/proc/{executor}/fd").iterdir()}
            assert not any("socket" in link for link in links)
            of_first = {fd.readlink().name for fd in Path(f"/proc/{processes_of(box)[-1]}/fd").iterdir()}
            assert not {link for link in links & of_first if "pipe" in link}
            assert len(list(Path(f"/proc/{server().pid}/fd").iterdir())) == 3
    finally:
        os.close(end)
        os.close(other_end)


def own_pipes(process: int) -> set[int]:
    """Pipes that begin and end in the process itself, as the executor's that its signals wake it by."""
    ends: dict[str, list[int]] = {}
    for fd in Path(f"/proc/{process}/fd").iterdir():
        ends.setdefault(fd.readlink().name, []).append(int(fd.name))
    wakers = {fd for name, fds in ends.items() if "pipe" in name and len(fds) == 2 for fd in fds}
    scores = {fd for name, fds in ends.items() if name == "oom_score_adj" for fd in fds}
    return wakers | scores


def test_a_box_has_nothing_of_the_hosts_memory_or_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLDSMITH_TEST_KEY", CANARY)
    os.kill(server().pid, signal.SIGKILL)
    with closing(new_box()) as box:
        box.start()
        for process in [server().pid, *processes_of(box)]:
            assert Path(f"/proc/{process}/environ").read_bytes() == b""
            memory = memory_of(process)
            assert b"worldsmith" not in Path(f"/proc/{process}/cmdline").read_bytes()
            assert b"become_executor" in memory or b"give_up_privileges" in memory  # it was really read
            assert CANARY.encode() not in memory
            assert str(Path(__file__).parent.parent.parent.parent).encode() not in memory


def memory_of(process: int) -> bytes:
    """All that a process has in memory that it can write."""
    found = b""
    with open(f"/proc/{process}/mem", "rb", buffering=0) as memory:  # noqa: PTH123
        for line in Path(f"/proc/{process}/maps").read_text().splitlines():
            match = re.match(r"([0-9a-f]+)-([0-9a-f]+) rw", line)
            if match and "[v" not in line:
                begin, end = (int(number, 16) for number in match.groups())
                with suppress(OSError):
                    memory.seek(begin)
                    found += memory.read(end - begin)
    return found


def test_a_launcher_that_is_killed_takes_its_box_along_and_leaves_no_zombie(box: ExecutorSandbox) -> None:
    chain = processes_of(box)
    assert len(chain) == 3
    os.kill(chain[0], signal.SIGKILL)
    assert eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in chain))


def test_it_ends_with_its_host() -> None:
    host = subprocess.Popen([sys.executable, "-c", HOST], stdout=subprocess.PIPE, text=True)
    assert host.stdout is not None
    with host:
        pids = [int(word) for word in host.stdout.readline().split()]
        assert len(pids) == 4
        assert all(Path(f"/proc/{pid}").exists() for pid in pids)
        host.kill()
        assert eventually(lambda: not any(is_alive(pid) for pid in pids))


def test_a_forked_host_has_a_server_of_its_own() -> None:
    done = subprocess.run([sys.executable, "-c", FORKED_HOST], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.split()) == (0, ["child", "0", "parent"]), done.stderr


def is_alive(pid: int) -> bool:
    """False for a dead one that nobody has buried, as where this machine's first process does not."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def test_a_python_that_cannot_serve_is_named_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "python3"
    broken.write_text("#!/bin/sh\necho No module named ctypes >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(fork_server, "_server", None)
    monkeypatch.setattr(namespaces.NamespacesCarrier, "_python", lambda _: str(broken))
    with pytest.raises(SandboxStartError, match=r"No module named ctypes.*apt-get install libpython3-stdlib"):
        new_box().start()


HOST = """
import sys, time
sys.path.insert(0, "")
from pathlib import Path
from envs.sandbox import fork_server, namespaces
box = namespaces.namespaces_box(launcher="unshare")
box.start()
pids = [fork_server._server.pid, box._carrier.pid]
while below := Path(f"/proc/{pids[-1]}/task/{pids[-1]}/children").read_text().split():
    pids.append(int(below[0]))
print(*pids, flush=True)
time.sleep(60)
"""

FORKED_HOST = """
import os
from contextlib import closing
from envs.sandbox import fork_server, namespaces

def play(name):
    with closing(namespaces.namespaces_box(launcher="unshare")) as box:
        box.start()
        print(box.exec(["echo", name]).stdout.decode().strip(), flush=True)

with closing(namespaces.namespaces_box(launcher="unshare")) as box:
    box.start()
    pid = os.fork()
    if pid == 0:
        play("child")
        fork_server._end()
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
    play("parent")
"""

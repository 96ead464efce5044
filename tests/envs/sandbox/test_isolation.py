"""Attacks that every isolating tier must withstand, and the contract that each of them keeps.

Without Docker the namespaces tier alone is attacked; its tests skip only where the kernel refuses namespaces.
"""

import os
import resource
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from envs.sandbox import docker_engine, namespaces
from envs.sandbox.contract import FileTooLargeError, Limits, Sandbox, SandboxLostError
from envs.sandbox.executor_sandbox import ExecutorSandbox

LIMITS = Limits(memory_mb=128, pids=40, tmp_mb=32, inodes=4096)
TIERS = [pytest.param("namespaces"), pytest.param("docker", marks=pytest.mark.docker)]


@pytest.fixture(scope="module", params=TIERS)
def tier(request: pytest.FixtureRequest) -> str:
    fault = namespaces.why_unavailable() if request.param == "namespaces" else docker_engine.why_unavailable()
    if fault is not None:
        pytest.skip(f"tier {request.param}: {fault}")
    return request.param


@pytest.fixture(scope="module")
def make_box(tier: str) -> Callable[..., ExecutorSandbox]:
    makers = {"namespaces": namespaces.namespaces_box, "docker": docker_engine.docker_box}
    return makers[tier]


@pytest.fixture(scope="module")
def box(make_box: Callable[..., ExecutorSandbox]) -> Iterator[ExecutorSandbox]:
    """Shared by the tests that leave it as it was; no test may rely on what another one did."""
    with closing(make_box(LIMITS)) as shared:
        shared.start()
        yield shared


@pytest.fixture
def own_box(make_box: Callable[..., ExecutorSandbox]) -> Iterator[ExecutorSandbox]:
    with closing(make_box(LIMITS)) as own:
        own.start()
        yield own


def output(box: Sandbox, *argv: str, timeout_s: float = 30.0) -> str:
    result = box.exec(list(argv), timeout_s=timeout_s)
    assert result.exit_code == 0, result
    return result.stdout.decode()


def processes(box: Sandbox) -> list[str]:
    """Commands in the box except for its keepers and this one itself."""
    keepers = ("cat -", "docker-init", "python3 -ISB", "ps -eo")
    lines = output(box, "ps", "-eo", "args", "--no-headers").splitlines()
    return [line for line in lines if not any(keeper in line for keeper in keepers)]


# What stands between a command and the machine.


def test_a_command_is_not_root_has_no_capability_and_can_gain_none(box: Sandbox) -> None:
    status = dict(line.split(":", 1) for line in output(box, "cat", "/proc/self/status").splitlines())
    assert "0" not in status["Uid"].split()
    assert "0" not in status["Gid"].split()
    assert "0" not in status["Groups"].split()
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[name], 16) == 0, name
    assert status["NoNewPrivs"].strip() == "1"
    assert box.exec(["unshare", "--user", "true"]).exit_code != 0


def test_nothing_answers_on_the_network_not_even_this_machine(box: Sandbox) -> None:
    code = """
import socket, sys
for host in sys.argv[2:]:
    try:
        socket.create_connection((host, int(sys.argv[1])), timeout=1).close()
        print("reached", host)
    except OSError:
        pass
print([line.split(":")[0].strip() for line in open("/proc/net/dev") if ":" in line])
"""
    with closing(socket.create_server(("0.0.0.0", 0))) as server:
        port = str(server.getsockname()[1])
        with closing(socket.create_connection(("127.0.0.1", int(port)))):  # from here it does answer
            seen = output(box, "python3", "-c", code, port, "127.0.0.1", "172.17.0.1", "192.0.2.2")
    assert seen.split("\n")[0] == "['lo']"


def test_an_abstract_unix_socket_of_this_machine_is_out_of_reach(box: Sandbox) -> None:
    name = f"worldsmith-{secrets.token_hex(6)}"
    with closing(socket.socket(socket.AF_UNIX)) as server:
        server.bind(f"\0{name}")
        server.listen()
        code = "import socket, sys; socket.socket(socket.AF_UNIX).connect(chr(0) + sys.argv[1])"
        assert b"ConnectionRefusedError" in box.exec(["python3", "-c", code, name]).stderr


def test_files_of_this_machine_are_invisible(box: Sandbox, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    canary.write_text("secret")
    for folder in (tmp_path, *tmp_path.parents[:-2]):
        folder.chmod(0o755)
    for path in (
        canary,
        Path(__file__),
        Path.home() / ".bashrc",
        Path("/proc/1/root") / canary.relative_to("/"),
    ):
        assert box.exec(["cat", str(path)]).exit_code != 0, path
        with pytest.raises(OSError):  # noqa: PT011  # absent in one tier, forbidden in the other
            box.read_file(str(path))


def test_processes_and_environment_of_this_machine_are_invisible(
    box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLDSMITH_TEST_SECRET", "sk-secret")
    assert int(output(box, "sh", "-c", "ls -d /proc/[0-9]* | wc -l")) < 10
    environment = output(box, "env") + output(box, "sh", "-c", "cat /proc/[0-9]*/environ 2>/dev/null; true")
    assert "SECRET" not in environment
    assert "HOME=/work" in environment


def test_the_memory_of_the_executor_is_closed_to_commands(box: Sandbox) -> None:
    code = """
import os
executor = os.getppid()
assert b"-ISB" in open(f"/proc/{executor}/cmdline", "rb").read()
for secret in ("environ", "mem", "maps", "fd/0", "fd/1"):
    try:
        os.close(os.open(f"/proc/{executor}/{secret}", os.O_RDONLY | os.O_NONBLOCK))
        print("opened", secret)
    except OSError:
        pass
"""
    assert output(box, "python3", "-c", code) == ""


def test_nothing_but_the_temporary_folders_is_writable(box: Sandbox) -> None:
    script = "for d in / /usr /usr/bin /etc /var /home /dev; do touch $d/x 2>/dev/null && echo $d; done; true"
    assert output(box, "sh", "-c", script) == ""
    assert (
        output(box, "sh", "-c", "for d in /tmp /work; do touch $d/x && rm $d/x && echo $d; done")
        == "/tmp\n/work\n"
    )


# Limits.


def test_memory_past_the_limit_kills_the_command_and_not_the_box(own_box: Sandbox) -> None:
    result = own_box.exec(["python3", "-c", "x = bytearray(300 << 20)"])
    assert (result.exit_code, result.oom_killed) == (137, True)
    assert output(own_box, "echo", "alive") == "alive\n"


def test_memory_is_limited_for_all_processes_together(own_box: Sandbox) -> None:
    hog = "import time; x = bytearray(60 << 20); time.sleep(1)"
    script = f"for i in 1 2 3 4; do python3 -c '{hog}' || echo died & done; wait"
    assert "died" in output(own_box, "sh", "-c", script)


def test_a_fork_bomb_is_contained_and_gone_after_its_timeout(own_box: Sandbox) -> None:
    bomb = "bomb() { bomb | bomb & sleep 0.05; bomb; }; bomb"
    started = time.monotonic()
    own_box.exec(["sh", "-c", bomb], timeout_s=1.0)
    assert time.monotonic() - started < 10
    assert processes(own_box) == []
    code = """
import os, time
n = 0
try:
    while n < 200:
        if os.fork() == 0:
            time.sleep(9)
        n += 1
except OSError:
    print(n)
"""
    assert int(output(own_box, "python3", "-c", code)) <= LIMITS.pids
    assert processes(own_box) == []


def test_a_full_folder_is_an_error_of_the_command(own_box: Sandbox) -> None:
    result = own_box.exec(["dd", "if=/dev/zero", "of=/work/full", "bs=1M", "count=64"])
    assert result.exit_code == 1
    assert b"No space left" in result.stderr
    with pytest.raises(OSError, match="No space left"):
        own_box.write_file("more", bytes(1 << 20))
    assert output(own_box, "rm", "full") == ""


def test_the_number_of_files_is_limited(own_box: Sandbox) -> None:
    if own_box.tier == "namespaces" and namespaces.default_launcher() == "bubblewrap":
        pytest.skip("bubblewrap cannot limit inodes")
    code = "import os\ntry:\n  for n in range(9999): open(f'/tmp/{n}', 'w').close()\nexcept OSError: print(n)"
    assert int(output(own_box, "python3", "-c", code)) < LIMITS.inodes


def test_output_past_the_cap_keeps_head_and_tail_and_counts_the_rest(box: Sandbox) -> None:
    code = "import sys; sys.stdout.write('head' + 'x' * 10_000_000 + 'tail')"
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = box.exec(["python3", "-c", code], output_cap_bytes=10_000)
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib
    assert len(result.stdout) == 10_000
    assert result.stdout_cut_bytes == 10_000_008 - 10_000
    assert result.stdout.startswith(b"headx")
    assert result.stdout.endswith(b"xtail")
    assert grown_kib < 4096
    assert output(box, "echo", "next") == "next\n"


def test_endless_output_ends_its_command(make_box: Callable[..., ExecutorSandbox]) -> None:
    with closing(make_box(Limits(flood_bytes=20 << 20, output_cap_bytes=4096))) as own:
        own.start()
        result = own.exec(["yes"], timeout_s=20)
        assert (result.flooded, result.timed_out, result.exit_code) == (True, False, 137)
        assert result.duration_s < 10
        assert output(own, "echo", "next") == "next\n"


# Time and processes.


def test_a_timeout_kills_a_child_that_ignores_sigterm_and_the_next_command_works(box: Sandbox) -> None:
    stubborn = "trap '' TERM; echo begun; while :; do sleep 1; done"
    started = time.monotonic()
    result = box.exec(["sh", "-c", f'setsid sh -c "{stubborn}" & {stubborn}'], timeout_s=0.3)
    assert time.monotonic() - started < 5
    assert (result.timed_out, result.exit_code) == (True, 137)
    assert b"begun" in result.stdout
    assert processes(box) == []
    assert output(box, "echo", "next", timeout_s=5) == "next\n"


def test_a_timeout_lets_a_command_that_heeds_sigterm_say_goodbye(box: Sandbox) -> None:
    result = box.exec(
        ["sh", "-c", "trap 'echo bye; exit 7' TERM; while :; do sleep 0.05; done"], timeout_s=0.2
    )
    assert (result.timed_out, result.exit_code, result.stdout) == (True, 7, b"bye\n")


def test_daemons_are_gone_after_the_call_and_do_not_hold_it_up(box: Sandbox) -> None:
    started = time.monotonic()
    script = "for i in 1 2 3 4 5; do setsid sleep 77 & done; (sleep 78 &) ; echo done"
    assert output(box, "sh", "-c", script) == "done\n"
    assert time.monotonic() - started < 5
    assert processes(box) == []


def test_a_command_cannot_end_the_box_by_killing_all_that_it_can(own_box: Sandbox) -> None:
    own_box.write_file("kept", b"still here")
    own_box.exec(["sh", "-c", "kill -9 1; kill -9 -1; echo alive"])
    assert own_box.read_file("kept") == b"still here"
    assert output(own_box, "echo", "next") == "next\n"


# Bytes, files, environment.


def test_bytes_pass_unchanged_in_every_direction(box: Sandbox) -> None:
    data = bytes(range(256)) * 5000 + b"\xff\xfe\0\r\n\x1b[0m"
    assert box.exec(["cat"], stdin=data, output_cap_bytes=4 << 20).stdout == data
    box.write_file("deep/er/name with \udcff byte", data)
    assert box.read_file("deep/er/name with \udcff byte") == data
    assert box.exec(["printf", "%s", "a\udcffb"]).stdout == b"a\xffb"


def test_the_exit_code_tells_what_became_of_the_command(box: Sandbox) -> None:
    assert box.exec(["sh", "-c", "exit 3"]).exit_code == 3
    assert box.exec(["sh", "-c", "kill -TERM $$"]).exit_code == 143
    missing = box.exec(["no-such-program"])
    assert (missing.exit_code, missing.stderr) == (
        127,
        b"cannot run no-such-program: No such file or directory\n",
    )
    assert box.exec(["/etc/hostname"]).exit_code == 126
    assert box.exec(["true"], cwd="/nowhere").exit_code == 126


def test_stdin_that_nobody_reads_is_lost_and_no_error(box: Sandbox) -> None:
    assert box.exec(["true"], stdin=bytes(8 << 20)).exit_code == 0


def test_a_command_starts_in_its_folder_with_its_environment_alone(box: Sandbox) -> None:
    result = box.exec(["sh", "-c", "pwd; echo $WORD"], cwd="/tmp", env={"WORD": "höh=er"})
    assert result.stdout.decode() == "/tmp\nhöh=er\n"
    assert output(box, "sh", "-c", "pwd; echo $WORD") == "/work\n\n"


def test_reading_what_is_not_a_file_of_bounded_length_is_a_typed_error(box: Sandbox) -> None:
    output(box, "sh", "-c", "mkfifo fifo; ln -s /dev/zero zero; truncate -s 5G sparse; mkdir folder")
    with pytest.raises(FileNotFoundError, match="absent"):
        box.read_file("absent")
    with pytest.raises(IsADirectoryError):
        box.read_file("folder")
    for name in ("fifo", "zero"):
        with pytest.raises(OSError, match="Invalid argument"):
            box.read_file(name)
    with pytest.raises(FileTooLargeError):
        box.read_file("sparse", max_bytes=1 << 20)
    with pytest.raises(OSError):  # noqa: PT011  # read-only in one tier, forbidden in the other
        box.write_file("/etc/passwd", b"")
    output(box, "rm", "-r", "fifo", "zero", "sparse", "folder")


# The life of a box.


def test_two_boxes_do_not_see_each_other(box: Sandbox, own_box: Sandbox) -> None:
    own_box.write_file("/tmp/mine", b"1")
    seen: list[str] = []
    neighbour = threading.Thread(
        target=lambda: seen.append(output(own_box, "sh", "-c", "sleep 1.234; echo x"))
    )
    neighbour.start()
    time.sleep(0.2)
    assert processes(box) == []
    with pytest.raises(FileNotFoundError):
        box.read_file("/tmp/mine")
    box.exec(["sh", "-c", "kill -9 -1"])
    neighbour.join()
    assert seen == ["x\n"]


def test_closing_twice_or_unstarted_is_fine_and_a_closed_box_says_so(
    make_box: Callable[..., ExecutorSandbox],
) -> None:
    own = make_box(LIMITS)
    own.close()
    own.start()
    own.close()
    own.close()
    with pytest.raises(SandboxLostError):
        own.exec(["true"])


def test_a_box_killed_in_the_middle_of_a_command_is_lost_and_stays_so(own_box: ExecutorSandbox) -> None:
    killer = threading.Timer(0.3, kill_box, [own_box])
    killer.start()
    started = time.monotonic()
    with pytest.raises(SandboxLostError):
        own_box.exec(["sleep", "20"])
    killer.join()
    assert time.monotonic() - started < 10
    with pytest.raises(SandboxLostError):
        own_box.read_file("anything")


def kill_box(box: ExecutorSandbox) -> None:
    carrier = box._carrier
    if isinstance(carrier, namespaces.NamespacesCarrier):
        assert carrier.pid is not None
        os.kill(carrier.pid, 9)
        return
    assert isinstance(carrier, docker_engine.DockerCarrier)
    client = docker_engine.connect()
    client.containers.get(carrier.container_id or "").kill()
    client.close()

"""The two ways to an executor in a container, with an engine and an executor that are scripted."""

import os
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from envs.sandbox import docker_stream, executor, leases
from envs.sandbox.contract import SandboxLostError, SandboxProtocolError
from envs.sandbox.docker_stream import DirectStream, Door, ExecStream

TEXT = b"print('executor')"


def piece(data: bytes, kind: int = 1) -> bytes:
    return struct.pack(">BxxxI", kind, len(data)) + data


def soon() -> float:
    return time.monotonic() + 5


class Engine:
    """The engine's end of an exec's stream, and what the executor in its container does."""

    def __init__(self) -> None:
        self.end, ours = socket.socketpair()
        self.stream = ExecStream(ours)
        self.door = Door()
        self.source = Path(self.door.mount["Source"])
        self.direct = DirectStream(self.stream, self.door)
        self.executor = socket.socket(socket.AF_UNIX)

    def connect(self) -> None:
        """As the container sees it, whose mount leads to the same folder."""
        self.executor.connect(str(self.source / Path(self.door.path_in_box).name))

    def close(self) -> None:
        self.direct.close()
        self.executor.close()
        self.end.close()


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "leases"
    monkeypatch.setattr(leases, "lease_folder", lambda: folder)
    return folder


@pytest.fixture
def engine() -> Iterator[Engine]:
    made = Engine()
    yield made
    made.close()


def test_an_executor_that_comes_through_the_door_is_talked_to_past_the_engine(engine: Engine) -> None:
    engine.connect()
    engine.direct.send_executor(TEXT, soon())
    assert engine.end.recv(100) == TEXT
    assert engine.direct.is_direct
    engine.direct.send(b"question", soon())
    assert engine.executor.recv(100) == b"question"
    engine.executor.sendall(b"answer")
    assert engine.direct.receive(3, soon()) + engine.direct.receive(100, soon()) == b"answer"
    engine.end.setblocking(False)
    with pytest.raises(BlockingIOError):
        engine.end.recv(100)


def test_the_door_is_gone_before_the_first_command_and_lets_one_in(engine: Engine) -> None:
    engine.connect()
    engine.direct.send_executor(TEXT, soon())
    assert not engine.source.exists()
    assert list(leases.own_folder().iterdir()) == []
    with socket.socket(socket.AF_UNIX) as second, pytest.raises(OSError, match=r"No such file|refused"):
        second.connect(str(engine.source / "host"))


def test_a_door_is_for_its_owner_and_its_container_alone(engine: Engine, own_folder: Path) -> None:
    assert own_folder.stat().st_mode & 0o777 == 0o700
    assert engine.source.parent.stat().st_mode & 0o777 == 0o700
    assert engine.door.mount["ReadOnly"]


def test_an_executor_that_cannot_reach_the_door_stays_with_stdio(engine: Engine) -> None:
    engine.end.sendall(piece(executor.STAYS))
    engine.direct.send_executor(TEXT, soon())
    assert not engine.direct.is_direct
    assert not engine.source.exists()
    engine.direct.send(b"question", soon())
    assert engine.end.recv(100) == TEXT + b"question"
    engine.end.sendall(piece(b"answer"))
    assert engine.direct.receive(100, soon()) == b"answer"


@pytest.mark.parametrize("is_direct", [True, False])
def test_the_end_of_the_engines_stream_is_the_end_of_the_box(engine: Engine, is_direct: bool) -> None:
    engine.connect() if is_direct else engine.end.sendall(piece(executor.STAYS))
    engine.direct.send_executor(TEXT, soon())
    if is_direct:
        engine.executor.sendall(b"an answer, although the engine is gone")
    engine.end.close()
    with pytest.raises(SandboxLostError):
        engine.direct.receive(100, soon())


def test_what_python_says_on_stderr_while_it_starts_is_kept_and_hinders_nothing(engine: Engine) -> None:
    engine.end.sendall(piece(b"warning: ", 2) + piece(b"old image", 2))
    engine.connect()
    engine.direct.send_executor(TEXT, soon())
    engine.executor.sendall(b"answer")
    assert engine.direct.receive(100, soon()) == b"answer"
    assert engine.direct.complaint == "warning: old image"


def test_an_executor_that_says_anything_else_is_not_trusted(engine: Engine) -> None:
    engine.end.sendall(piece(b"+"))
    with pytest.raises(SandboxProtocolError):
        engine.direct.send_executor(TEXT, soon())


def test_stdout_that_floods_beside_the_socket_is_bounded(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docker_stream, "MAX_UNREAD_BYTES", 1000)
    engine.connect()
    engine.direct.send_executor(TEXT, soon())
    engine.end.sendall(piece(bytes(2000)))
    with pytest.raises(SandboxProtocolError, match="where nobody asked"):
        engine.direct.receive(100, soon())


def test_one_that_is_silent_is_lost_at_the_deadline(engine: Engine) -> None:
    with pytest.raises(SandboxLostError, match="stopped answering"):
        engine.direct.send_executor(TEXT, time.monotonic() + 0.05)
    assert not engine.source.exists()


def test_pieces_of_the_stream_may_be_cut_anywhere(engine: Engine) -> None:
    wire = piece(b"one ") + piece(b"aside", 2) + piece(b"") + piece(b"two")
    got = b""
    for number in range(len(wire)):
        engine.end.sendall(wire[number : number + 1])
        if engine.stream.read_ready():
            got += engine.stream.receive(100, soon())
    assert (got, engine.stream.complaint) == (b"one two", "aside")


def test_only_old_doors_are_reaped(engine: Engine, own_folder: Path) -> None:
    left = own_folder / "door-left"
    left.mkdir()
    os.utime(left, (0, 0))
    docker_stream.reap_doors()
    assert not left.exists()
    assert engine.source.exists()

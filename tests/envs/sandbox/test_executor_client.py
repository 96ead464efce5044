"""The host against executors that lie: whatever a box says, the host sees typed errors and bounded memory."""

import json
import os
import random
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from envs.sandbox import executor
from envs.sandbox.contract import Limits, SandboxLostError, SandboxProtocolError
from envs.sandbox.executor_client import ExecutorClient, PipeTransport, executor_source

HELLO = {"version": executor.VERSION, "uid": 1000, "pid": 1, "hidden": 1}
EXEC = {
    "exit_code": 0,
    "stdout": 2,
    "stderr": 0,
    "stdout_cut": 0,
    "stderr_cut": 0,
    "timed_out": 0,
    "flooded": 0,
    "oom": 0,
    "leftover": 0,
    "duration_us": 5,
}
Answer = Callable[[dict[str, object]], bytes]


def frame(header: object, body: bytes = b"") -> bytes:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack(">II", len(encoded), len(body)) + encoded + body


def fields(**changes: object) -> Answer:
    """A well-formed answer to an exec, but for the changes; None removes a field."""
    return lambda request: frame(
        {
            name: value
            for name, value in {"nonce": request["nonce"], **EXEC, **changes}.items()
            if value is not None
        },
        b"ok",
    )


class ScriptedPeer(threading.Thread):
    """An executor that greets as ours does and then answers each request as its script says."""

    def __init__(self, answers: list[Answer]) -> None:
        super().__init__(daemon=True)
        self._answers = answers
        self._requests, host_writes = os.pipe()
        host_reads, self._replies = os.pipe()
        self.transport = PipeTransport(host_writes, host_reads)

    def run(self) -> None:
        with open(self._requests, "rb") as requests, open(self._replies, "wb", buffering=0) as replies:  # noqa: PTH123
            requests.read(len(executor_source()))
            greet: Answer = lambda request: frame({"nonce": request["nonce"], **HELLO})  # noqa: E731
            for answer in [greet, *self._answers]:
                lengths = requests.read(8)
                if len(lengths) < 8:
                    return
                header, body = struct.unpack(">II", lengths)
                request = json.loads(requests.read(header))
                requests.read(body)
                try:
                    replies.write(answer(request))
                except OSError:
                    return


@contextmanager
def client_of(*answers: Answer) -> Iterator[ExecutorClient]:
    peer = ScriptedPeer(list(answers))
    peer.start()
    client = ExecutorClient(
        peer.transport, limits=Limits(output_cap_bytes=1024), work_dir="/work", box="fake"
    )
    client.start()
    try:
        yield client
    finally:
        client.close()
        peer.join()


def test_an_honest_answer_is_understood() -> None:
    with client_of(fields(exit_code=3, stdout_cut=7, duration_us=1500)) as client:
        result = client.exec(["x"])
    assert (result.exit_code, result.stdout, result.truncated_bytes, result.duration_s) == (
        3,
        b"ok",
        7,
        0.0015,
    )


HOSTILE: dict[str, Answer] = {
    "no JSON": lambda _: frame(b"\xff{"),
    "nested ten thousand deep": lambda _: frame(b"[" * 4000),
    "a list": lambda _: frame([1]),
    "header too long": lambda _: struct.pack(">II", 1 << 31, 0),
    "body too long": lambda _: struct.pack(">II", 2, (1 << 32) - 1),
    "body past the caps": lambda request: frame({"nonce": request["nonce"], **EXEC}, bytes(5000)),
    "another nonce": fields(nonce="0" * 16),
    "no nonce": fields(nonce=None),
    "a field missing": fields(oom=None),
    "a field too many": fields(__class__="os.system"),
    "a text for a number": fields(exit_code="0"),
    "true for a number": fields(timed_out=True),
    "a fraction": fields(stdout=2.0),
    "not a number": fields(duration_us=float("nan")),
    "a negative length": fields(stdout=-1),
    "a huge number": fields(stdout_cut=1 << 80),
    "lengths that do not add up": fields(stdout=1),
    "a stream past its cap": fields(stdout=2000),
    "an exit code past 255": fields(exit_code=256),
    "an error instead of a result": lambda request: frame({"nonce": request["nonce"], "errno": 2}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_answer_is_a_protocol_error_and_ends_the_box(name: str) -> None:
    with client_of(HOSTILE[name], fields()) as client:
        with pytest.raises(SandboxProtocolError, match="box fake: its executor broke the protocol"):
            client.exec(["x"])
        with pytest.raises(SandboxLostError, match="broke the protocol"):
            client.exec(["x"])


def test_random_answers_give_typed_errors_alone() -> None:
    chance = random.Random(7)
    for _ in range(60):
        noise = chance.randbytes(chance.randrange(8, 200))

        def answer(request: dict[str, object], noise: bytes = noise) -> bytes:
            return noise if noise[0] % 2 else frame({"nonce": request["nonce"]}, noise) + noise

        with client_of(answer) as client, pytest.raises(SandboxLostError):
            client.exec(["x"])


def test_an_executor_that_ends_or_promises_more_than_it_sends_loses_the_box() -> None:
    for answer in (lambda _: b"", lambda _: b"\0\0", lambda _: struct.pack(">II", 50, 0) + b"{"):
        with client_of(answer) as client, pytest.raises(SandboxLostError, match="executor ended"):
            client.exec(["x"])


def test_processes_that_survive_sigkill_lose_the_box() -> None:
    with (
        client_of(fields(leftover=2)) as client,
        pytest.raises(SandboxLostError, match="2 processes survived"),
    ):
        client.exec(["x"])


def test_an_executor_that_is_silent_loses_the_box_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("envs.sandbox.executor_client.SLACK_S", 0.2)
    silence = threading.Event()

    def answer(_: dict[str, object]) -> bytes:
        silence.wait(10)
        return b""

    started = time.monotonic()
    with client_of(answer) as client:
        with pytest.raises(SandboxLostError, match="stopped answering"):
            client.exec(["x"], timeout_s=0.1)
        silence.set()
    assert time.monotonic() - started < 5


def test_a_file_longer_than_promised_is_refused() -> None:
    def answer(request: dict[str, object]) -> bytes:
        return frame({"nonce": request["nonce"], "size": 1}, bytes(200))

    with client_of(answer) as client, pytest.raises(SandboxProtocolError):
        client.read_file("f", max_bytes=100)


def test_an_error_number_from_a_box_becomes_the_error_that_it_names() -> None:
    def answer(request: dict[str, object]) -> bytes:
        return frame({"nonce": request["nonce"], "errno": 2})

    with client_of(answer, answer) as client:
        with pytest.raises(FileNotFoundError, match="notes"):
            client.read_file("notes")
        with pytest.raises(FileNotFoundError, match="notes"):
            client.write_file("notes", b"")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"argv": []}, "argv must be a list"),
        ({"argv": "ls -l"}, "argv must be a list"),
        ({"argv": ["a\0b"]}, "NUL"),
        ({"argv": ["x"], "env": {"A": "\0"}}, "NUL"),
        ({"argv": ["x"], "timeout_s": 0}, "timeout_s must lie in"),
        ({"argv": ["x"], "timeout_s": float("nan")}, "timeout_s must lie in"),
        ({"argv": ["x"], "output_cap_bytes": 0}, "output_cap_bytes must lie in"),
    ],
)
def test_a_call_that_makes_no_sense_is_refused_before_it_is_sent(arguments: dict, message: str) -> None:
    with client_of(fields()) as client:
        with pytest.raises(ValueError, match=message):
            client.exec(**arguments)
        assert client.exec(["x"]).stdout == b"ok"

"""What the executor does about a command that outlives its time, step by step and without a clock."""

import signal
import types

import pytest

from envs.sandbox import executor


class DeafPoller:
    """Nothing ever happens on any descriptor."""

    def register(self, fd: int, events: int) -> None:
        return None

    def poll(self, timeout_ms: float) -> list[tuple[int, int]]:
        return []


class RecordingExecutor(executor.Executor):
    """Its command dies of SIGKILL alone; sends no signal, writes down which."""

    def __init__(self) -> None:
        self.sent: list[int] = []
        self.wake_fd = -1

    def end_call(self, call: executor.Call, number: int) -> None:
        self.sent.append(number)
        if number == signal.SIGKILL:
            call.status = number


def test_sigterm_is_followed_by_sigkill_where_the_command_lives_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "GRACE_S", 0.0)
    monkeypatch.setattr(executor, "GIVE_UP_S", 0.0)  # else giving up would hide that no SIGKILL came
    recorder = RecordingExecutor()
    call = types.SimpleNamespace(pid=0, status=None, streams=(), poller=DeafPoller())
    timed_out, flooded = recorder.wait(call, 0.0, 1 << 20)  # type: ignore[arg-type]  # what wait asks of a call
    assert recorder.sent == [signal.SIGTERM, signal.SIGKILL]
    assert (timed_out, flooded) == (True, False)
    assert call.status == signal.SIGKILL


def test_a_command_that_floods_gets_no_sigterm_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "GIVE_UP_S", 0.0)
    recorder = RecordingExecutor()
    stream = types.SimpleNamespace(total=11)
    call = types.SimpleNamespace(pid=0, status=None, streams=(stream,), poller=DeafPoller())
    assert recorder.wait(call, float("inf"), 10) == (False, True)  # type: ignore[arg-type]
    assert recorder.sent == [signal.SIGKILL]

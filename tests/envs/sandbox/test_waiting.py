"""Waiting for a reply, with descriptors and a clock that are scripted."""

import select
import time
from collections.abc import Callable

import pytest

from envs.sandbox import waiting
from envs.sandbox.contract import SandboxLostError

REPLY = [(7, select.POLLIN)]


class ScriptedPoller:
    """Says nothing `silent` times and then that a reply is there; each look takes `look_s` of the clock."""

    def __init__(self, silent: int, look_s: float = 0.0) -> None:
        self.now = 100.0
        self.timeouts: list[float] = []
        self._silent = silent
        self._look_s = look_s

    def poll(self, timeout: float) -> list[tuple[int, int]]:
        self.timeouts.append(timeout)
        self.now += self._look_s
        self._silent -= 1
        return [] if self._silent >= 0 else REPLY


Waiting = Callable[[ScriptedPoller, float], object]


@pytest.fixture
def wait_awake(monkeypatch: pytest.MonkeyPatch) -> Waiting:
    """Waits so many seconds of the poller's own clock."""

    def wait(poller: ScriptedPoller, for_s: float) -> object:
        monkeypatch.setattr(time, "monotonic", lambda: poller.now)
        return waiting.wait_awake(poller, poller.now + for_s)  # pyright: ignore[reportArgumentType]

    return wait


def test_a_reply_that_comes_at_once_is_met_awake(wait_awake: Waiting) -> None:
    poller = ScriptedPoller(silent=3, look_s=0.0001)
    assert wait_awake(poller, 5) == REPLY
    assert poller.timeouts == [0, 0, 0, 0]


def test_a_reply_that_takes_its_time_is_waited_for_asleep(wait_awake: Waiting) -> None:
    poller = ScriptedPoller(silent=4, look_s=waiting.AWAKE_S / 4 + 1e-6)
    assert wait_awake(poller, 5) == REPLY
    *awake, asleep = poller.timeouts
    assert awake == [0, 0, 0, 0]
    assert 4990 < asleep <= 5000


def test_only_one_thread_of_a_process_waits_awake(wait_awake: Waiting) -> None:
    poller = ScriptedPoller(silent=0)
    with waiting._awake:
        assert wait_awake(poller, 5) == REPLY
    assert poller.timeouts == [5001]
    assert wait_awake(poller, 5) == REPLY  # and the next one may again
    assert poller.timeouts == [5001, 0]


def test_silence_is_a_lost_box_at_the_deadline_also_before_anybody_sleeps(wait_awake: Waiting) -> None:
    poller = ScriptedPoller(silent=9, look_s=0.0004)
    with pytest.raises(SandboxLostError, match="stopped answering"):
        wait_awake(poller, 0.0009)
    assert poller.timeouts == [0, 0, 0]
    assert not waiting._awake.locked()

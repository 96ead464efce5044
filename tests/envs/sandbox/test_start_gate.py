"""The limit and the breaker, on a clock that the test moves."""

import threading
import time
from contextlib import suppress

import pytest

from envs.sandbox.contract import SandboxStartError, SandboxUnavailableError
from envs.sandbox.start_gate import StartGate


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def start(gate: StartGate, clock: Clock, *, takes_s: float = 1.0, fails: bool = False) -> None:
    with gate.slot(timeout_s=5):
        clock.now += takes_s
        if fails:
            raise SandboxStartError("the engine said 500")


def fail(gate: StartGate, clock: Clock, times: int) -> None:
    for _ in range(times):
        with pytest.raises(SandboxStartError):
            start(gate, clock, fails=True)


def test_failures_in_a_row_pause_starts_with_one_line_that_says_why(clock: Clock) -> None:
    gate = StartGate(max_failures=3, pause_s=10, clock=clock)
    fail(gate, clock, 2)
    start(gate, clock)  # a success in between: the count begins again
    fail(gate, clock, 2)
    assert not gate.is_open
    fail(gate, clock, 1)
    assert gate.is_open
    with pytest.raises(SandboxUnavailableError, match=r"after 3 failed starts in a row.*said 500") as caught:
        start(gate, clock)
    assert "\n" not in str(caught.value)


def test_after_the_pause_one_trial_starts_and_its_success_ends_it(clock: Clock) -> None:
    gate = StartGate(max_failures=1, pause_s=10, clock=clock)
    fail(gate, clock, 1)
    clock.now += 12.6  # the pause is at most a quarter longer than asked for
    with gate.slot(timeout_s=1), pytest.raises(SandboxUnavailableError, match="until a trial has ended"):
        start(gate, clock)
    assert not gate.is_open
    start(gate, clock)


def test_a_failed_trial_doubles_the_pause(clock: Clock) -> None:
    gate = StartGate(max_failures=1, pause_s=10, clock=clock)
    fail(gate, clock, 1)
    clock.now += 12.6
    fail(gate, clock, 1)
    clock.now += 19.9
    with pytest.raises(SandboxUnavailableError):
        start(gate, clock)
    clock.now += 5.2
    start(gate, clock)


def test_what_is_no_fault_of_the_machinery_does_not_count_and_frees_its_slot(clock: Clock) -> None:
    gate = StartGate(max_parallel=1, max_failures=1, clock=clock)
    with suppress(KeyboardInterrupt), gate.slot(timeout_s=1):
        raise KeyboardInterrupt
    assert not gate.is_open
    start(gate, clock)


def test_no_more_start_at_once_than_the_limit_and_who_waits_is_told() -> None:
    gate = StartGate(max_parallel=2)
    inside, most, lock = 0, 0, threading.Lock()

    def one() -> None:
        nonlocal inside, most
        with gate.slot(timeout_s=30):
            with lock:
                inside += 1
                most = max(most, inside)
            time.sleep(0.02)
            with lock:
                inside -= 1

    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 2
    with (
        gate.slot(timeout_s=1),
        gate.slot(timeout_s=1),
        pytest.raises(SandboxUnavailableError, match="no start of a box came free within 0 s"),
        gate.slot(timeout_s=0.05),
    ):
        pytest.fail("a third start was let in")


def test_a_slow_engine_lowers_the_limit_and_a_fast_one_raises_it_again(clock: Clock) -> None:
    gate = StartGate(max_parallel=4, clock=clock)
    start(gate, clock, takes_s=1.0)
    for expected in (3, 2, 1, 1):
        start(gate, clock, takes_s=4.5)
        assert gate.limit == expected
    for _ in range(3):
        start(gate, clock, takes_s=3.0)  # neither slow nor fast
    assert gate.limit == 1
    for _ in range(1 + 2 + 3):  # one, two and three successes for the next step
        start(gate, clock, takes_s=1.2)
    assert gate.limit == 4

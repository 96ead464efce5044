"""SIGTERM in a process of its own: at once, after the step, after the grace, or twice."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from rl.stopping import Stopping, Terminated, graceful

PROGRAM = """
import sys, time
from rl.stopping import Terminated, graceful

try:
    with graceful({grace}) as stop:
        with stop.deferred():
            print("step", flush=True)
            time.sleep({step})
            print("finished", flush=True)
        print("next", flush=True)
except Terminated:
    print("saved" if not stop.expired else "cut", flush=True)
    sys.exit(143)
"""


def signalled(*, grace: float, step: float, times: int = 1) -> tuple[int, str]:
    """Exit code and output of the program, sent SIGTERM in its step."""
    program = textwrap.dedent(PROGRAM.format(grace=grace, step=step))
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "step\n"
        for _ in range(times):
            process.send_signal(signal.SIGTERM)
            time.sleep(0.2)
        output, _ = process.communicate(timeout=30)
        return process.returncode, output


def test_a_step_is_finished_before_the_process_ends() -> None:
    code, output = signalled(grace=20, step=0.5)
    assert (code, output) == (143, "finished\nsaved\n")


def test_a_step_that_takes_longer_than_the_grace_is_cut() -> None:
    code, output = signalled(grace=0.3, step=20)
    assert (code, output) == (143, "cut\n")


def test_the_second_signal_ends_the_process_at_once() -> None:
    code, output = signalled(grace=20, step=20, times=2)
    assert (code, output) == (143, "")


def test_what_was_there_before_is_there_again_and_no_alarm_is_left() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGALRM)

    def terminated_in_a_step() -> None:
        with graceful(60.0) as stop, stop.deferred():
            os.kill(os.getpid(), signal.SIGTERM)
            assert signal.getitimer(signal.ITIMER_REAL)[0] > 0

    with pytest.raises(Terminated):
        terminated_in_a_step()
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGALRM)) == before
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_once_a_deferred_signal_is_raised_no_alarm_comes_on_top() -> None:
    with graceful(60.0) as stop:
        with pytest.raises(Terminated), stop.deferred():
            os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getitimer(signal.ITIMER_REAL)[0] == 0  # what is saved now may take its time
        assert (stop.asked, stop.expired) == (True, False)


def test_after_a_step_the_signal_is_raised_where_it_comes() -> None:
    def terminated_after_a_step() -> None:
        with graceful(60.0) as stop:
            with stop.deferred():
                pass
            os.kill(os.getpid(), signal.SIGTERM)
            raise AssertionError("the signal was still deferred")

    with pytest.raises(Terminated):
        terminated_after_a_step()


def test_on_another_thread_nothing_is_changed() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def work() -> None:
        with graceful(1.0) as stop, stop.deferred():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


def test_outside_a_step_the_signal_is_taken_where_it_comes() -> None:
    stop = Stopping(1.0)
    with pytest.raises(Terminated):
        stop.on_sigterm(signal.SIGTERM, None)
    with pytest.raises(Terminated):
        stop.check()

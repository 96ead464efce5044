"""SIGTERM in a process of its own: at once, after the step, after the grace, or twice."""

import signal
import subprocess
import sys
import textwrap
import time

import pytest

from rl.stopping import Stopping, Terminated

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


def test_outside_a_step_the_signal_is_taken_where_it_comes() -> None:
    stop = Stopping(1.0)
    with pytest.raises(Terminated):
        stop.on_sigterm(signal.SIGTERM, None)
    with pytest.raises(Terminated):
        stop.check()

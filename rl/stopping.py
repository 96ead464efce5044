"""SIGTERM while a run goes on: a step is finished and saved within a grace; twice, the end is at once.

    with graceful(25.0) as stop:
        with stop.deferred():      # an update: not to be cut in two
            ...
        stop.check()               # raises Terminated if a signal came

Outside `deferred` the signal raises Terminated where it finds the process, as it does without this module.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_CODE = 143


class Terminated(BaseException):
    """SIGTERM arrived. Like KeyboardInterrupt, nothing but a boundary may catch it."""


class Stopping:
    """What SIGTERM does to a run.

    asked: a signal came. expired: the grace ran out within `deferred`, so that nothing may be saved.
    """

    def __init__(self, grace_s: float) -> None:
        self.grace_s = grace_s
        self.expired = False
        self.asked = False
        self._deferred = False

    def check(self) -> None:
        """Raises Terminated if a signal came while it was deferred."""
        if self.asked:
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise Terminated

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, the first signal waits, for `grace_s` at most; at the end it is raised."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        self.check()

    def on_sigterm(self, signum: int, frame: FrameType | None) -> None:
        if self.asked:
            os._exit(EXIT_CODE)
        self.asked = True
        if not self._deferred:
            raise Terminated
        sys.stderr.write(
            f"\nSIGTERM: finishing the step, {self.grace_s:g} s at most; once more ends at once\n"
        )
        signal.setitimer(signal.ITIMER_REAL, self.grace_s)

    def on_alarm(self, signum: int, frame: FrameType | None) -> None:
        if self._deferred:
            self.expired = True
        raise Terminated


@contextmanager
def graceful(grace_s: float) -> Iterator[Stopping]:
    """Inside, SIGTERM is the yielded `Stopping`'s. Only the main thread can; on others it changes nothing."""
    stop = Stopping(grace_s)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = signal.signal(signal.SIGTERM, stop.on_sigterm), signal.signal(signal.SIGALRM, stop.on_alarm)
    try:
        yield stop
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGALRM, before[1])

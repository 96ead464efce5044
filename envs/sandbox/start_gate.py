"""How many boxes may start at once, and when none may: an adaptive limit and a circuit breaker.

An engine starts about two boxes a core at once as fast as it ever will; more only make each slower. An engine
that fails every start is left alone for a while, as boxes that already run suffer with it.
"""

import os
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from envs.sandbox.contract import SandboxError, SandboxUnavailableError

MAX_PAUSE_S = 60.0
SLOW, FAST = 4.0, 2.0
"""Start times, as multiples of the best recent one, at which the limit goes down and up again."""


def starts_at_once() -> int:
    """The most that pays on this machine: two a core."""
    return 2 * len(os.sched_getaffinity(0))


class StartGate:
    """Every start of a box goes through one `slot`; for use by any number of threads."""

    def __init__(
        self,
        *,
        max_parallel: int | None = None,
        max_failures: int = 5,
        pause_s: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            max_parallel: Upper bound of the adaptive limit; default: two a core.
            max_failures: So many failed starts in a row open the breaker.
            pause_s: How long it stays open the first time; twice as long, up to a minute, after each failed
                trial, and up to a quarter more by chance, so that many processes do not try at once.
        """
        self.ceiling = max_parallel or starts_at_once()
        self._limit = float(self.ceiling)
        self._max_failures = max_failures
        self._first_pause_s = pause_s
        self._clock = clock
        self._changed = threading.Condition()
        self._running = 0
        self._recent_s: deque[float] = deque(maxlen=32)
        self._failures = 0
        self._pause_s = pause_s
        self._closed_until = 0.0
        self._is_trying = False
        self._last_fault = ""

    @property
    def limit(self) -> int:
        """Starts that may run at once now."""
        return max(1, int(self._limit))

    @property
    def is_open(self) -> bool:
        """Whether the breaker refuses starts, but for one trial once its pause is over."""
        return self._failures >= self._max_failures

    @contextmanager
    def slot(self, *, timeout_s: float) -> Iterator[None]:
        """Hold one slot while a box starts; what the start raises passes through and is counted.

        Raises:
            SandboxUnavailableError: the breaker is open, or no slot came free in time; nothing was started.
        """
        is_trial = self._enter(timeout_s)
        started = self._clock()
        fault: SandboxError | None = None
        is_done = False
        try:
            yield
            is_done = True
        except SandboxError as error:
            fault = error
            raise
        finally:
            self._leave(is_trial, self._clock() - started if is_done else None, fault)

    def _enter(self, timeout_s: float) -> bool:
        deadline = self._clock() + timeout_s
        with self._changed:
            while True:
                if self.is_open:
                    left_s = self._closed_until - self._clock()
                    if left_s > 0 or self._is_trying:
                        raise SandboxUnavailableError(self._why_closed(left_s))
                    self._is_trying = True
                    self._running += 1
                    return True
                if self._running < self.limit:
                    self._running += 1
                    return False
                if not self._changed.wait(deadline - self._clock()):
                    raise SandboxUnavailableError(
                        f"no start of a box came free within {timeout_s:.0f} s ({self._running} run, limit"
                        f" {self.limit}); fewer workers on this machine would wait less"
                    )

    def _leave(self, is_trial: bool, took_s: float | None, fault: SandboxError | None) -> None:
        with self._changed:
            self._running -= 1
            self._is_trying = self._is_trying and not is_trial
            if took_s is not None:
                self._failures, self._pause_s = 0, self._first_pause_s
                self._adapt(took_s)
            elif fault is not None:
                self._failures += 1
                self._last_fault = str(fault)[:200]
                if self.is_open and (is_trial or self._failures == self._max_failures):
                    self._closed_until = self._clock() + self._pause_s * random.uniform(1.0, 1.25)
                    self._pause_s = min(2 * self._pause_s, MAX_PAUSE_S)
            self._changed.notify_all()

    def _adapt(self, took_s: float) -> None:
        self._recent_s.append(took_s)
        best_s = min(self._recent_s)
        if took_s > SLOW * best_s:
            self._limit = max(1.0, self._limit - 1)
        elif took_s < FAST * best_s:
            self._limit = min(float(self.ceiling), self._limit + 1 / self.limit)

    def _why_closed(self, left_s: float) -> str:
        when = f"for {left_s:.1f} s more" if left_s > 0 else "until a trial has ended"
        return (
            f"no box is started {when}, after {self._failures} failed starts in a row; running boxes go on;"
            f" the last fault: {self._last_fault}"
        )

"""One line of progress on standard error: done of total, rate, time left.

On a terminal the line rewrites itself; elsewhere (a log, CI) a new line comes at most every ten seconds.

    with Progress("cold start", total=900, unit="steps") as progress:
        for step in range(900):
            ...
            progress.advance(note=f"loss {loss:.3f}")
"""

import shutil
import sys
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Self, TextIO

LOG_INTERVAL_S = 10.0
TERMINAL_INTERVAL_S = 0.1
RATE_WINDOW_S = 30.0
MIN_RATE_S = 0.5
"""A shorter time says nothing about a rate."""


class Progress:
    """Counts up to `total` (None: unknown, so no time left is shown); used as a context manager."""

    def __init__(
        self,
        label: str,
        *,
        total: int | None,
        unit: str = "",
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.label = label
        self.total = total
        self.unit = unit
        self.done = 0
        self._note = ""
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._started = clock()
        self._shown_at = float("-inf")
        self._shown_done = -1
        self._recent: deque[tuple[float, int]] = deque([(self._started, 0)])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def resume_at(self, done: int, *, note: str = "") -> None:
        """Start from what an earlier run did, which says nothing about this one's rate."""
        self.done = done
        self._note = note or self._note
        self._started = self._clock()
        self._recent = deque([(self._started, done)])

    def advance(self, count: int = 1, *, note: str = "") -> None:
        self.done += count
        self._note = note or self._note
        now = self._clock()
        self._recent.append((now, self.done))
        while len(self._recent) > 2 and now - self._recent[0][0] > RATE_WINDOW_S:
            self._recent.popleft()
        interval = TERMINAL_INTERVAL_S if self._stream.isatty() else LOG_INTERVAL_S
        if now - self._shown_at >= interval:
            self._show(now)

    def close(self) -> None:
        """Show the last state, whenever the line before it was."""
        if self.done != self._shown_done:
            self._show(self._clock())
        if self._stream.isatty():
            self._stream.write("\n")
            self._stream.flush()

    def line(self) -> str:
        """The line as it stands: `cold start 300/900 steps (33%), 4.0/s, 2 min 30 s left, loss 0.31`."""
        now = self._clock()
        unit = f" {self.unit}" if self.unit else ""
        of_total = f"/{self.total:,}" if self.total is not None else ""
        percent = f" ({100 * self.done // self.total}%)" if self.total else ""
        parts = [f"{self.label} {self.done:,}{of_total}{unit}{percent}"]
        rate = self._rate(now)
        if rate > 0:
            parts.append(f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.2g}/s")
        if self.total is not None and self.done >= self.total:
            parts.append(f"took {duration(now - self._started)}")
        elif self.total is not None and rate > 0:
            parts.append(f"{duration((self.total - self.done) / rate)} left")
        if self._note:
            parts.append(self._note)
        return ", ".join(parts)

    def _rate(self, now: float) -> float:
        then, done_then = self._recent[0]
        return (self.done - done_then) / (now - then) if now - then >= MIN_RATE_S else 0.0

    def _show(self, now: float) -> None:
        self._shown_at, self._shown_done = now, self.done
        if self._stream.isatty():
            width = shutil.get_terminal_size().columns - 1
            self._stream.write("\r" + self.line()[:width].ljust(width))
        else:
            self._stream.write(self.line() + "\n")
        self._stream.flush()


def duration(seconds: float) -> str:
    """`42 s`, `2 min 30 s`, `1 h 05 min`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"

"""Watches a run for a person: a progress line on standard error, and the report page rewritten as it goes."""

import time
from pathlib import Path

from worldsmith.progress import Progress
from worldsmith.report import write_report

REPORT_EVERY_S = 5.0


class Watcher:
    """An `rl.observer.Observer`."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._progress: Progress | None = None
        self._reported = 0.0

    def begin(self, label: str, *, total: int, done: int, unit: str) -> None:
        self._progress = Progress(label, total=total, unit=unit)
        self._progress.resume_at(done)

    def advance(self, count: int, note: str = "") -> None:
        if self._progress is not None:
            self._progress.advance(count, note=note)

    def end(self) -> None:
        if self._progress is not None:
            self._progress.close()
            self._progress = None

    def wrote(self) -> None:
        if time.monotonic() - self._reported >= REPORT_EVERY_S:
            write_report(self._out)
            self._reported = time.monotonic()

    def close(self) -> None:
        self.end()
        write_report(self._out)

"""Watches a run for a person: a progress line on standard error, and report pages rewritten as it goes."""

import time
from pathlib import Path

from worldsmith.progress import Progress
from worldsmith.report import write_report

REPORT_EVERY_S = 5.0


class Watcher:
    """An `rl.observer.Observer`. The pages are those of these runs: its own, and one that it is part of."""

    def __init__(self, *runs: Path) -> None:
        self._runs = runs
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
            self._write()
            self._reported = time.monotonic()

    def close(self) -> None:
        self.end()
        self._write()

    def _write(self) -> None:
        for run in self._runs:
            write_report(run)

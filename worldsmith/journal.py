"""The ended episodes of an evaluation, kept as they end, so that a stopped one goes on from there."""

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from envs.outcome import Cause
from envs.sandbox.contract import Capabilities
from rl.evaluate import Row
from rl.trajectory import scripted_line


class Journal:
    """`known`: the rows and the lines to read of an earlier start, up to one that is cut short or damaged."""

    def __init__(self, path: Path) -> None:
        self.known: list[tuple[Row, str]] = []
        kept = b""
        for line in path.read_bytes().splitlines(keepends=True) if path.exists() else []:
            try:
                entry = json.loads(line)
                row, read = dict(entry["row"]), str(entry["line"])
                self.ended(row)
            except (ValueError, TypeError, KeyError):
                break
            if not line.endswith(b"\n"):
                break
            self.known.append((row, read))
            kept += line
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab")
        self._file.truncate(len(kept))

    @property
    def done(self) -> set[tuple[str, int]]:
        """(task id, sample) of each."""
        return {self.ended(row) for row, _ in self.known}

    @staticmethod
    def ended(row: Row) -> tuple[str, int]:
        return row["task_id"], row["sample"]

    def add(self, row: Row, line: str) -> None:
        self._file.write(json.dumps({"row": row, "line": line}).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.known.append((row, line))

    def take(
        self,
        rows: Iterable[Row],
        on_row: Callable[[], None],
        *,
        boxes: Capabilities,
        order: Callable[[tuple[str, int]], Any],
    ) -> tuple[list[Row], list[str]]:
        """Keeps the rows as they end; all rows and lines to read, sorted by `order` of (task id, sample).

        Those that say nothing about the policy are played again by whoever goes on.
        """
        lost: list[tuple[Row, str]] = []
        for row in rows:
            entry = without_messages(row, boxes), scripted_line(row, when="after")
            if Cause(row["cause"]).is_infrastructure:
                lost.append(entry)
            else:
                self.add(*entry)
            on_row()
        ended = sorted(
            [*self.known, *lost], key=lambda entry: order((entry[0]["task_id"], entry[0]["sample"]))
        )
        return [row for row, _ in ended], [line for _, line in ended]

    def close(self) -> None:
        self._file.close()


def without_messages(row: Row, boxes: Capabilities) -> Row:
    """A row of `episodes/*.parquet`; `boxes` is what was shown of the boxes that it was played in."""
    shown = {"tier": boxes.tier, "capabilities": boxes.digest}
    return {name: value for name, value in row.items() if name != "messages"} | shown

"""Who watches a run: progress for the terminal, and a word whenever something worth showing was written."""

from typing import Protocol


class Observer(Protocol):
    def begin(self, label: str, *, total: int, done: int, unit: str) -> None:
        """A stage begins, `done` of it by an earlier run."""
        ...

    def advance(self, count: int, note: str = "") -> None: ...

    def end(self) -> None: ...

    def wrote(self) -> None:
        """Metrics or files of the run changed."""
        ...


class Silent:
    """Watches nothing."""

    def begin(self, label: str, *, total: int, done: int, unit: str) -> None:
        return

    def advance(self, count: int, note: str = "") -> None:
        return

    def end(self) -> None:
        return

    def wrote(self) -> None:
        return

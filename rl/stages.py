"""The kinds of stage that a pipeline has."""

from enum import StrEnum


class Kind(StrEnum):
    COLD_START = "cold start"
    SPECIALIST = "specialist"
    DISTILLED = "distilled"
    MIXED = "mixed"

    @property
    def closing(self) -> str:
        """The evaluation that says what a stage came to; one without RL has but the first."""
        return "after" if self in (Kind.SPECIALIST, Kind.MIXED) else "before"

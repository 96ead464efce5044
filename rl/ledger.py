"""Where every dispatched episode ended: in exactly one bucket, or still in flight.

    dispatched = sum of the buckets + in flight

holds after each step, stands in the metrics and in each checkpoint, and is checked when a run goes on. An
episode that is lost and played again counts once, by its last attempt.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from envs.outcome import Cause
from rl.advantage import has_signal, rewards_of
from rl.trajectory import Trajectory


class Bucket(StrEnum):
    """Ends of an episode; a fault of the machinery is in the bucket of its own `Cause`."""

    TRAINED = "trained"
    NO_SIGNAL = "no_signal"
    """Its group's measured rewards were equal, so that it taught nothing."""
    SURPLUS = "surplus"
    """Its group had a signal, and more groups had one than a step trains on."""
    STALE = "stale"
    """Sampled by weights older than the bound on staleness allows to train on."""
    SANDBOX_LOST = Cause.SANDBOX_LOST.value
    GRADER_FAILED = Cause.GRADER_FAILED.value
    REPLICA_FAILED = Cause.REPLICA_FAILED.value
    CANCELLED = Cause.CANCELLED.value


@dataclass(slots=True)
class Ledger:
    """Counts of one run. `dispatch`, then `settle` with as many."""

    dispatched: int = 0
    buckets: Counter[Bucket] = field(default_factory=Counter)

    @property
    def in_flight(self) -> int:
        return self.dispatched - self.buckets.total()

    def dispatch(self, count: int) -> None:
        self.dispatched += count

    def settle(self, ends: Sequence[Bucket]) -> None:
        """Raises ValueError when more end than were dispatched: something was counted twice."""
        if len(ends) > self.in_flight:
            raise ValueError(f"ledger: {len(ends)} episodes end, {self.in_flight} were in flight")
        self.buckets.update(ends)

    def copy(self) -> "Ledger":
        return Ledger(dispatched=self.dispatched, buckets=Counter(self.buckets))

    def as_fields(self) -> dict[str, Any]:
        named = {str(bucket): self.buckets[bucket] for bucket in Bucket}
        return {"dispatched": self.dispatched, "in_flight": self.in_flight, **named}

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any], *, where: str) -> "Ledger":
        """The ledger of a checkpoint. Raises ValueError when it does not balance or is no ledger."""
        needed = {"dispatched", "in_flight"}
        known = needed <= set(fields) <= needed | set(map(str, Bucket))
        if not known or not all(isinstance(n, int) and n >= 0 for n in fields.values()):
            raise ValueError(f"{where}: its ledger is not one of this program's: {dict(fields)}")
        buckets = Counter({bucket: fields.get(str(bucket), 0) for bucket in Bucket})
        ledger = cls(dispatched=fields["dispatched"], buckets=buckets)
        if ledger.in_flight != fields["in_flight"]:
            raise ValueError(
                f"{where}: its ledger does not balance: {ledger.dispatched} dispatched,"
                f" {ledger.buckets.total()} ended, {fields['in_flight']} said to be in flight"
            )
        return ledger


def ends_of_step(
    played: Sequence[Trajectory], trained: Sequence[Trajectory], *, group_size: int
) -> list[Bucket]:
    """Where a step's episodes ended; `trained` are those that the learner got, groups adjacent in both."""
    handed = {(t.group, t.sample) for t in trained}
    signal = has_signal(rewards_of(played), group_size).tolist()
    ends = []
    for index, trajectory in enumerate(played):
        if trajectory.cause.is_infrastructure:
            ends.append(Bucket(str(trajectory.cause)))
        elif not signal[index // group_size]:
            ends.append(Bucket.NO_SIGNAL)
        elif (trajectory.group, trajectory.sample) in handed:
            ends.append(Bucket.TRAINED)
        else:
            ends.append(Bucket.SURPLUS)
    return ends

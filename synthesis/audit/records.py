"""What an audit found: a record a task, counts with Wilson's intervals over all of them."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from synthesis.tally import wilson

REPORT_VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskAudit:
    """One task. What was not measured is None or empty, and `not_run` or `notes` says why.

    Example: `TaskAudit(task="retail/12", format="tau2", null_reward=0.0, mutants=14, killed=14)`.
    """

    task: str
    format: str
    not_run: str = ""
    """Why nothing of it was played, such as `image python:3.12 is not here`; such a task is no pass."""
    null_reward: float | None = None
    """Of an agent that does nothing and says nothing."""
    gold_reward: float | None = None
    """The least of the reference solution's plays."""
    gold_error: str = ""
    """The first call or command of the reference solution that fails."""
    full_reward: float = 1.0
    mutants: int = 0
    """Damaged solutions that were played and end otherwise than the reference solution."""
    killed: int = 0
    equivalent: int = 0
    """Damaged solutions that leave what the reference solution leaves; they count nowhere else."""
    survivors: tuple[str, ...] = ()
    damages: int = 0
    """Plays of the reference solution with harm done to something that it does not touch."""
    damage_accepted: tuple[str, ...] = ()
    leaks: tuple[str, ...] = ()
    unmeasured: tuple[str, ...] = ()
    """Parts of the verifier that no program can play, such as the judgement of a model."""
    notes: tuple[str, ...] = ()

    @property
    def findings(self) -> tuple[str, ...]:
        """What is wrong with the task, in the order of the table's columns."""
        faults = {
            "null rewarded": bool(self.null_reward) and not self.unmeasured,
            "gold fails": bool(self.gold_error),
            "gold unpaid": self.gold_reward is not None and self.gold_reward < self.full_reward,
            "mutant accepted": bool(self.survivors),
            "collateral accepted": bool(self.damage_accepted),
            "leak": bool(self.leaks),
        }
        return tuple(name for name, is_there in faults.items() if is_there)


@dataclass(frozen=True, kw_only=True, slots=True)
class Count:
    """`hits` of `trials`, with Wilson's 95 % interval; no trials: nothing was measured."""

    name: str
    hits: int
    trials: int

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.hits, self.trials)

    def as_json(self) -> dict[str, Any]:
        rate = self.hits / self.trials if self.trials else None
        return {"hits": self.hits, "trials": self.trials, "rate": rate, "interval": list(self.interval)}

    def text(self) -> str:
        if not self.trials:
            return "not measured"
        low, high = self.interval
        return f"{self.hits:,} of {self.trials:,} ({low:.3f} to {high:.3f})"


def counts(audits: Sequence[TaskAudit]) -> list[Count]:
    """The totals. A task that was not run is in none of them."""
    run = [one for one in audits if not one.not_run]
    null = [one for one in run if one.null_reward is not None]
    whole = [one for one in null if not one.unmeasured]
    part = [one for one in null if one.unmeasured]
    gold = [one for one in run if one.gold_reward is not None]
    damaged = [one for one in run if one.damages]
    full = [one for one in gold if not one.unmeasured]
    return [
        Count(name="null agent rewarded", hits=sum(bool(o.null_reward) for o in whole), trials=len(whole)),
        Count(
            name="null agent passes all but what a model judges",
            hits=sum(bool(o.null_reward) for o in part),
            trials=len(part),
        ),
        Count(name="gold runs without an error", hits=sum(not o.gold_error for o in gold), trials=len(gold)),
        Count(
            name="gold paid in every play",
            hits=sum((o.gold_reward or 0.0) >= o.full_reward for o in full),
            trials=len(full),
        ),
        Count(
            name="solution mutants killed",
            hits=sum(o.killed for o in run),
            trials=sum(o.mutants for o in run),
        ),
        Count(
            name="tasks that accept collateral damage",
            hits=sum(bool(o.damage_accepted) for o in damaged),
            trials=len(damaged),
        ),
        Count(name="tasks with a leak", hits=sum(bool(o.leaks) for o in run), trials=len(run)),
    ]


def not_run(audits: Iterable[TaskAudit]) -> Counter[str]:
    return Counter(one.not_run for one in audits if one.not_run)


def report(audits: Sequence[TaskAudit], *, path: str, kind: str, tier: str) -> dict[str, Any]:
    """The JSON report."""
    return {
        "version": REPORT_VERSION,
        "path": path,
        "format": kind,
        "tier": tier,
        "tasks": len(audits),
        "audited": sum(not one.not_run for one in audits),
        "not_run": dict(not_run(audits).most_common()),
        "counts": {count.name: count.as_json() for count in counts(audits)},
        "findings": dict(Counter(name for one in audits for name in one.findings).most_common()),
        "per_task": [asdict(one) | {"findings": list(one.findings)} for one in audits],
    }

"""The records of a training run: what it learns from, and what every stage of it is handed."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from envs.sandbox.requirements import IN_PROCESS
from policies.engine import Sampling
from rl.budget import Compute
from rl.config import TrainConfig, default_fields
from rl.observer import Observer
from rl.run_files import RunLog
from rl.stopping import Stopping
from rl.trajectory import PlayableTask
from rl.transcript import Demonstration, Transcript

TIER = IN_PROCESS.tier


@dataclass(frozen=True, kw_only=True, slots=True)
class Data:
    """What a run learns from and is measured on. `heldout` shares no world with `tasks`."""

    tasks: Sequence[PlayableTask]
    heldout: Sequence[PlayableTask]
    clean: Sequence[Demonstration]
    mixed: Sequence[Demonstration]
    unseen_levels: frozenset[tuple[str, int]]
    """(domain, level) that no demonstration shows."""
    lessons: Sequence[Transcript] = ()
    """Verified episodes to learn from in the place of `mixed`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    config: TrainConfig
    data: Data
    out: Path
    log: RunLog
    observer: Observer
    stop: Stopping = field(default_factory=lambda: Stopping(0.0))
    before: Compute = field(default_factory=Compute)
    """Spent by the runs that this one follows."""


def open_log(config: TrainConfig, out: Path, *, command: str = "train") -> RunLog:
    """Begins the record of a run in `out`, or goes on with it. Raises ValueError where it began with another
    config.
    """
    return RunLog(
        out,
        command=command,
        config=config.model_dump(mode="json"),
        tier=TIER,
        seed=config.seed,
        defaults=default_fields(type(config)),
    )


def sampling(run: Run) -> Sampling:
    rollout = run.config.rollout
    return Sampling(
        temperature=rollout.temperature,
        top_p=rollout.top_p,
        top_k=rollout.top_k,
        max_new_tokens=rollout.max_new_tokens,
    )

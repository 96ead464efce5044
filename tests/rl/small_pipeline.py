"""A whole pipeline in miniature, whose specialists play the gold when they are to be learnt from."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import rl.pipeline
from rl.config import PipelineConfig
from rl.observer import Observer, Silent
from rl.pipeline import Stage, run_pipeline
from rl.pipeline_figures import Figures
from rl.rollout_worker import ReplicaConfig
from rl.run import Data
from rl.trajectory import PlayableTask
from tests.rl.gold_players import GoldPlayers
from tests.rl.small_run import demonstrations, make_config, make_data, playable

STAGES = ("cold-start", "specialist-orders", "specialist-trip", "distilled", "mixed")


def pipeline_data() -> Data:
    data = make_data()
    return replace(
        data,
        tasks=[*data.tasks, *playable(range(400, 406), 1, "trip")],
        heldout=[*data.heldout, *playable(range(500, 503), 1, "trip")],
        clean=[*data.clean, *demonstrations(0.0, "trip")],
        mixed=[*data.mixed, *demonstrations(0.5, "trip")],
    )


def pipeline_config(**changes: Any) -> PipelineConfig:
    base = make_config(rollout={"workers": 0}, rl={"steps": 2})
    fields = base.model_dump(mode="json") | {
        "pipeline": {
            "groups": {"orders": ["retail"], "trip": ["trip"]},
            "specialists": {"steps": 2},
            "distill": {"samples": 2, "steps": 3, "tokens_per_batch": 600, "checkpoint_every": 1},
        }
    }
    return PipelineConfig.model_validate(fields | changes)


def gold_players(
    engine: str, replica: ReplicaConfig, tasks: Sequence[PlayableTask], num_workers: int
) -> GoldPlayers:
    """In the place of `rl.replica_workers.start_players`: a policy so small passes nothing."""
    return GoldPlayers(replica.policy, tasks)


@contextmanager
def unwatched(stage: Stage) -> Iterator[Observer]:
    yield Silent()


def go(config: PipelineConfig, data: Data, out: Path) -> Figures:
    original = rl.pipeline.start_players
    rl.pipeline.start_players = gold_players  # pyright: ignore[reportAttributeAccessIssue]
    try:
        return run_pipeline(config, data, out, unwatched)
    finally:
        rl.pipeline.start_players = original

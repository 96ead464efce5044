"""What the simulator needs to know of a machine and its episodes, as a run measured it."""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from rl.buffer import Limits
from rl.config import parse_config
from rl.measure import read_metrics
from rl.rollout import LONGEST_WAIT_S
from rl.rollouts import WHILE_S
from rl.run_files import read_record
from rl.simulate import Episodes, Plant

COLUMNS = ["turn_tokens", "tool_seconds"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    plant: Plant
    episodes: Episodes
    limits: Limits
    steps: int
    """Learner steps that it was measured over."""


def measured(out: Path, *, step_s: float | None = None, token_s: float | None = None) -> Measured:
    """The run in `out`: its settings, its episodes' turns and tools, its learner's times.

    step_s, token_s: of the engine; None: fitted to the run's generation times, which only a run says whose
    rollouts and learner took turns and whose tools answered between the engine's steps.

    Raises ValueError when the run has no steps of RL, or the engine's times are neither given nor to be had.
    """
    config = parse_config(read_record(out)["config"], where=str(out / "run.json"))
    steps = [m for m in read_metrics(out) if m["kind"] == "rl"]
    if len(steps) < 2:
        raise ValueError(f"{out}: it has {len(steps)} steps of RL; a simulation is measured on at least two")
    rows = episodes_of(out)
    rl, rollout = config.rl, config.rollout
    if step_s is None or token_s is None:
        if rollout.max_staleness or rollout.boxes:
            raise ValueError(
                f"{out}: its rollouts went on beside the learner or its tools beside the engine, so that it"
                " does not tell the engine's times; give --step-ms and --token-ms"
            )
        step_s, token_s = engine_times(steps, rows, max(1, rollout.workers))
    every = [row for part in rows.values() for row in part]
    return Measured(
        plant=Plant(
            replicas=max(1, rollout.workers),
            boxes=min(rollout.boxes, rollout.slots) if rollout.boxes else rollout.slots,
            step_s=step_s,
            token_s=token_s,
            learner_s=[m["seconds_training"] for m in steps[1:]],
            word_s=WHILE_S + LONGEST_WAIT_S,
        ),
        episodes=Episodes(
            turns=[row["turn_tokens"] for row in every if row["turn_tokens"]],
            tools=[seconds for row in every for seconds in row["tool_seconds"]] or [0.0],
            signal=sum(m["signal_share"] for m in steps) / len(steps),
        ),
        limits=Limits(
            group_size=rl.group_size,
            groups_trained=rl.groups_trained,
            groups_per_step=rl.groups_per_step,
            max_staleness=rollout.max_staleness,
            episodes=rollout.episodes_at_once,
        ),
        steps=len(steps),
    )


def episodes_of(out: Path) -> dict[int, list[dict[str, Any]]]:
    """Rows of the episodes that were played for training, by step. Raises ValueError when there are none."""
    found: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
    for path in sorted((out / "episodes").glob("rl-step-*.parquet")):
        if not set(COLUMNS) <= set(pq.read_schema(path).names):
            raise ValueError(f"{path}: an older Worldsmith wrote it, without the tokens of each turn")
        step = int(path.stem.removeprefix("rl-step-"))
        found[step] = pq.read_table(path, columns=COLUMNS).to_pylist()
    if not any(found.values()):
        raise ValueError(f"{out}: it holds no episodes of training; name a run with steps of RL")
    return dict(found)


def engine_times(
    steps: list[dict[str, Any]], rows: dict[int, list[dict[str, Any]]], workers: int
) -> tuple[float, float]:
    """Seconds of an engine step, and of each token in it: least squares over the run's steps, at least 0.

    A step's generation takes as many engine steps as its longest episode has tokens.
    """
    known = [m for m in steps if rows.get(m["step"])]
    tokens = [[sum(row["turn_tokens"]) for row in rows[m["step"]]] for m in known]
    inputs = np.array([[max(counts), sum(counts) / workers] for counts in tokens], dtype=float)
    seconds = np.array([m["seconds_generation"] for m in known])
    (step_s, token_s), *_ = np.linalg.lstsq(inputs, seconds, rcond=None)
    if step_s < 0:
        step_s, token_s = 0.0, float(inputs[:, 1] @ seconds / (inputs[:, 1] @ inputs[:, 1]))
    elif token_s < 0:
        step_s, token_s = float(inputs[:, 0] @ seconds / (inputs[:, 0] @ inputs[:, 0])), 0.0
    return float(step_s), float(token_s)

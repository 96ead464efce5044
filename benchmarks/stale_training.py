"""GRPO from the cold start of a run, on purpose with rollouts by weights that are some updates old.

The run's own loop (`rl.reinforce`) with one thing changed: the worker plays training tasks with the weights
of `lag` updates ago (fewer, while there are not so many) and held-out ones with the newest. For
`benchmarks.stabilisers`.
"""

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from policies.engine import Sampling
from policies.model.checkpoint import load_model
from policies.model.decoder import WorldsmithForCausalLM
from policies.tokenizer import TextCodec, load_tokenizer
from policies.weights import PublishedWeights
from rl.checkpoints import latest_checkpoint
from rl.config import TrainConfig, parse_config
from rl.measure import evaluate, read_metrics
from rl.observer import Observer
from rl.reinforce import reinforce
from rl.rollout_worker import InProcess, ReplicaConfig
from rl.run import Data, Run, open_log
from rl.trajectory import PlayableTask, PlayRequest, Trajectory


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """What every training begins from.

    policy: a directory with the tokenizer and a model of the cold start's sizes. model: the cold start's.
    """

    config: TrainConfig
    policy: Path
    model: Path
    data: Data

    def load(self) -> WorldsmithForCausalLM:
        return load_model(self.model)


class StaleWorker(InProcess):
    """Plays the first `num_tasks` tasks with weights `lag` updates old, the others with the newest."""

    def __init__(
        self, config: ReplicaConfig, tasks: Sequence[PlayableTask], *, num_tasks: int, lag: int
    ) -> None:
        super().__init__(config, tasks)
        self.known: dict[int, PublishedWeights] = {}
        self._num_tasks, self._lag = num_tasks, lag

    def load(self, published: PublishedWeights) -> None:
        self.known[published.version] = published

    def play(self, requests: Sequence[PlayRequest], sampling: Sampling) -> list[Trajectory]:
        training = any(request.task_index < self._num_tasks for request in requests)
        version = max(self.known)
        super().load(self.known[max(version - self._lag, min(self.known)) if training else version])
        return super().play(requests, sampling)


def read_start(
    run: Path, tasks: Sequence[PlayableTask], heldout: Sequence[PlayableTask], **changes: Any
) -> Start:
    """The cold start in `run`, whose configuration is changed at the named fields (`rl={"steps": 3}`).

    Raises ValueError where the run has no cold start, or a field is wrong.
    """
    found = latest_checkpoint(run / "checkpoints" / "cold-start")
    if found is None or not (run / "run.json").exists():
        raise ValueError(
            f"{run}: it has no cold start to begin from; make one with worldsmith demo --out {run}"
        )
    fields: dict[str, Any] = json.loads((run / "run.json").read_text())["config"]
    return Start(
        config=parse_config(changed(fields, changes), where=str(run / "run.json")),
        policy=run / "policy",
        model=found.path,
        data=Data(tasks=tasks, heldout=heldout, clean=(), mixed=(), unseen_levels=frozenset()),
    )


def changed(fields: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A copy of nested mappings with others laid over it."""
    result = copy.copy(fields)
    for name, value in changes.items():
        inner = isinstance(value, dict) and isinstance(result.get(name), dict)
        result[name] = changed(result[name], value) if inner else value
    return result


def replica(start: Start, *, threads: int = 1) -> ReplicaConfig:
    rollout = start.config.rollout
    return ReplicaConfig(
        policy=str(start.policy),
        slots=rollout.slots,
        max_length=rollout.max_length,
        threads=threads,
        record_selected=True,
        dtype=rollout.dtype,
    )


def train_stale(
    start: Start, out: Path, *, lag: int, observer: Observer, evaluated: bool = True
) -> tuple[WorldsmithForCausalLM, StaleWorker]:
    """The trained model, and the worker that knows every version of the weights on the way.

    `out` becomes a run's directory, without checkpoints to go on from but the last.
    """
    config = start.config
    log = open_log(config, out)
    run = Run(config=config, data=start.data, out=out, log=log, observer=observer)
    tasks = [*start.data.tasks, *start.data.heldout]
    worker = StaleWorker(replica(start), tasks, num_tasks=len(start.data.tasks), lag=lag)
    model = start.load()
    if evaluated:
        evaluate(run, worker, model, when="before", step=0)
    reinforce(run, worker, model, TextCodec(load_tokenizer(start.policy)))
    if evaluated:
        evaluate(run, worker, model, when="after", step=config.rl.steps)
    log.finish()
    return model, worker


def curve(out: Path) -> dict[str, list[Any]]:
    """Of a finished training: held-out pass rates by step, and what each step of GRPO measured."""
    metrics = read_metrics(out)
    evaluations = sorted((m["step"], m["pass_rate"]) for m in metrics if m["kind"] == "eval")
    steps = [m for m in metrics if m["kind"] == "rl"]
    names = ("pass_rate", "ratio_mean", "logp_drift_mean", "masked_share", "clip_share", "entropy")
    return {
        "steps": [step for step, _ in evaluations],
        "heldout": [rate for _, rate in evaluations],
        **{f"training {name}": [m[name] for m in steps] for name in names},
    }

"""What benchmarks of training begin from: a domain's tasks, and a policy after a brief cold start on them.

The policy has learnt to call the tools and to answer, so that its episodes have several turns; how well it
does matters to no figure. `train_copy` goes on from it, each time from the same weights.
"""

import argparse
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from benchmarks.env_steps import candidates_of
from envs.task import stable_seed
from policies.tokenizer import TextCodec, load_tokenizer
from policies.weights import publish
from rl.config import TrainConfig
from rl.measure import read_metrics
from rl.observer import Silent
from rl.reinforce import reinforce
from rl.replica_workers import AnyWorkers
from rl.run import Data, Run, open_log
from rl.train import cold_start, learn_tokenizer, start_workers
from rl.trajectory import PlayableTask
from rl.transcript import Demonstration
from synthesis.demonstrations import demonstrate_once
from synthesis.general import domain_named

LEVELS = (1, 2, 3)
GROUP_SIZE = 8
_QUICK_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "index_topk": 16}
_QUICK_STEPS = {"clean_steps": 4, "warm_up_steps": 2, "sparse_steps": 2, "tokens_per_batch": 600}
_STEPS = {"clean_steps": 150, "warm_up_steps": 20, "sparse_steps": 30, "tokens_per_batch": 2048}


def parser_of(doc: str | None, *, rounds: int, groups: int) -> argparse.ArgumentParser:
    """The options that every benchmark of training has; the numbers are their defaults."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rounds", type=int, default=rounds, help=f"runs of each setting (default: {rounds})"
    )
    parser.add_argument(
        "--groups", type=int, default=groups, help=f"groups of {GROUP_SIZE} a step (default: {groups})"
    )
    parser.add_argument("--start", type=Path, metavar="DIR", help="keep the cold start there, or take it")
    parser.add_argument("--quick", action="store_true", help="tries the script, not the speed")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    return parser


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Clock(Silent):
    """When GRPO began, and when each of its steps was done; monotonic seconds."""

    def __init__(self) -> None:
        self.began = 0.0
        self.ends: list[float] = []

    def begin(self, label: str, *, total: int, done: int, unit: str) -> None:
        self.began = time.monotonic()

    def advance(self, count: int, note: str = "") -> None:
        self.ends.append(time.monotonic())


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """out: the run's directory. seconds: of each step, the wait for its episodes included; those of the first
    have the trainer's start in them. metrics: the lines that the run wrote of its steps.
    """

    out: Path
    seconds: list[float]
    metrics: list[dict[str, Any]]


def cold_started(out: Path, *, quick: bool, domain: str = "retail") -> Run:
    """A run in `out` up to the end of its cold start; one that is there already is used as it is.

    quick: a model that has learnt nothing, to try a script.
    """
    config = TrainConfig.model_validate(
        {
            "corpus": f"{domain}, made here",
            "heldout": "none",
            "model": {"sizes": _QUICK_SIZES if quick else {"index_topk": 48}},
            "cold_start": _QUICK_STEPS if quick else _STEPS,
            "rl": {
                "steps": 1,
                "groups_per_step": 1,
                "groups_trained": 1,
                "group_size": GROUP_SIZE,
                "rows_per_micro_batch": GROUP_SIZE,
                "learning_rate": 4e-4,
                "levels": list(LEVELS),
                "loss": {"off_policy_delta": 0.5},
            },
            "rollout": {"workers": 1, "max_length": 384, "max_new_tokens": 48},
        }
    )
    out.mkdir(parents=True, exist_ok=True)
    run = Run(config=config, data=_data(domain, quick), out=out, log=open_log(config, out), observer=Silent())
    cold_start(run, learn_tokenizer(run))
    return run


def with_settings(base: Run, *, rl: Mapping[str, Any], rollout: Mapping[str, Any]) -> Run:
    """The base with these settings changed."""
    fields = base.config.model_dump()
    changed = {"rl": fields["rl"] | dict(rl), "rollout": fields["rollout"] | dict(rollout)}
    return replace(base, config=TrainConfig.model_validate(fields | changed))


@contextmanager
def replicas(run: Run, *, threads: int = 1) -> Iterator[AnyWorkers]:
    """Rollout actors by the run's settings; with none of them, this process on so many threads."""
    torch.set_num_threads(threads)
    workers = start_workers(run)
    try:
        yield workers
    finally:
        workers.close()


def train_copy(run: Run, out: Path, workers: AnyWorkers, *, threads: int) -> Trained:
    """GRPO from the run's weights in a directory of its own, by the run's settings.

    Every replica serves the weights before the clock starts. threads: of the learner.
    """
    run = _copied(run, out)
    assert isinstance(run.observer, Clock)
    codec = TextCodec(load_tokenizer(out / "policy"))
    model = cold_start(run, codec)
    torch.set_num_threads(threads)
    workers.load(publish(model, version=0))
    reinforce(run, workers, model, codec)
    ends = [run.observer.began, *run.observer.ends]
    return Trained(
        out=out,
        seconds=[end - start for start, end in pairwise(ends)],
        metrics=[line for line in read_metrics(out) if line["kind"] == "rl"],
    )


def _copied(run: Run, out: Path) -> Run:
    for part in ("policy", "checkpoints/cold-start"):
        shutil.copytree(run.out / part, out / part)
    return replace(run, out=out, log=open_log(run.config, out), observer=Clock())


def _data(domain: str, quick: bool) -> Data:
    per_level, shown = (4, 30) if quick else (64, 1000)
    return Data(
        tasks=[
            PlayableTask(task=made.task, image=made.image)
            for level in LEVELS
            for made in candidates_of(domain, per_level, level=level)
        ],
        heldout=(),
        clean=_demonstrations(domain, shown, slip_rate=0.0),
        mixed=_demonstrations(domain, shown, slip_rate=0.4),
        unseen_levels=frozenset(),
    )


def _demonstrations(name: str, count: int, *, slip_rate: float) -> list[Demonstration]:
    domain = domain_named(name)
    made = (
        demonstrate_once(
            domain,
            LEVELS[index % len(LEVELS)],
            stable_seed("small run", slip_rate, index),
            slip_rate=slip_rate,
            toolset=name,
        )
        for index in range(count)
    )
    return [
        Demonstration(messages=one.messages, tools=domain.tools, reward=one.reward)
        for one in made
        if one is not None
    ]

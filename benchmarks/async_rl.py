"""Trained tokens a second with tools of heavy-tailed latency: rollouts beside the learner, or taking turns.

PYTHONPATH=. python benchmarks/async_rl.py RUN [--steps 8] [--staleness 0 1 2 4] [--json]

RUN is one of `worldsmith demo` or `train`: its cold-started policy and its tasks are used, and it is not
changed. Each bound trains from the same weights in a directory of its own. Beside the measurement stands
what `rl.simulate` predicts of it from three things alone: how long the engine's steps take by the number of
running episodes (measured by itself), how long the learner's steps take and which turns episodes have (both
from the run that takes turns), and the distribution that latencies are drawn from.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from policies.engine import Engine, Sampling
from policies.model.checkpoint import load_model
from policies.tokenizer import TextCodec, load_tokenizer
from policies.weights import publish
from rl.buffer import Limits
from rl.config import TrainConfig
from rl.latency import Latency
from rl.measure import read_metrics
from rl.observer import Silent
from rl.ray_session import ray_session
from rl.reinforce import reinforce
from rl.rollout_worker import Workers
from rl.run import TIER, Run
from rl.run_files import RunLog
from rl.simulate import Episodes, Forecast, Plant, simulate
from rl.train import cold_start, start_workers
from rl.trajectory import PlayableTask
from worldsmith.corpora import training_data

DECODE_STEPS = 12
SIMULATED_SEEDS = 5


class Clock(Silent):
    """When the rollouts began, and when each step was done."""

    def __init__(self) -> None:
        self.began = 0.0
        self.steps: list[float] = []

    def begin(self, label: str, *, total: int, done: int, unit: str) -> None:
        self.began = time.monotonic()

    def advance(self, count: int, note: str = "") -> None:
        self.steps.append(time.monotonic())


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--steps", type=int, default=8, help="learner steps of each bound (default: 8)")
    parser.add_argument("--staleness", type=int, nargs="+", default=[0, 1, 2, 4], help="0 comes first")
    parser.add_argument("--median", type=float, default=0.3, help="seconds of a tool's latency, the median")
    parser.add_argument("--sigma", type=float, default=1.3, help="of its logarithm")
    parser.add_argument("--groups", type=int, default=4, help="groups of 8 that a step trains on")
    parser.add_argument("--boxes", type=int, default=96, help="episodes at once")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    args = parser.parse_args()
    if args.staleness[0] != 0:
        parser.error("--staleness begins with 0, which the others are compared with")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    results = measure_all(args)
    for result in results:
        print(line(result, results[0]))
    if args.json:
        print(json.dumps({"settings": vars(args) | {"run": str(args.run)}, "results": results}))
    return 0


def measure_all(args: argparse.Namespace) -> list[dict[str, Any]]:
    fields = json.loads((args.run / "run.json").read_text())["config"]
    data = training_data(args.run / "corpus", args.run / "heldout")
    latency = Latency(median_s=args.median, sigma=args.sigma, longest_s=20.0)
    results: list[dict[str, Any]] = []
    learner_s: list[float] = []
    turns: list[list[int]] = []
    step_s, token_s = engine_times(args.run, data.tasks, args.groups * 8)
    with tempfile.TemporaryDirectory() as scratch, ray_session(1):
        for bound in args.staleness:
            out = Path(scratch) / f"staleness-{bound}"
            out.mkdir()
            shutil.copytree(args.run / "policy", out / "policy")
            shutil.copytree(args.run / "checkpoints" / "cold-start", out / "checkpoints" / "cold-start")
            config = TrainConfig.model_validate(fields | changed(fields, args, bound, latency))
            log = RunLog(out, command="train", config=fields, tier=TIER, seed=config.seed)
            clock = Clock()
            run = Run(config=config, data=data, out=out, log=log, observer=clock)
            measured = train_once(run, clock)
            if bound == 0:
                learner_s = [m["seconds_training"] for m in read_metrics(out) if m["kind"] == "rl"]
                turns = turns_played(out)
            plant = Plant(replicas=1, boxes=args.boxes, step_s=step_s, token_s=token_s, learner_s=learner_s)
            forecasts = predictions(plant, Episodes(turns=turns, latency=latency), config, args.steps)
            results.append(
                {"max_staleness": bound, **measured, **predicted(forecasts), "learner_s": learner_s}
            )
            print(line(results[-1], results[0]), flush=True)
    return results


def changed(fields: dict[str, Any], args: argparse.Namespace, bound: int, latency: Latency) -> dict[str, Any]:
    rl = {
        "steps": args.steps,
        "groups_per_step": args.groups,
        "groups_trained": args.groups,
        "group_size": 8,
        "rows_per_micro_batch": args.groups * 8,
        "checkpoint_every": 1000,
    }
    rollout = {
        "workers": 1,
        "boxes": args.boxes,
        "slots": args.boxes,
        "max_staleness": bound,
        "tool_latency": latency.model_dump(),
    }
    return {"rl": fields["rl"] | rl, "rollout": fields["rollout"] | rollout}


def train_once(run: Run, clock: Clock) -> dict[str, Any]:
    """From the cold-started weights, which every replica holds before the clock starts."""
    codec = TextCodec(load_tokenizer(run.out / "policy"))
    model = cold_start(run, codec)
    torch.set_num_threads(1)  # one core for the learner, one for the replica
    workers = start_workers(run)
    assert isinstance(workers, Workers)
    workers.load(publish(model, version=0))
    reinforce(run, workers, model, codec)
    workers.close()
    steps = [m for m in read_metrics(run.out) if m["kind"] == "rl"]
    seconds = clock.steps[-1] - clock.began
    tokens = sum(m["sampled_tokens"] for m in steps)
    waiting = sum(m.get("seconds_waiting", m["seconds_generation"]) for m in steps)
    return {
        "seconds": seconds,
        "tokens": tokens,
        "tokens_per_s": tokens / seconds,
        "bubble_share": waiting / seconds,
        "staleness_mean": sum(m.get("staleness_mean", 0.0) for m in steps) / len(steps),
        "staleness_max": max(m.get("staleness_max", 0) for m in steps),
    }


def turns_played(out: Path) -> list[list[int]]:
    """Tokens of each turn of each episode."""
    paths = sorted((out / "episodes").glob("rl-step-*.parquet"))
    rows = [row for path in paths for row in pq.read_table(path, columns=["turn_tokens"]).to_pylist()]
    return [row["turn_tokens"] for row in rows if row["turn_tokens"]]


def engine_times(run: Path, tasks: Any, most: int) -> tuple[float, float]:
    """Seconds of an engine step: a constant, and what each running episode adds; by least squares."""
    torch.set_num_threads(1)
    codec = TextCodec(load_tokenizer(run / "policy"))
    model = load_model(run / "policy")
    prompts = [codec.encode(text_of(task)) for task in tasks[:4]]
    rows: list[tuple[float, float]] = []
    for running in (1, 2, 4, 8, 16, most):
        engine = Engine(model, num_slots=most, max_length=384, stop_token_ids=[])
        for index in range(running):
            engine.open(prompts[index % 4], seed=index, sampling=Sampling(max_new_tokens=200))
        engine.step()  # reads the prompts
        times = []
        for _ in range(DECODE_STEPS):
            started = time.perf_counter()
            engine.step()
            times.append(time.perf_counter() - started)
        rows.append((running, statistics.median(times)))
    slope, constant = np.polyfit([n for n, _ in rows], [s for _, s in rows], 1)
    return max(float(constant), 1e-4), max(float(slope), 0.0)


def text_of(playable: PlayableTask) -> str:
    from rl.transcript import prompt_text

    return prompt_text(playable.task.prompt, playable.task.tools)


def predictions(plant: Plant, episodes: Episodes, config: TrainConfig, steps: int) -> list[Forecast]:
    rl, rollout = config.rl, config.rollout
    limits = Limits(
        group_size=rl.group_size,
        groups_trained=rl.groups_trained,
        groups_per_step=rl.groups_per_step,
        max_staleness=rollout.max_staleness,
        episodes=rollout.episodes_at_once,
        num_steps=steps,
    )
    return [simulate(plant, episodes, limits, seed=seed) for seed in range(SIMULATED_SEEDS)]


def predicted(forecasts: list[Forecast]) -> dict[str, Any]:
    return {
        "predicted_tokens_per_s": statistics.mean(f.tokens_per_s for f in forecasts),
        "predicted_bubble_share": statistics.mean(f.bubble_share for f in forecasts),
        "predicted_staleness_mean": statistics.mean(f.staleness_mean for f in forecasts),
    }


def line(result: dict[str, Any], turns: dict[str, Any]) -> str:
    error = result["predicted_tokens_per_s"] / result["tokens_per_s"] - 1
    return (
        f"max_staleness {result['max_staleness']}: {result['tokens_per_s']:.1f} trained tokens/s,"
        f" {result['tokens_per_s'] / turns['tokens_per_s']:.2f} times taking turns;"
        f" the learner waits {result['bubble_share']:.0%} of the time;"
        f" staleness {result['staleness_mean']:.2f}, at most {result['staleness_max']};"
        f" predicted {result['predicted_tokens_per_s']:.1f} ({error:+.0%}),"
        f" waiting {result['predicted_bubble_share']:.0%}"
    )


if __name__ == "__main__":
    raise SystemExit(main())

"""Trained tokens a second where tools' latency has a heavy tail: rollouts beside the learner, or in turn.

The setting is one in which tools are most of the time: each turn's tools take a log-normal time more, up to
a time limit (by the episode's seed, `rollout.tool_latency`). One replica on one core, the learner on another.
With `rollout.max_staleness` 0 they take turns; with each of --staleness, groups are played beside the
learner. The wide control takes turns too, but plays and trains as many groups at once as the largest bound
lets be open: what it gains, it gains by the larger batch alone.

Beside each measurement stands what `rl.simulate`, the engine of `worldsmith simulate`, predicts from how long
turns, tools and the learner's steps take in runs that take turns (with the wide control's own steps for it),
how long the engine's steps take (fitted to batches of several sizes whose tools answer at once) and how long
a replica takes to hold new weights. Nothing of an asynchronous run goes into its prediction.

Run as a module: `python -m benchmarks.async_rl`. All settings run in turn in each round; medians over the
rounds, ratios to the run of the same round that takes turns. The last line of --json is one JSON object.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.small_run import (
    GROUP_SIZE,
    Trained,
    cold_started,
    parser_of,
    replicas,
    say,
    train_copy,
    with_settings,
)
from policies.tokenizer import TextCodec, load_tokenizer
from policies.weights import publish
from rl.groups import requests_of_group
from rl.latency import Latency
from rl.plant import engine_times, measured
from rl.ray_session import ray_session
from rl.run import Run, sampling
from rl.simulate import Episodes, Forecast, simulate
from rl.train import cold_start

BATCHES = (1, 2, 4, 8, 16, 32, 64)
"""Episodes at once of which the engine's times are fitted."""
SIMULATED_SEEDS = 40


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """max_staleness: 0 takes turns. groups: of a step. micro_rows: episodes in a forward of the learner."""

    name: str
    max_staleness: int
    groups: int
    steps: int
    micro_rows: int

    @property
    def rl(self) -> dict[str, Any]:
        return {
            "steps": self.steps,
            "groups_per_step": self.groups,
            "groups_trained": self.groups,
            "rows_per_micro_batch": self.micro_rows,
            "checkpoint_every": self.steps,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """Seconds of an engine's step, of each token in it, and of taking new weights."""

    step_s: float
    token_s: float
    sync_s: float


def main(argv: list[str]) -> int:
    args = parse(argv)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with tempfile.TemporaryDirectory() as scratch, ray_session(1):
        base = cold_started(args.start or Path(scratch) / "start", quick=args.quick)
        machine = measure_machine(base, rounds=1 if args.quick else 3)
        say(
            f"an engine step takes {1000 * machine.step_s:.2f} ms and {1000 * machine.token_s:.3f} ms for"
            f" each running episode, new weights take {machine.sync_s:.3f} s"
        )
        runs: dict[str, list[Trained]] = {setting.name: [] for setting in settings_of(args)}
        slow = with_settings(base, rl={}, rollout=slow_tools(args))
        with replicas(slow) as workers:
            for number in range(args.rounds):
                for setting in settings_of(args):
                    out = Path(scratch) / f"{setting.name}-{number}"
                    run = with_settings(slow, rl=setting.rl, rollout={"max_staleness": setting.max_staleness})
                    run = replace(run, config=run.config.model_copy(update={"seed": args.seed + number}))
                    runs[setting.name].append(train_copy(run, out, workers, threads=1))
                    say(f"round {number + 1}, {setting.name}: {rate(runs[setting.name][-1]):.1f} tokens/s")
        results = summary(args, runs, machine)
    for result in results:
        print(line(result))
    if args.json:
        known = vars(args) | {"start": str(args.start) if args.start else None, "boxes": boxes_of(args)}
        print(json.dumps({"settings": known, "machine": machine_fields(machine), "results": results}))
    return 0


def parse(argv: list[str]) -> argparse.Namespace:
    parser = parser_of(__doc__, rounds=2, groups=4)
    parser.add_argument("--steps", type=int, default=8, help="learner steps of a run in turn (default: 8)")
    parser.add_argument("--staleness", type=int, nargs="+", default=[1, 2, 4], metavar="N",
                        help="bounds, in learner steps (default: 1 2 4)")  # fmt: skip
    parser.add_argument("--median", type=float, default=0.1, help="seconds of a turn's tools, the median")
    parser.add_argument("--sigma", type=float, default=1.5, help="of their logarithm (default: 1.5)")
    parser.add_argument("--longest", type=float, default=2.0, help="seconds, the tools' time limit")
    parser.add_argument("--seed", type=int, default=0, help="of the first round's episodes and latencies")
    args = parser.parse_args(argv)
    if args.quick:
        args.rounds, args.steps, args.staleness, args.groups = 1, 2, [1], 1
    if min(args.rounds, args.groups, *args.staleness) < 1 or args.steps < 2:
        parser.error("--rounds, --groups and --staleness are at least 1, --steps at least 2")
    return args


def settings_of(args: argparse.Namespace) -> list[Setting]:
    """Those that are faster take more steps, so that each runs about as long."""
    micro_rows = args.groups * GROUP_SIZE
    turns = Setting(
        name="in turn", max_staleness=0, groups=args.groups, steps=args.steps, micro_rows=micro_rows
    )
    beside = [
        replace(turns, name=f"bound {bound}", max_staleness=bound, steps=(bound + 1) * args.steps)
        for bound in args.staleness
    ]
    most = max(args.staleness) + 1
    wide = replace(turns, name="in turn wide", groups=most * args.groups, steps=-(-args.steps // 2))
    return [turns, *beside, wide]


def boxes_of(args: argparse.Namespace) -> int:
    """As many as the largest bound can use; the others have as many."""
    return (max(args.staleness) + 1) * args.groups * GROUP_SIZE


def slow_tools(args: argparse.Namespace) -> dict[str, Any]:
    latency = Latency(median_s=args.median, sigma=args.sigma, longest_s=args.longest)
    return {"boxes": boxes_of(args), "slots": boxes_of(args), "tool_latency": latency.model_dump()}


def rate(trained: Trained) -> float:
    return tokens_of(trained) / sum(trained.seconds)


def tokens_of(trained: Trained) -> int:
    return sum(line["sampled_tokens"] for line in trained.metrics)


def waited(trained: Trained) -> float:
    """Seconds in which the learner had nothing to train on."""
    return sum(line.get("seconds_waiting", line["seconds_generation"]) for line in trained.metrics)


def measure_machine(base: Run, *, rounds: int) -> Machine:
    """Of one replica, whose tools answer at once, between its steps."""
    run = with_settings(base, rl={}, rollout={"boxes": 0, "slots": max(BATCHES)})
    model = cold_start(run, TextCodec(load_tokenizer(run.out / "policy")))
    loading: list[float] = []
    steps: list[dict[str, Any]] = []
    rows: dict[int, list[dict[str, Any]]] = {}
    with replicas(run) as workers:
        for version in range(rounds + 1):
            published = publish(model, version=version)
            began = time.perf_counter()
            workers.load(published)
            loading.append(time.perf_counter() - began)
            for size in BATCHES:
                number = len(steps)
                groups = range(100 * number, 100 * number + -(-size // GROUP_SIZE))
                requests = [request for group in groups for request in requests_of_group(run, group)]
                began = time.perf_counter()
                played = workers.play(requests[:size], sampling(run))
                seconds = time.perf_counter() - began - sum(t.seconds_environment for t in played)
                steps.append({"step": number, "seconds_generation": seconds})
                if version:  # the first time warms up
                    rows[number] = [{"turn_tokens": t.turn_tokens} for t in played]
    step_s, token_s = engine_times(steps, rows, 1)
    return Machine(step_s=step_s, token_s=token_s, sync_s=statistics.median(loading[1:]))


def summary(
    args: argparse.Namespace, runs: dict[str, list[Trained]], machine: Machine
) -> list[dict[str, Any]]:
    turns = runs["in turn"]
    results = []
    for setting in settings_of(args):
        own = runs[setting.name]
        learner = turns if setting.groups == args.groups else own  # a step of more groups takes longer
        casts = forecasts(turns, learner, setting, machine)
        predicted = statistics.mean(cast.tokens_per_s for cast in casts)
        tokens_per_s = statistics.median(map(rate, own))
        ratios = [rate(one) / rate(its) for one, its in zip(own, turns, strict=True)]
        results.append(
            {
                "setting": setting.name,
                "max_staleness": setting.max_staleness,
                "groups_per_step": setting.groups,
                "steps": setting.steps,
                "tokens_per_s": tokens_per_s,
                "tokens_per_s_of_rounds": [rate(one) for one in own],
                "ratio": statistics.median(ratios),
                "ratios": ratios,
                "bubble_share": statistics.median(waited(one) / sum(one.seconds) for one in own),
                "staleness_mean": mean_of(own, "staleness_mean"),
                "staleness_max": max(line.get("staleness_max", 0) for one in own for line in one.metrics),
                "tokens": [tokens_of(one) for one in own],
                "seconds_of_steps": [one.seconds for one in own],
                "predicted_tokens_per_s": predicted,
                "prediction_error": predicted / tokens_per_s - 1,
                "predicted_spread": statistics.stdev(cast.tokens_per_s for cast in casts) / predicted,
                "predicted_bubble_share": statistics.mean(cast.bubble_share for cast in casts),
            }
        )
    return results


def forecasts(
    turns: Sequence[Trained], learner: Sequence[Trained], setting: Setting, machine: Machine
) -> list[Forecast]:
    """The setting in virtual time. turns: runs that took turns, which tell turns and tools; learner: those
    that tell the learner's steps.
    """
    known = [measured(one.out, step_s=machine.step_s, token_s=machine.token_s) for one in turns]
    plant = replace(
        known[0].plant,
        learner_s=[seconds for one in learner for seconds in learner_seconds(one)],
        sync_s=machine.sync_s,
    )
    episodes = Episodes(
        turns=[turn for one in known for turn in one.episodes.turns],
        tools=[seconds for one in known for seconds in one.episodes.tools],
    )
    limits = replace(
        known[0].limits,
        groups_trained=setting.groups,
        groups_per_step=setting.groups,
        max_staleness=setting.max_staleness,
        num_steps=setting.steps,
    )
    return [simulate(plant, episodes, limits, seed=seed) for seed in range(SIMULATED_SEEDS)]


def learner_seconds(trained: Trained) -> list[float]:
    """What the steps took beside the rollouts, records and publishing included; the first one warms up."""
    pairs = list(zip(trained.seconds, trained.metrics, strict=True))
    return [seconds - line["seconds_generation"] for seconds, line in pairs[1:] or pairs]


def mean_of(runs: Sequence[Trained], name: str) -> float:
    return statistics.mean(line.get(name, 0.0) for one in runs for line in one.metrics)


def machine_fields(machine: Machine) -> dict[str, float]:
    return {"step_s": machine.step_s, "token_s": machine.token_s, "sync_s": machine.sync_s}


def line(result: dict[str, Any]) -> str:
    return (
        f"{result['setting']:<13} {result['tokens_per_s']:7.1f} trained tokens/s,"
        f" {result['ratio']:5.2f} times; the learner waits {result['bubble_share']:4.0%};"
        f" staleness {result['staleness_mean']:.2f}, at most {result['staleness_max']};"
        f" predicted {result['predicted_tokens_per_s']:7.1f} ({result['prediction_error']:+.0%},"
        f" one run's spread {result['predicted_spread']:.0%}),"
        f" waiting {result['predicted_bubble_share']:4.0%}"
    )


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

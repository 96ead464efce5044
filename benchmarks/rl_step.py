"""Episodes a second of a GRPO step, rollouts and update, beside TRL's own `environment_factory` path.

Both begin from one policy after a brief cold start on one domain and play the same tasks in the same groups,
by the same text and tokens, with the same limits, optimizer and loss settings. Theirs is TRL's trainer over
transformers' DeepseekV32ForCausalLM with the policy's weights, in the fastest implementation of attention and
experts, which a trial chooses; tools are methods that TRL calls in this process. Ours is the loop of
`worldsmith train`: replicas as Ray actors, each on one thread, and the learner. Both may use every core.

A step is timed from the end of the one before it; the first of each run, which warms up, is left out.

Run as a module: `python -m benchmarks.rl_step`. Theirs and ours run in turn in each round; medians over all
steps. The last line of --json is one JSON object.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from transformers import PrinterCallback
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from benchmarks.model import as_transformers, fastest_of_theirs, generate_theirs, train_step
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
from benchmarks.trl_environment import dataset_row, rewards, wire_tokenizer, world_of
from policies.model.decoder import WorldsmithForCausalLM
from policies.tokenizer import TextCodec, load_tokenizer
from rl.cold_start import make_rl_optimizer
from rl.groups import requests_of_step
from rl.learner import AfterStep, make_args
from rl.ray_session import ray_session
from rl.run import Run
from rl.train import cold_start
from rl.transcript import prompt_text
from synthesis.general import DOMAINS

TRIAL_SHAPE = (96, 8, 160)
"""Tokens of a prompt, sampled ones, and of a row to train on, in the trial of implementations."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """tokens: sampled, an episode. reward: the mean."""

    seconds: float
    tokens: float
    reward: float


def main(argv: list[str]) -> int:
    args = parse(argv)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    warnings.filterwarnings("ignore", module="transformers")
    warnings.filterwarnings("ignore", message="You are using 'environment_factory'")
    transformers.utils.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as scratch, ray_session(args.workers):
        base = cold_started(args.start or Path(scratch) / "start", quick=args.quick, domain=args.domain)
        run = with_settings(base, rl=rl_settings(args), rollout={"workers": args.workers})
        model = cold_start(run, TextCodec(load_tokenizer(run.out / "policy")))
        torch.set_num_threads(args.threads)
        implementation = choose_implementation(model, args)
        theirs: list[Step] = []
        ours: list[Step] = []
        with replicas(run, threads=args.threads) as workers:
            for number in range(args.rounds):
                theirs += their_steps(run, model, implementation, Path(scratch) / f"trl-{number}", args)
                say(f"round {number + 1}: TRL {theirs[-1].seconds:.2f} s a step")
                trained = train_copy(run, Path(scratch) / f"ours-{number}", workers, threads=args.threads)
                ours += steps_of(trained)
                say(f"round {number + 1}: ours {ours[-1].seconds:.2f} s a step")
    result = summary(args, implementation, theirs, ours)
    for name in ("theirs", "ours"):
        side = result[name]
        print(
            f"{name:<6} {side['episodes_per_s']:7.2f} episodes/s, {side['seconds']:.2f} s a step of"
            f" {args.groups * GROUP_SIZE} episodes; {side['tokens']:.1f} sampled tokens an episode,"
            f" mean reward {side['reward']:.2f}"
        )
    print(f"{result['ratio']:.2f} times")
    if args.json:
        print(json.dumps(result))
    return 0


def parse(argv: list[str]) -> argparse.Namespace:
    cores = os.cpu_count() or 1
    parser = parser_of(__doc__, rounds=3, groups=16)
    parser.add_argument("--domain", choices=tuple(DOMAINS), default="trip", help="default: trip")
    parser.add_argument("--steps", type=int, default=3, help="timed steps of a run (default: 3)")
    parser.add_argument("--rows", type=int, default=64, help="episodes in a forward of the learners")
    parser.add_argument("--workers", type=int, default=cores, help="our replicas (default: the cores)")
    parser.add_argument("--threads", type=int, default=cores, help="of TRL and of our learner (all cores)")
    args = parser.parse_args(argv)
    if args.quick:
        args.rounds, args.steps, args.groups, args.rows, args.workers = 1, 1, 2, 8, 0
    if min(args.rounds, args.steps, args.groups, args.rows, args.threads) < 1 or args.workers < 0:
        parser.error("--rounds, --steps, --groups, --rows and --threads are at least 1")
    if args.groups * GROUP_SIZE % args.rows:
        parser.error(f"--rows must divide the step's {args.groups * GROUP_SIZE} episodes")
    return args


def rl_settings(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "steps": args.steps + 1,
        "groups_per_step": args.groups,
        "groups_trained": args.groups,
        "rows_per_micro_batch": args.rows,
    }


def choose_implementation(model: WorldsmithForCausalLM, args: argparse.Namespace) -> str:
    """The implementation in which transformers' model samples and learns fastest."""
    theirs = as_transformers(model)
    prompt, new, length = TRIAL_SHAPE
    vocab = model.config.vocab_size
    prompts = torch.randint(0, vocab, (args.groups * GROUP_SIZE, prompt))
    rows = torch.randint(0, vocab, (args.rows, length))

    def trial() -> None:
        generate_theirs(theirs, prompts, new)
        train_step(theirs, rows, torch.float32)

    return fastest_of_theirs(theirs, trial, time.perf_counter)


def their_steps(
    run: Run, model: WorldsmithForCausalLM, implementation: str, out: Path, args: argparse.Namespace
) -> list[Step]:
    """TRL's trainer from the model's weights; its first step left out."""
    torch.set_num_threads(args.threads)
    theirs = as_transformers(model)
    stops = TextCodec(load_tokenizer(run.out / "policy")).stop_ids
    theirs.generation_config.eos_token_id = sorted(stops)  # a turn ends where ours does, after its calls
    attention, experts = implementation.split("+")
    theirs.set_attn_implementation(attention)
    theirs.set_experts_implementation(experts)
    for name, parameter in theirs.named_parameters():
        parameter.requires_grad_(".indexer." not in name)
    marks: list[tuple[float, float, float]] = []

    def mark() -> None:
        metrics = trainer._metrics["train"]
        marks.append((time.monotonic(), metrics["completions/mean_length"][-1], metrics["reward"][-1]))

    trainer = GRPOTrainer(
        model=theirs,
        reward_funcs=rewards,
        args=trl_args(run, out, args),
        train_dataset=Dataset.from_list(rows_of(run, args.steps + 1)),
        processing_class=wire_tokenizer(run.out / "policy"),
        environment_factory=world_of(run.data.tasks),
        optimizers=(make_rl_optimizer(theirs, run.config.rl.learning_rate), None),
        callbacks=[AfterStep(mark)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return [Step(seconds=end[0] - start[0], tokens=end[1], reward=end[2]) for start, end in pairwise(marks)]


def trl_args(run: Run, out: Path, args: argparse.Namespace) -> GRPOConfig:
    """Our learner's settings of TRL, and the limits of our rollouts."""
    rollout = run.config.rollout
    known = make_args(
        out,
        rows_per_step=args.groups * GROUP_SIZE,
        rows_per_micro_batch=args.rows,
        group_size=GROUP_SIZE,
        learning_rate=run.config.rl.learning_rate,
        num_steps=args.steps + 1,
        temperature=rollout.temperature,
    )
    codec = TextCodec(load_tokenizer(run.out / "policy"))
    tasks = [playable.task for playable in run.data.tasks]
    longest = max(len(codec.encode(prompt_text(task.prompt, task.tools))) for task in tasks)
    known.max_completion_length = rollout.max_length - longest
    known.max_tool_calling_iterations = max(task.max_turns for task in tasks) - 1
    known.generation_kwargs = {"max_new_tokens": rollout.max_new_tokens, "use_cache": True}
    return known


def rows_of(run: Run, steps: int) -> list[dict[str, Any]]:
    """TRL's dataset: the tasks of our groups, in their order."""
    groups = [request for step in range(steps) for request in requests_of_step(run, step)[::GROUP_SIZE]]
    return [dataset_row(group.task_index, run.data.tasks[group.task_index]) for group in groups]


def steps_of(trained: Trained) -> list[Step]:
    """Ours, the first left out."""
    return [
        Step(
            seconds=seconds,
            tokens=line["response_tokens_mean"],
            reward=line["reward_mean"],
        )
        for seconds, line in zip(trained.seconds[1:], trained.metrics[1:], strict=True)
    ]


def summary(
    args: argparse.Namespace, implementation: str, theirs: list[Step], ours: list[Step]
) -> dict[str, Any]:
    sides: dict[str, Any] = {}
    for name, steps in (("theirs", theirs), ("ours", ours)):
        seconds = statistics.median(step.seconds for step in steps)
        sides[name] = {
            "seconds": seconds,
            "episodes_per_s": args.groups * GROUP_SIZE / seconds,
            "tokens": statistics.mean(step.tokens for step in steps),
            "reward": statistics.mean(step.reward for step in steps),
            "seconds_of_steps": [step.seconds for step in steps],
        }
    return {
        "domain": args.domain,
        "groups": args.groups,
        "group_size": GROUP_SIZE,
        "workers": args.workers,
        "threads": args.threads,
        "their_implementation": implementation,
        **sides,
        "ratio": sides["ours"]["episodes_per_s"] / sides["theirs"]["episodes_per_s"],
    }


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

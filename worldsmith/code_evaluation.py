"""Evaluation of code tasks: in boxes of one tier, attacked before the first episode, on Ray actors."""

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from envs.sandbox import docker_engine
from envs.sandbox.choose import choose_sandbox
from envs.sandbox.probes import probe
from rl.box_worker import BoxPlayers, play_in_boxes
from rl.endpoint import PREFIX, EndpointConfig
from rl.evaluate import Row, requests_for
from rl.ray_session import ray_session
from worldsmith.corpora import code_tasks
from worldsmith.journal import Journal
from worldsmith.progress import Progress


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """What `eval` is about to play. `play` gives the episodes' rows and their lines to read."""

    tier: str
    num_tasks: int
    play: Callable[[Progress, Journal], tuple[list[Row], list[str]]]
    facts: dict[str, Any] = field(default_factory=dict)
    """Goes into the summary."""


def endpoint_config(args: argparse.Namespace) -> EndpointConfig:
    return EndpointConfig(policy=args.policy, temperature=args.temperature, max_tokens=args.max_tokens)


def code_evaluation(args: argparse.Namespace) -> Evaluation:
    """Checks tasks, policy and boxes; nothing is played yet. Raises ValueError, SandboxUnavailableError."""
    tasks = code_tasks(args.tasks, limit=args.limit)
    chosen = choose_sandbox(args.sandbox or "auto", log=lambda line: print(line, file=sys.stderr))
    served = args.policy.startswith(PREFIX)
    at_once = args.at_once if served else len(os.sched_getaffinity(0))
    players = BoxPlayers(
        tier=chosen.tier,
        policy=args.policy,
        workers=args.workers,
        threads=max(1, at_once // args.workers),
        honeypots=args.honeypots,
        endpoint=endpoint_config(args) if served else None,
    )

    def play(progress: Progress, journal: Journal) -> tuple[list[Row], list[str]]:
        engine = docker_engine.engine_version() if chosen.tier == "docker" else ""
        boxes = probe(
            lambda limits: choose_sandbox(chosen.tier, limits, log=lambda line: None).make(),
            tier=chosen.tier,
            engine=engine or chosen.why,
        )
        requests = requests_for([task.task_id for task in tasks], samples=args.samples, seed=args.seed)
        done = journal.done
        missing = [r for r in requests if (tasks[r.task_index].task_id, r.sample) not in done]
        with ray_session(args.workers):
            rows = play_in_boxes(players, tasks, missing)
            return journal.take(rows, progress.advance, boxes=boxes, order=lambda key: key)

    return Evaluation(tier=chosen.tier, num_tasks=len(tasks), play=play)

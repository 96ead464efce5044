"""Rollouts by Ray actors: each holds a replica and the tasks, and plays what it is given.

The actor is a shell around `RolloutWorker`, which tests and small runs use without Ray. An actor that dies
is started again with the last weights, and its episodes are played again; after `MAX_ATTEMPTS` they carry no
reward.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray.exceptions import RayActorError, RayTaskError

from envs.outcome import Cause
from policies.engine import Engine, Sampling
from policies.model.checkpoint import load_model
from policies.tokenizer import TextCodec, load_tokenizer
from policies.weights import PublishedWeights, verified_state
from rl.rollout import Player
from rl.trajectory import PlayableTask, PlayRequest, Trajectory

MAX_ATTEMPTS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplicaConfig:
    """policy: a directory with a model and its tokenizer. threads: of one worker.
    honeypots: bait in every episode. record_selected: whether trajectories hold what attention selected.
    """

    policy: str
    slots: int
    max_length: int
    threads: int = 1
    honeypots: bool = False
    record_selected: bool = False


class RolloutWorker:
    """One replica in this process."""

    def __init__(self, config: ReplicaConfig, tasks: Sequence[PlayableTask]) -> None:
        torch.set_num_threads(config.threads)
        codec = TextCodec(load_tokenizer(Path(config.policy)))
        engine = Engine(
            load_model(config.policy),
            num_slots=config.slots,
            max_length=config.max_length,
            stop_token_ids=codec.stop_ids,
            record_selected=config.record_selected,
        )
        self._player = Player(engine=engine, codec=codec, tasks=tasks, honeypots=config.honeypots)

    def load(self, published: PublishedWeights) -> int:
        """Takes weights after checking every tensor; returns the version now served."""
        self._player.engine.load_weights(verified_state(published), version=published.version)
        return published.version

    def play(self, requests: Sequence[PlayRequest], sampling: Sampling) -> list[Trajectory]:
        return list(self.play_each(requests, sampling))

    def play_each(self, requests: Sequence[PlayRequest], sampling: Sampling) -> Iterator[Trajectory]:
        """The trajectories as they end."""
        return self._player.play(requests, sampling)


class Workers:
    """Several rollout actors that share the work of a step."""

    def __init__(self, config: ReplicaConfig, tasks: Sequence[PlayableTask], num_workers: int) -> None:
        self._config = config
        self._tasks = list(tasks)
        self._tasks_ref = ray.put(self._tasks)
        self._weights_ref: ray.ObjectRef | None = None
        self._actors: list[Any] = [self._start() for _ in range(num_workers)]

    def _start(self) -> Any:
        actor: Any = ray.remote(num_cpus=1)(RolloutWorker)
        actor = actor.remote(self._config, self._tasks_ref)
        if self._weights_ref is not None:
            actor.load.remote(self._weights_ref)
        return actor

    def load(self, published: PublishedWeights) -> None:
        """Every replica takes the weights and says so. Raises when one holds another version afterwards."""
        self._weights_ref = ray.put(published)
        for index, actor in enumerate(self._actors):
            try:
                served = ray.get(actor.load.remote(self._weights_ref))
            except RayActorError:
                self._actors[index] = self._start()
                continue
            if served != published.version:
                raise RuntimeError(f"replica {index} serves weights {served}, not {published.version}")

    def play(self, requests: Sequence[PlayRequest], sampling: Sampling) -> list[Trajectory]:
        """One trajectory a request, in the requests' order; whole groups go to one worker, which reads a
        prompt once.
        """
        done: dict[tuple[int, int], Trajectory] = {}
        open_requests = list(requests)
        for attempt in range(MAX_ATTEMPTS):
            shares = _shares(open_requests, len(self._actors))
            handles = [
                actor.play.remote(share, sampling) for actor, share in zip(self._actors, shares, strict=True)
            ]
            open_requests = []
            for index, (handle, share) in enumerate(zip(handles, shares, strict=True)):
                try:
                    trajectories: list[Trajectory] = ray.get(handle)
                except RayTaskError:
                    raise  # a fault of our own code: playing it again would fail again
                except RayActorError:
                    self._actors[index] = self._start()
                    open_requests += [replace(r, attempt=attempt + 1) for r in share]
                    continue
                done |= {(t.group, t.sample): t for t in trajectories}
            if not open_requests:
                break
        done |= {(r.group, r.sample): self._lost(r) for r in open_requests}
        return [done[request.group, request.sample] for request in requests]

    def _lost(self, request: PlayRequest) -> Trajectory:
        task = self._tasks[request.task_index].task
        return Trajectory(
            task_id=task.task_id,
            domain=task.domain,
            level=task.level,
            group=request.group,
            sample=request.sample,
            attempt=request.attempt,
            seed=request.seed,
            token_ids=(0, 0),
            num_prompt_tokens=1,
            sampled=(False, False),
            logps=(0.0, 0.0),
            routes=np.zeros((2, 0, 1), dtype=np.uint8),
            versions=(-1, -1),
            reward=None,
            cause=Cause.REPLICA_FAILED,
            verdict=None,
            messages=(),
            num_turns=0,
            seconds_environment=0.0,
        )

    def close(self) -> None:
        for actor in self._actors:
            ray.kill(actor)


def _shares(requests: Sequence[PlayRequest], num_workers: int) -> list[list[PlayRequest]]:
    groups: defaultdict[int, list[PlayRequest]] = defaultdict(list)
    for request in requests:
        groups[request.group].append(request)
    shares: list[list[PlayRequest]] = [[] for _ in range(num_workers)]
    for index, members in enumerate(groups.values()):
        shares[index % num_workers] += members
    return shares

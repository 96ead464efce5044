"""Rollouts by Ray actors: each holds a replica and the tasks, and plays what it is given.

The actor is a shell around `RolloutWorker`, which tests and small runs use without Ray. An actor that dies
is started again with the last weights, and its episodes are played again; after `MAX_ATTEMPTS` they carry no
reward. `play` plays to the end; `advance` plays for a while, so that episodes go on beside the learner.
"""

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
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
from policies.weights import PublishedWeights, load_published
from rl.latency import Latency
from rl.rollout import Player
from rl.trajectory import PlayableTask, PlayRequest, Trajectory

MAX_ATTEMPTS = 3
HANG_S = 300.0
"""An actor that does not answer for so long is killed and its episodes are played again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplicaConfig:
    """policy: a directory with a model and its tokenizer. threads: of one worker.
    honeypots: bait in every episode. record_selected: whether trajectories hold what attention selected.
    boxes: threads for tools, beside the engine; 0: tools answer between its steps.
    recompute: whether running episodes read everything again when new weights arrive.
    dtype: float32 or bfloat16, what the engine computes in.
    """

    policy: str
    slots: int
    max_length: int
    threads: int = 1
    honeypots: bool = False
    record_selected: bool = False
    boxes: int = 0
    latency: Latency = field(default_factory=Latency)
    recompute: bool = False
    dtype: str = "float32"


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """What a while of playing came to. version: of the weights that the replica now holds."""

    version: int
    ended: list[Trajectory]


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
            recompute=config.recompute,
            dtype=getattr(torch, config.dtype),
        )
        self._engine = engine
        self._player = Player(
            engine=engine,
            codec=codec,
            tasks=tasks,
            honeypots=config.honeypots,
            tools=ThreadPoolExecutor(config.boxes) if config.boxes else None,
            latency=config.latency,
        )

    def load(self, published: PublishedWeights) -> int:
        """Takes weights and proves that they are served; returns the version now served."""
        load_published(self._engine, published)
        return published.version

    def advance(
        self,
        requests: Sequence[PlayRequest],
        sampling: Sampling,
        published: PublishedWeights | None,
        seconds: float,
    ) -> Progress:
        """Takes weights, if any, then begins these episodes and plays all open ones for about so long."""
        if published is not None:
            self.load(published)
        for request in requests:
            self._player.open(request, sampling)
        ended: list[Trajectory] = []
        until = time.monotonic() + seconds
        while self._player.num_open and time.monotonic() < until:
            ended += self._player.step()
        return Progress(version=self._engine.version, ended=ended)

    def play(self, requests: Sequence[PlayRequest], sampling: Sampling) -> list[Trajectory]:
        return list(self.play_each(requests, sampling))

    def play_each(self, requests: Sequence[PlayRequest], sampling: Sampling) -> Iterator[Trajectory]:
        """The trajectories as they end."""
        return self._player.play(requests, sampling)


class InProcess:
    """One worker in the learner's own process, without Ray. The interface is that of `Workers`."""

    def __init__(self, config: ReplicaConfig, tasks: Sequence[PlayableTask]) -> None:
        self._worker = RolloutWorker(replace(config, threads=torch.get_num_threads()), tasks)

    def load(self, published: PublishedWeights) -> None:
        self._worker.load(published)

    def play(self, requests: Sequence[PlayRequest], sampling: Sampling) -> list[Trajectory]:
        done = {(t.group, t.sample): t for t in self._worker.play_each(requests, sampling)}
        return [done[request.group, request.sample] for request in requests]

    def close(self) -> None:
        return


class Workers:
    """Several rollout actors that share the work of a step."""

    def __init__(self, config: ReplicaConfig, tasks: Sequence[PlayableTask], num_workers: int) -> None:
        self._config = config
        self._tasks = list(tasks)
        self._tasks_ref = ray.put(self._tasks)
        self._weights_ref: ray.ObjectRef | None = None
        self.actors: list[Any] = [self.start() for _ in range(num_workers)]

    def start(self) -> Any:
        """A new actor, which holds the last weights before it does anything else."""
        actor: Any = ray.remote(num_cpus=1)(RolloutWorker)
        actor = actor.remote(self._config, self._tasks_ref)
        if self._weights_ref is not None:
            actor.load.remote(self._weights_ref)
        return actor

    def put(self, published: PublishedWeights) -> Any:
        """A reference to the weights for `RolloutWorker.advance`; actors begin with them from now on."""
        self._weights_ref = ray.put(published)
        return self._weights_ref

    def load(self, published: PublishedWeights) -> None:
        """Every replica takes the weights and says so. Raises when one holds another version afterwards."""
        self._weights_ref = ray.put(published)
        for index, actor in enumerate(self.actors):
            try:
                served = ray.get(actor.load.remote(self._weights_ref))
            except RayActorError:
                self.actors[index] = self.start()
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
            shares = _shares(open_requests, len(self.actors))
            handles = [
                actor.play.remote(share, sampling) for actor, share in zip(self.actors, shares, strict=True)
            ]
            open_requests = []
            for index, (handle, share) in enumerate(zip(handles, shares, strict=True)):
                try:
                    trajectories: list[Trajectory] = ray.get(handle)
                except RayTaskError:
                    raise  # a fault of our own code: playing it again would fail again
                except RayActorError:
                    self.actors[index] = self.start()
                    open_requests += [replace(r, attempt=attempt + 1) for r in share]
                    continue
                done |= {(t.group, t.sample): t for t in trajectories}
            if not open_requests:
                break
        done |= {(r.group, r.sample): self.lost(r) for r in open_requests}
        return [done[request.group, request.sample] for request in requests]

    def lost(self, request: PlayRequest) -> Trajectory:
        """What stands for an episode that was lost too often: it carries no reward."""
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
        for actor in self.actors:
            ray.kill(actor)


def _shares(requests: Sequence[PlayRequest], num_workers: int) -> list[list[PlayRequest]]:
    groups: defaultdict[int, list[PlayRequest]] = defaultdict(list)
    for request in requests:
        groups[request.group].append(request)
    shares: list[list[PlayRequest]] = [[] for _ in range(num_workers)]
    for index, members in enumerate(groups.values()):
        shares[index % num_workers] += members
    return shares


class ActorSeats:
    """`rl.rollouts.Actors` over Ray: each seat an actor of `workers`, with at most one call at a time."""

    def __init__(self, workers: Workers, sampling: Sampling) -> None:
        self._workers = workers
        self._sampling = sampling
        self._known = list(workers.actors)
        self._held = [-1] * len(workers.actors)
        self._calls: dict[Any, tuple[int, float]] = {}
        self._gone: list[int] = []
        self._weights: tuple[int, Any] = (-1, None)

    def publish(self, published: PublishedWeights) -> None:
        self._weights = (published.version, self._workers.put(published))

    def call(self, seat: int, requests: Sequence[PlayRequest], seconds: float) -> None:
        actor = self._workers.actors[seat]
        if actor is not self._known[seat]:  # it died in other work
            self._known[seat], self._held[seat] = actor, -1
            self._gone.append(seat)
            return
        version, weights = self._weights
        fresh = weights if self._held[seat] != version else None
        self._held[seat] = version
        handle = actor.advance.remote(list(requests), self._sampling, fresh, seconds)
        self._calls[handle] = (seat, time.monotonic())

    def wait(self, timeout_s: float) -> list[tuple[int, Progress | None]]:
        over: list[tuple[int, Progress | None]] = [(seat, None) for seat in self._gone]
        self._gone = []
        if not self._calls:
            return over
        ready, _ = ray.wait(list(self._calls), num_returns=1, timeout=0 if over else timeout_s)
        for handle in ready:
            seat, _ = self._calls.pop(handle)
            try:
                over.append((seat, ray.get(handle)))
            except RayTaskError:
                raise  # a fault of our own code: playing it again would fail again
            except RayActorError:
                over.append((seat, self._replaced(seat)))
        for handle, (seat, since) in list(self._calls.items()):
            if time.monotonic() - since > HANG_S:
                del self._calls[handle]
                ray.kill(self._known[seat])
                over.append((seat, self._replaced(seat)))
        return over

    def lost(self, request: PlayRequest) -> Trajectory:
        return self._workers.lost(request)

    def _replaced(self, seat: int) -> None:
        self._workers.actors[seat] = self._known[seat] = self._workers.start()
        self._held[seat] = -1

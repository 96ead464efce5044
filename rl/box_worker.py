"""Plays tasks of the code family in pooled boxes, by scripted agents or a served model, on mortal Ray actors.

Each actor holds one pool of its node: boxes of agents are reset with proof and used again, boxes that grade
are new every time. An episode whose actor or box is lost is played again, from its beginning and by the same
seed; every request gives exactly one row.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError

from envs.agents import Agent, NullAgent, PlanAgent, play_agent
from envs.families.code import CodeTask, gold_plan
from envs.families.code_episode import CodeEnv
from envs.outcome import Cause
from envs.sandbox.choose import choose_sandbox
from envs.sandbox.contract import SandboxError
from envs.sandbox.leases import reap_files
from envs.sandbox.pool import BoxPool, PoolConfig
from rl.endpoint import EndpointConfig, Failures, endpoint_row, play_served
from rl.evaluate import Row, scripted_row
from rl.trajectory import PlayRequest

MAX_ATTEMPTS = 12
"""Of one episode; an actor that dies takes all of its episodes along, guilty or not."""
ENDPOINT_ATTEMPTS = 3
NO_BOX_PAUSE_S = 1.0
AGENTS: dict[str, Callable[[CodeTask], Agent]] = {
    "oracle": lambda task: PlanAgent(gold_plan(task)),
    "null": lambda task: NullAgent(),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class BoxPlayers:
    """How episodes are played. `workers` actors, each with a pool of its own and `threads` episodes at once;
    honeypots: bait in every episode.
    """

    tier: str
    policy: str
    workers: int = 1
    threads: int = 2
    honeypots: bool = False
    endpoint: EndpointConfig | None = None
    """The served model that plays instead of an agent called `policy`."""

    def __post_init__(self) -> None:
        if self.endpoint is None and self.policy not in AGENTS:
            raise ValueError(
                f"code tasks are played by {', '.join(AGENTS)} or openai:URL#MODEL, got {self.policy!r}"
            )
        if self.workers < 1 or self.threads < 1:
            raise ValueError(f"workers and threads must be at least 1, got {self.workers} and {self.threads}")

    @property
    def attempts(self) -> int:
        """At one episode. An endpoint has been asked again by its client already."""
        return MAX_ATTEMPTS if self.endpoint is None else ENDPOINT_ATTEMPTS


class BoxWorker:
    """One node's player. Any number of threads may call `play`; `close` ends its boxes."""

    def __init__(self, players: BoxPlayers, tasks: Sequence[CodeTask]) -> None:
        self._players = players
        self._tasks = tasks
        reap_files()  # boxes of an actor that was killed end by themselves; this sweeps up after them
        make = choose_sandbox(players.tier, log=lambda line: None).make
        self._agents = BoxPool(make, PoolConfig(warm=1))
        self._graders = BoxPool(make, PoolConfig(warm=2, max_uses=1))
        self._client = players.endpoint.client() if players.endpoint is not None else None

    def play(self, request: PlayRequest) -> Row:
        task = self._tasks[request.task_index]
        env = CodeEnv(
            task,
            self._agents.acquire,
            make_grader_box=self._graders.acquire,
            honeypots=self._players.honeypots,
        )
        try:
            with closing(env):
                if self._client is not None:
                    return endpoint_row(request, task, play_served(env, self._client, seed=request.seed))
                result, messages = play_agent(env, AGENTS[self._players.policy](task))
        except SandboxError:  # no box could be had: nothing was played
            time.sleep(NO_BOX_PAUSE_S)
            return scripted_row(request, task, None, (), cause=Cause.SANDBOX_LOST)
        return scripted_row(request, task, result, messages)

    def close(self) -> None:
        self._agents.close()
        self._graders.close()


@dataclass(eq=False, slots=True)
class _Slot:
    """One of `workers` places for an actor, and what it plays now."""

    actor: Any
    playing: dict[Any, PlayRequest]


def play_in_boxes(
    players: BoxPlayers, tasks: Sequence[CodeTask], requests: Sequence[PlayRequest]
) -> Iterator[Row]:
    """One row for each request, as they end. Ray runs already.

    Raises EndpointError where the endpoint fails time after time.
    """
    failures = Failures()
    remote: Any = ray.remote
    worker = remote(num_cpus=0, max_concurrency=players.threads + 1, scheduling_strategy="SPREAD")(BoxWorker)
    held = ray.put(list(tasks))

    def start() -> Any:
        return worker.remote(players, held)

    slots = [_Slot(actor=start(), playing={}) for _ in range(players.workers)]
    waiting = list(reversed(requests))
    try:
        while waiting or any(slot.playing for slot in slots):
            for slot in slots:
                while waiting and len(slot.playing) < players.threads:
                    request = waiting.pop()
                    slot.playing[slot.actor.play.remote(request)] = request
            ready, _ = ray.wait([ref for slot in slots for ref in slot.playing], num_returns=1)
            slot = next(slot for slot in slots if ready[0] in slot.playing)
            request = slot.playing.pop(ready[0])
            try:
                row = ray.get(ready[0])
            except RayActorError:
                lost = [request, *slot.playing.values()]
                slot.actor, slot.playing = start(), {}
                yield from _again(lost, waiting, tasks)
                continue
            failures.note(row["reason"] if row["cause"] == Cause.REPLICA_FAILED else "")
            if Cause(row["cause"]).is_infrastructure and request.attempt + 1 < players.attempts:
                waiting.append(replace(request, attempt=request.attempt + 1))
            else:
                yield row
    finally:
        for slot in slots:
            _end(slot.actor)


def _again(
    lost: Sequence[PlayRequest], waiting: list[PlayRequest], tasks: Sequence[CodeTask]
) -> Iterator[Row]:
    """Puts lost episodes back in front; those that were lost too often become rows without a reward."""
    for request in lost:
        if request.attempt + 1 < MAX_ATTEMPTS:
            waiting.append(replace(request, attempt=request.attempt + 1))
        else:
            yield scripted_row(request, tasks[request.task_index], None, (), cause=Cause.REPLICA_FAILED)


def _end(actor: Any) -> None:
    """Lets the actor end its boxes, for a while; then kills it, and boxes end with their owner."""
    with suppress(RayActorError, GetTimeoutError):
        ray.get(actor.close.remote(), timeout=20)
    ray.kill(actor)

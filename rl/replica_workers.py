"""Rollouts over vLLM replicas: one player in this process, the engines in Ray actors."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from policies.model.sampling import Sampling
from policies.replicas import ReplicaPool, vllm_config
from policies.tokenizer import load_codec, load_tokenizer
from policies.vllm_packages import HOW_TO_INSTALL, has_vllm
from policies.weights import PublishedWeights
from rl.config import RolloutSection
from rl.rollout import Player
from rl.rollout_worker import InProcess, ReplicaConfig, Workers
from rl.trajectory import PlayableTask, PlayRequest, Trajectory

FOREIGN_MAX_LENGTH = 8192
"""Tokens of a context of a model that is not ours."""


class ReplicaWorkers:
    """`num_replicas` vLLM engines and one player."""

    def __init__(self, config: ReplicaConfig, tasks: Sequence[PlayableTask], num_replicas: int) -> None:
        codec = load_codec(Path(config.policy))
        self.pool = ReplicaPool(
            vllm_config(
                config.policy,
                slots=config.slots,
                max_length=config.max_length,
                threads=config.threads,
                record_selected=config.record_selected,
            ),
            num_replicas=num_replicas,
            stop_token_ids=codec.stop_ids,
            gpus=1 if torch.cuda.is_available() else 0,
        )
        self._player = Player(engine=self.pool, codec=codec, tasks=tasks, honeypots=config.honeypots)

    def load(self, published: PublishedWeights) -> None:
        """Raises WeightsMismatchError when a replica does not serve what was published."""
        self.pool.load(published)

    def play(self, requests: Sequence[PlayRequest], sampling: Sampling) -> list[Trajectory]:
        """One trajectory a request, in the requests' order."""
        done = {(t.group, t.sample): t for t in self.play_each(requests, sampling)}
        return [done[request.group, request.sample] for request in requests]

    def play_each(self, requests: Sequence[PlayRequest], sampling: Sampling) -> Iterator[Trajectory]:
        """The trajectories as they end."""
        return self._player.play(requests, sampling)

    def close(self) -> None:
        self.pool.shutdown()


def replica_config(rollout: RolloutSection, policy: Path) -> ReplicaConfig:
    """A replica of the policy in that directory, as a run's configuration wants it."""
    return ReplicaConfig(
        policy=str(policy),
        slots=rollout.slots,
        max_length=rollout.max_length,
        threads=rollout.threads,
        record_selected=rollout.keep_selection,
        boxes=rollout.boxes,
        latency=rollout.tool_latency,
        recompute=rollout.in_flight == "recompute",
        dtype=rollout.dtype,
    )


def check_engine(engine: str) -> None:
    """Raises ValueError when `rollout.engine` cannot serve here."""
    if engine == "vllm" and not has_vllm():
        raise ValueError(f"rollout.engine: vllm: {HOW_TO_INSTALL}")


def check_served(config: ReplicaConfig) -> ReplicaConfig:
    """The replica as vLLM can serve it: other tokenizers need more tokens for a prompt than ours.

    Raises ValueError without vLLM, or for a directory that is no model with a tokenizer.
    """
    if not has_vllm():
        raise ValueError(HOW_TO_INSTALL)
    served = vllm_config(config.policy, slots=config.slots, max_length=config.max_length)
    load_tokenizer(Path(config.policy))
    return config if served.ours else replace(config, max_length=max(config.max_length, FOREIGN_MAX_LENGTH))


AnyWorkers = Workers | InProcess | ReplicaWorkers
"""What plays a run's episodes."""


def start_players(
    engine: str, config: ReplicaConfig, tasks: Sequence[PlayableTask], num_workers: int
) -> AnyWorkers:
    """engine: in_process or vllm, as `rollout.engine`."""
    check_engine(engine)
    if engine == "vllm":
        return ReplicaWorkers(config, tasks, num_workers)
    return Workers(config, tasks, num_workers) if num_workers else InProcess(config, tasks)

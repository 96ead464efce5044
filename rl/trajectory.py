"""What a rollout leaves behind: the exact tokens, who wrote them, at which odds, by which experts, and how
it ended.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

import numpy as np

from envs.outcome import Bait, Cause
from envs.sandbox.contract import Capabilities
from envs.task import Message, Task
from envs.verifier import Verdict

TRAJECTORY_VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Trajectory:
    """One episode of T tokens, prompt included. Groups are the trajectories of equal `group`.

    token_ids: exactly the ids that were read and sampled; nothing is ever rendered again.
    sampled: True where the policy wrote the token. logps: nats, as the replica sampled it; 0.0 elsewhere.
    routes: [T, L, K], the experts of each token in the L mixture layers, 255 where the token was never read.
    versions: the weights version that sampled, or read, each token; -1 where neither.
    reward: None when the episode could not be measured; it then takes no part in training or in a score.
    tool_seconds: the environment's part of each turn, whose sum is `seconds_environment`.
    baits: the bait that it touched; any makes it a suspected hack.
    kept_sets: per token, the ids that it was drawn from where top-p or top-k cut some off, else empty.
    selected: [T, L, K], the positions that each token attended to in each layer; None: not recorded.
    """

    task_id: str
    domain: str
    level: int
    group: int
    sample: int
    attempt: int
    seed: int
    token_ids: tuple[int, ...]
    num_prompt_tokens: int
    sampled: tuple[bool, ...]
    logps: tuple[float, ...]
    routes: np.ndarray
    versions: tuple[int, ...]
    reward: float | None
    cause: Cause
    verdict: Verdict | None
    messages: tuple[Message, ...]
    num_turns: int
    seconds_environment: float
    tool_seconds: tuple[float, ...] = ()
    baits: tuple[Bait, ...] = ()
    kept_sets: tuple[Sequence[int], ...] = ()
    selected: np.ndarray | None = None

    @property
    def num_sampled(self) -> int:
        return sum(self.sampled)

    @property
    def turn_tokens(self) -> list[int]:
        """How many tokens the policy wrote in each turn."""
        return [sum(run) for wrote, run in groupby(self.sampled) if wrote]


@dataclass(frozen=True, kw_only=True, slots=True)
class PlayableTask:
    """A task with its world's bytes."""

    task: Task
    image: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class PlayRequest:
    """One episode to play. `task_index` points into the corpus that every worker holds."""

    task_index: int
    group: int
    sample: int
    attempt: int
    seed: int


def transcript_row(trajectory: Trajectory, *, when: str) -> dict[str, Any]:
    """A line of `trajectories/*.jsonl`: the episode to read, without token-level data."""
    return {
        "version": TRAJECTORY_VERSION,
        "when": when,
        "task_id": trajectory.task_id,
        "family": "general",
        "domain": trajectory.domain,
        "level": trajectory.level,
        "sample": trajectory.sample,
        "seed": trajectory.seed,
        "reward": trajectory.reward,
        "cause": str(trajectory.cause),
        **hack_label(trajectory.baits),
        "tokens": len(trajectory.token_ids),
        "messages": [_readable(message) for message in trajectory.messages],
        "verdict": asdict(trajectory.verdict) if trajectory.verdict else None,
    }


def scripted_line(row: dict[str, Any], *, when: str) -> str:
    """The same line for an episode that a scripted agent played."""
    fields = {key: value for key, value in row.items() if key != "messages"}
    messages = [_readable(message) for message in row["messages"]]
    return transcript_line({"version": TRAJECTORY_VERSION, "when": when, **fields, "messages": messages})


def _readable(message: Message) -> dict[str, Any]:
    calls = [{"name": call.tool, "arguments": call.arguments} for call in message.tool_calls]
    return {"role": message.role, "content": message.content, "tool_calls": calls}


def hack_label(baits: Sequence[Bait]) -> dict[str, Any]:
    """What a row says of bait: the label, and as text what was touched."""
    return {"suspected_hack": bool(baits), "baits": ", ".join(baits)}


def episode_row(trajectory: Trajectory, *, when: str, boxes: Capabilities) -> dict[str, Any]:
    """A row of `episodes/*.parquet`; `boxes` is what was shown of the boxes that it was played in."""
    return {
        "when": when,
        "task_id": trajectory.task_id,
        "domain": trajectory.domain,
        "level": trajectory.level,
        "sample": trajectory.sample,
        "attempt": trajectory.attempt,
        "seed": trajectory.seed,
        "reward": trajectory.reward,
        "cause": str(trajectory.cause),
        "reason": trajectory.verdict.reason if trajectory.verdict else "",
        **hack_label(trajectory.baits),
        "tokens": len(trajectory.token_ids),
        "sampled_tokens": trajectory.num_sampled,
        "turns": trajectory.num_turns,
        "seconds_environment": trajectory.seconds_environment,
        "turn_tokens": trajectory.turn_tokens,
        "tool_seconds": list(trajectory.tool_seconds),
        "weights_version": max(trajectory.versions, default=-1),
        "tier": boxes.tier,
        "capabilities": boxes.digest,
    }


def transcript_line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, sort_keys=True)

"""Trajectories as one file: tensors by safetensors, the rest as JSON in its header; nothing is lost.

For what a checkpoint keeps of the buffer and for what `worldsmith explain` scores again.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from envs.outcome import Bait, Cause
from envs.task import Call, Message
from envs.verifier import Verdict
from rl.trajectory import TRAJECTORY_VERSION, Trajectory

_PLAIN = (
    "task_id", "domain", "level", "group", "sample", "attempt", "seed", "num_prompt_tokens", "reward",
    "num_turns", "seconds_environment",
)  # fmt: skip
"""Fields that JSON holds as they are."""


def pack(trajectories: Sequence[Trajectory]) -> bytes:
    rows = [_row(trajectory) for trajectory in trajectories]
    tensors: dict[str, np.ndarray] = {}
    for index, trajectory in enumerate(trajectories):
        tensors |= {f"{index}.{name}": array for name, array in _arrays(trajectory).items()}
    header = {"version": str(TRAJECTORY_VERSION), "rows": json.dumps(rows, ensure_ascii=False)}
    return save(tensors or {"empty": np.zeros(1, np.uint8)}, metadata=header)


def unpack(content: bytes, *, where: str) -> list[Trajectory]:
    """What `pack` packed. Raises ValueError when it is damaged or of another version."""
    try:
        tensors = load(content)
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size])["__metadata__"]
        if header["version"] != str(TRAJECTORY_VERSION):
            raise ValueError(
                f"{where}: trajectories of version {header['version']}, not {TRAJECTORY_VERSION}"
            )
        rows = json.loads(header["rows"])
        return [_trajectory(row, index, tensors) for index, row in enumerate(rows)]
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"{where}: no readable trajectories: {error}") from None


def _row(trajectory: Trajectory) -> dict[str, Any]:
    return {
        **{name: getattr(trajectory, name) for name in _PLAIN},
        "cause": str(trajectory.cause),
        "verdict": asdict(trajectory.verdict) if trajectory.verdict else None,
        "messages": [asdict(message) for message in trajectory.messages],
        "baits": [str(bait) for bait in trajectory.baits],
        "tool_seconds": list(trajectory.tool_seconds),
    }


def _arrays(trajectory: Trajectory) -> dict[str, np.ndarray]:
    arrays = {
        "token_ids": np.array(trajectory.token_ids, np.int32),
        "sampled": np.array(trajectory.sampled, np.uint8),
        "logps": np.array(trajectory.logps, np.float64),
        "versions": np.array(trajectory.versions, np.int32),
        "routes": np.ascontiguousarray(trajectory.routes),
        "kept_sizes": np.array([len(kept) for kept in trajectory.kept_sets], np.int32),
        "kept_ids": np.array([token for kept in trajectory.kept_sets for token in kept], np.int32),
    }
    if trajectory.selected is not None:
        arrays["selected"] = np.ascontiguousarray(trajectory.selected)
    return arrays


def _trajectory(row: dict[str, Any], index: int, tensors: dict[str, np.ndarray]) -> Trajectory:
    kept_ids = tensors[f"{index}.kept_ids"].tolist()
    ends = np.cumsum(tensors[f"{index}.kept_sizes"]).tolist()
    return Trajectory(
        **{name: row[name] for name in _PLAIN},
        token_ids=tuple(tensors[f"{index}.token_ids"].tolist()),
        sampled=tuple(bool(wrote) for wrote in tensors[f"{index}.sampled"]),
        logps=tuple(tensors[f"{index}.logps"].tolist()),
        versions=tuple(tensors[f"{index}.versions"].tolist()),
        routes=tensors[f"{index}.routes"],
        kept_sets=tuple(kept_ids[start:end] for start, end in zip([0, *ends], ends, strict=False)),
        selected=tensors.get(f"{index}.selected"),
        cause=Cause(row["cause"]),
        verdict=_verdict(row["verdict"]) if row["verdict"] else None,
        messages=tuple(_message(fields) for fields in row["messages"]),
        baits=tuple(Bait(bait) for bait in row["baits"]),
        tool_seconds=tuple(row["tool_seconds"]),
    )


def _message(fields: dict[str, Any]) -> Message:
    calls = tuple(Call(**call) for call in fields["tool_calls"])
    return Message(role=fields["role"], content=fields["content"], tool_calls=calls)


def _verdict(fields: dict[str, Any]) -> Verdict:
    parts = {name: value for name, value in fields.items() if name != "faults"}
    return Verdict(**parts, faults=tuple(fields["faults"]))

"""Keep Routing: what a rollout recorded, in the form that the trainer's forward takes.

A record holds, per token, the experts used in each mixture layer. The trainer forces them: gate weights come
from the live router's scores of those experts, so the router still learns, and a policy compared with itself
has ratio 1. Tokens without a record (the last sampled one, or text from elsewhere) are routed live.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

LIVE = -1
"""In a route tensor: let the router choose."""


def route_dtype(num_experts: int) -> np.dtype:
    """The smallest type that holds every expert and, as its largest value, "not recorded"."""
    return np.dtype(np.uint8) if num_experts <= np.iinfo(np.uint8).max else np.dtype(np.uint16)


def missing_route(dtype: np.dtype) -> int:
    return int(np.iinfo(dtype).max)


def pad_routes(records: Sequence[np.ndarray | None], *, num_columns: int, offsets: Sequence[int]) -> Tensor:
    """Records [T, L, K] of B sequences as `routes` [B, S, L, K] int64, LIVE wherever nothing was recorded.

    Args:
        records: one a sequence; None routes all of it live. At least one must be given.
        num_columns: S, the padded length of the trainer's batch.
        offsets: the column at which each sequence begins (not 0 where prompts are padded on the left).
    """
    shapes = {record.shape[1:] for record in records if record is not None}
    if len(shapes) != 1:
        raise ValueError(f"route records must share one [layers, top_k] shape, got {sorted(shapes)}")
    routes = torch.full((len(records), num_columns, *shapes.pop()), LIVE, dtype=torch.long)
    for row, (record, offset) in enumerate(zip(records, offsets, strict=True)):
        if record is None:
            continue
        if offset < 0 or offset + len(record) > num_columns:
            raise ValueError(
                f"sequence {row}: {len(record)} routed tokens at column {offset} exceed {num_columns} columns"
            )
        values = torch.from_numpy(record.astype(np.int64))
        values[values == missing_route(record.dtype)] = LIVE
        routes[row, offset : offset + len(record)] = values
    return routes


def record_routes(routes_SLK: Tensor, num_experts: int) -> np.ndarray:
    """One sequence's `DecoderOutput.routes` [S, L, K] as a record, padding as "not recorded"."""
    dtype = route_dtype(num_experts)
    values = routes_SLK.cpu().numpy().astype(np.int64)
    values[values < 0] = missing_route(dtype)
    return values.astype(dtype)


def changed_share(recorded: np.ndarray, live: np.ndarray) -> float:
    """The share of recorded choices that the live router would not make; order in a token is ignored."""
    known = recorded != missing_route(recorded.dtype)
    if not known.any():
        return 0.0
    same = (recorded[..., :, None] == live[..., None, :]).any(-1)
    return float((known & ~same).sum() / known.sum())

"""What a rollout recorded, in the form that the trainer's forward takes: three ways to keep a choice.

Keep Routing: per token, the experts used in each mixture layer. The trainer forces them: gate weights come
from the live router's scores of those experts, so the router still learns, and a policy compared with itself
has ratio 1. Keep Selection: per token, the positions that sparse attention chose in each layer. Keep Sampling
Mask: per sampled token, the ids that survived top-p and top-k; the trainer renormalises over them. Tokens
without a record (the last sampled one, or text from elsewhere) choose live.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

LIVE = -1
"""In a tensor of routes, selections or kept sets: no record here, or no further entry."""


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
    return _pad(records, num_columns, offsets, shapes.pop())


def pad_selected(records: Sequence[np.ndarray | None], *, num_columns: int, offsets: Sequence[int]) -> Tensor:
    """Records [T, L, K] of B sequences as `selected` [B, S, L, K] int64, as `pad_routes`; K may differ."""
    layers = {record.shape[1] for record in records if record is not None}
    if len(layers) != 1:
        raise ValueError(f"selection records must share one number of layers, got {sorted(layers)}")
    width = max(record.shape[2] for record in records if record is not None)
    return _pad(records, num_columns, offsets, (layers.pop(), width))


def _pad(
    records: Sequence[np.ndarray | None], num_columns: int, offsets: Sequence[int], shape: tuple[int, ...]
) -> Tensor:
    padded = torch.full((len(records), num_columns, *shape), LIVE, dtype=torch.long)
    for row, (record, offset) in enumerate(zip(records, offsets, strict=True)):
        if record is None:
            continue
        if offset < 0 or offset + len(record) > num_columns:
            raise ValueError(
                f"sequence {row}: {len(record)} recorded tokens at column {offset} exceed"
                f" {num_columns} columns"
            )
        values = torch.from_numpy(record.astype(np.int64))
        values[values == missing_route(record.dtype)] = LIVE
        padded[row, offset : offset + len(record), ..., : record.shape[-1]] = values
    return padded


def record_routes(routes_SLK: Tensor, num_experts: int) -> np.ndarray:
    """One sequence's `DecoderOutput.routes` [S, L, K] as a record, padding as "not recorded"."""
    dtype = route_dtype(num_experts)
    values = routes_SLK.cpu().numpy().astype(np.int64)
    values[values < 0] = missing_route(dtype)
    return values.astype(dtype)


def record_selected(selected_SLK: Tensor) -> np.ndarray:
    """One sequence's `DecoderOutput.selected` [S, L, K] as a record: uint16, its largest value for none."""
    values = selected_SLK.cpu().numpy().astype(np.int64)
    dtype = np.dtype(np.uint16) if values.max(initial=0) < np.iinfo(np.uint16).max else np.dtype(np.uint32)
    values[values < 0] = missing_route(dtype)
    return values.astype(dtype)


def join_selected(parts: Sequence[np.ndarray], num_tokens: int) -> np.ndarray:
    """Records [t, L, K] of a sequence's successive reads as one [T, L, K] of T = `num_tokens`.

    What was read later may have chosen among more; what was never read has no record.
    """
    if not parts:
        return np.zeros((num_tokens, 0, 1), np.uint16)
    dtype = np.result_type(*parts)
    width = max(part.shape[2] for part in parts)
    joined = np.full((num_tokens, parts[0].shape[1], width), missing_route(dtype), dtype)
    start = 0
    for part in parts:
        values = part.astype(dtype)
        values[part == missing_route(part.dtype)] = missing_route(dtype)
        joined[start : start + len(part), :, : part.shape[2]] = values
        start += len(part)
    return joined


def pad_kept_sets(
    records: Sequence[Sequence[Sequence[int]]], *, num_columns: int, offsets: Sequence[int]
) -> Tensor:
    """Kept sets of B sequences, one a token, as [B, S, C] int64; LIVE beyond a set's end."""
    widest = max((len(kept) for record in records for kept in record), default=0)
    padded = torch.full((len(records), num_columns, max(widest, 1)), LIVE, dtype=torch.long)
    for row, (record, offset) in enumerate(zip(records, offsets, strict=True)):
        if offset < 0 or offset + len(record) > num_columns:
            raise ValueError(
                f"sequence {row}: {len(record)} kept sets at column {offset} exceed {num_columns} columns"
            )
        for place, kept in enumerate(record):
            padded[row, offset + place, : len(kept)] = torch.tensor(kept, dtype=torch.long)
    return padded


def restrict_logits(logits_BSV: Tensor, kept_BSC: Tensor) -> Tensor:
    """-inf outside each kept set; a place without one stays whole. Raises ValueError for ids not in V.

    The logits that predict a token are those of the column before it: pass `logits[:, :-1]`, `kept[:, 1:]`.
    """
    vocab = logits_BSV.shape[-1]
    if kept_BSC.numel() and int(kept_BSC.max()) >= vocab:
        raise ValueError(f"a kept set names token {int(kept_BSC.max())}, outside the vocabulary of {vocab}")
    # One column more than there are tokens takes the places that mean none.
    columns = torch.where(kept_BSC < 0, vocab, kept_BSC).long()
    kept = columns.new_zeros(*logits_BSV.shape[:-1], vocab + 1, dtype=torch.bool)
    kept = kept.scatter_(-1, columns, True)[..., :vocab]
    return logits_BSV.masked_fill(~(kept | ~kept.any(-1, keepdim=True)), float("-inf"))


def changed_share(recorded: np.ndarray, live: np.ndarray) -> float:
    """The share of recorded choices that the live router would not make; order in a token is ignored."""
    known = recorded != missing_route(recorded.dtype)
    if not known.any():
        return 0.0
    same = (recorded[..., :, None] == live[..., None, :]).any(-1)
    return float((known & ~same).sum() / known.sum())

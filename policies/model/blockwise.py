"""Sparse attention and the indexer's loss in blocks of rows, forward and backward, for training and prefill.

Plain autograd would walk several [B, H, T, T] tensors from memory. Here a block of query rows, small enough
for the cache, goes from index scores to selection, attention and loss in one visit; keys after the block are
never touched, and rows that see no more than k tokens skip the indexer. The selection has no gradient; the
indexer's is known as soon as its loss is, so the forward pass computes it and the backward pass scales it.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from policies.model.indexer import sum_heads
from policies.model.selectors import NEVER, PositionScores, select_topk

BLOCK_ROWS = 64
BLOCK_FLOATS = 1 << 19
"""A block takes as many sequences as keep its attention matrices within so many floats."""
KEPT_FLOATS = 1 << 26
"""Up to so many probabilities a layer are kept for the backward pass; beyond, it computes them again."""
_DROPPED = 1e30


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionPlan:
    """How one layer attends. `top_k` is None where every earlier token is kept."""

    scale: float
    top_k: int | None
    position_scores: PositionScores | None = None
    """None: the indexer chooses."""
    indexer_loss: str = "none"
    lengths: list[int] | None = None
    """Real tokens of each sequence, None when all are full; what lies behind them is 0 or arbitrary."""
    row_weights: Tensor | None = None
    """The weight of each query row in the indexer's loss; needed when that is asked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexParts:
    """The indexer's queries [B, Hi, T, I], keys [B, T, I] and head weights [B, Hi, T, 1]."""

    queries: Tensor
    keys: Tensor
    weights: Tensor


def block_attention(
    q: Tensor, k: Tensor, v: Tensor, index: IndexParts, plan: AttentionPlan
) -> tuple[Tensor, Tensor]:
    """Attention of [B, H, T, D] queries and keys and [B, H, T, V] values: [B, H, T, V]; the indexer's loss.

    The loss is the sum over rows of weight x KL, 0 where it was not asked for. Its gradient reaches `index`
    alone, that of the attention q, k and v alone.
    """
    return _BlockAttention.apply(plan, q, k, v, index.queries, index.keys, index.weights)


@dataclass(eq=False, kw_only=True, slots=True)
class _Block:
    """Rows first..last of sequences `rows`, and the keys up to `last`."""

    rows: slice
    first: int
    last: int
    num_rows: int
    chosen: Tensor | None = field(default=None)
    probs: Tensor | None = field(default=None)


def _blocks(num_heads: int, lengths: list[int]) -> Iterator[_Block]:
    num_rows, length = len(lengths), max(lengths)
    count = max(1, BLOCK_FLOATS // (num_heads * min(BLOCK_ROWS, length) * length))
    for row in range(0, num_rows, count):
        stop = min(row + count, num_rows)
        longest = max(lengths[row:stop])
        for first in range(0, longest, BLOCK_ROWS):
            last = min(first + BLOCK_ROWS, longest)
            yield _Block(rows=slice(row, stop), first=first, last=last, num_rows=stop - row)


class _BlockAttention(torch.autograd.Function):
    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)
    def forward(ctx: Any, plan: AttentionPlan, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = tensors[:3]
        num_rows, heads, length, _ = q.shape
        index = IndexParts(queries=tensors[3], keys=tensors[4], weights=tensors[5])
        gradient = None
        if plan.indexer_loss != "none" and any(ctx.needs_input_grad[4:]):
            d_queries, d_keys, d_weights = (torch.zeros_like(part) for part in tensors[3:])
            gradient = IndexParts(queries=d_queries, keys=d_keys, weights=d_weights)
        out = v.new_zeros(num_rows, heads, length, v.shape[-1])
        total = q.new_zeros(())
        keep = any(ctx.needs_input_grad[1:4]) and num_rows * heads * length * length // 2 <= KEPT_FLOATS
        blocks = []
        for block in _blocks(heads, plan.lengths or [length] * num_rows):
            products, scores = _index(block, index, plan)
            if plan.top_k is not None and block.last > plan.top_k:
                assert scores is not None
                block.chosen = select_topk(scores, plan.top_k)
            probs = _softmax(block, _logits(block, q, k, plan), block.chosen)
            torch.matmul(
                probs, v[block.rows, :, : block.last], out=out[block.rows, :, block.first : block.last]
            )
            if products is not None and scores is not None and plan.indexer_loss != "none":
                chosen, target = block.chosen, probs
                if plan.indexer_loss == "dense" and chosen is not None:
                    chosen, target = None, _softmax(block, _logits(block, q, k, plan), None)
                total += _indexer_loss(block, (products, scores, target, chosen), index, plan, gradient)
            block.probs = probs if keep else None
            blocks.append(block)
        ctx.plan, ctx.blocks, ctx.gradient = plan, blocks, gradient
        ctx.save_for_backward(q, k, v)
        ctx.set_materialize_grads(False)
        return out, total

    @staticmethod
    @once_differentiable
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        d_out, d_total = grads
        d_index: tuple[Tensor | None, ...] = (None, None, None)
        if ctx.gradient is not None and d_total is not None:
            parts = (ctx.gradient.queries, ctx.gradient.keys, ctx.gradient.weights)
            d_index = tuple(part * d_total for part in parts)
        if d_out is None:
            return None, None, None, None, *d_index
        q, k, v = ctx.saved_tensors
        plan: AttentionPlan = ctx.plan
        # Gradients of keys and values are summed transposed: otherwise their products run half as fast.
        d_q, d_kt, d_vt = torch.zeros_like(q), _transposed_zeros(k), _transposed_zeros(v)
        for block in ctx.blocks:
            rows, seen = slice(block.first, block.last), slice(0, block.last)
            queries, d_mixed = q[block.rows, :, rows].flatten(0, 1), d_out[block.rows, :, rows].flatten(0, 1)
            probs = block.probs
            if probs is None:
                probs = _softmax(block, _logits(block, q, k, plan), block.chosen)
            probs = probs.flatten(0, 1)
            d_probs = torch.bmm(d_mixed, v[block.rows, :, seen].flatten(0, 1).transpose(1, 2))
            d_vt[block.rows, ..., seen].flatten(0, 1).baddbmm_(d_mixed.transpose(1, 2), probs)
            d_logits = torch.ops.aten._softmax_backward_data(d_probs, probs, -1, probs.dtype)
            d_kt[block.rows, ..., seen].flatten(0, 1).baddbmm_(
                queries.transpose(1, 2), d_logits, alpha=plan.scale
            )
            keys = k[block.rows, :, seen].flatten(0, 1)
            d_queries = torch.baddbmm(q.new_empty(()), d_logits, keys, beta=0, alpha=plan.scale)
            d_q[block.rows, :, rows] = d_queries.view_as(q[block.rows, :, rows])
        return None, d_q, d_kt.transpose(2, 3), d_vt.transpose(2, 3), *d_index


def _transposed_zeros(x: Tensor) -> Tensor:
    """[B, H, D, T] for [B, H, T, D]."""
    return x.new_zeros(*x.shape[:2], x.shape[3], x.shape[2])


def _add(target: Tensor, values: Tensor) -> None:
    target += values.view(target.shape)


@functools.lru_cache(maxsize=8)
def _future(size: int, device: torch.device) -> Tensor:
    """[R, R] float32 to add: in the block's own columns, -inf at the keys after the query."""
    return torch.full((size, size), NEVER, device=device).triu(1)


def _logits(block: _Block, q: Tensor, k: Tensor, plan: AttentionPlan) -> Tensor:
    """[b, H, R, S] scaled products, not masked."""
    queries = q[block.rows, :, block.first : block.last].flatten(0, 1)
    keys = k[block.rows, :, : block.last].flatten(0, 1)
    products = torch.baddbmm(q.new_empty(()), queries, keys.transpose(1, 2), beta=0, alpha=plan.scale)
    return products.view(block.num_rows, q.shape[1], *products.shape[1:])


def _softmax(block: _Block, logits: Tensor, chosen: Tensor | None) -> Tensor:
    """Probabilities over the chosen keys, or over all earlier ones; `logits` is spent."""
    if chosen is None:
        logits[..., block.first :] += _future(block.last - block.first, logits.device)
    else:
        # 0 where chosen, else so low that its exponential is exactly 0: adding beats filling by a mask.
        logits += chosen.to(logits.dtype).sub_(1.0).mul_(_DROPPED)[:, None]
    return logits.softmax(-1)


def _index(block: _Block, index: IndexParts, plan: AttentionPlan) -> tuple[Tensor | None, Tensor | None]:
    """Rectified products [b, Hi, R, S] and scores [b, R, S], -inf at later keys; None where not needed."""
    selects = plan.top_k is not None and block.last > plan.top_k
    products = scores = None
    if plan.indexer_loss != "none" or (selects and plan.position_scores is None):
        queries = index.queries[block.rows, :, block.first : block.last]
        keys = index.keys[block.rows, : block.last]
        heads = queries.shape[1]
        products = torch.bmm(queries.flatten(1, 2), keys.transpose(1, 2)).relu_()
        products = products.view(block.num_rows, heads, -1, block.last)
        weights = index.weights[block.rows, :, block.first : block.last]
        scores = sum_heads(products, weights)
    elif selects:
        assert plan.position_scores is not None
        places = torch.arange(block.last, device=index.keys.device)
        scores = plan.position_scores(places[block.first :, None], places).repeat(block.num_rows, 1, 1)
    if scores is not None:
        scores[..., block.first :] += _future(block.last - block.first, scores.device)
    return products, scores


def _indexer_loss(
    block: _Block,
    values: tuple[Tensor, Tensor, Tensor, Tensor | None],
    index: IndexParts,
    plan: AttentionPlan,
    gradient: IndexParts | None,
) -> Tensor:
    """The block's weighted divergence; adds its gradient to `gradient`: over I it is softmax(I) - target."""
    products, scores, probs, chosen = values
    assert plan.row_weights is not None
    row_weights = plan.row_weights[block.rows, block.first : block.last, None]
    target = probs.mean(1)
    if chosen is not None:
        scores = scores.masked_fill(~chosen, NEVER)
    log_guess = scores.log_softmax(-1)
    guess = log_guess.exp()
    # 0 x -inf where a key is not allowed: both target and guess are exactly 0 there.
    terms = torch.xlogy(target, target) - target * log_guess.clamp_(min=torch.finfo(log_guess.dtype).min)
    loss = (terms.sum(-1, keepdim=True) * row_weights).sum()
    if gradient is None:
        return loss
    rows, seen = slice(block.first, block.last), slice(0, block.last)
    d_scores = guess.sub_(target).mul_(row_weights)
    weights = index.weights[block.rows, :, rows]
    gradient.weights[block.rows, :, rows] = (products * d_scores[:, None]).sum(-1, keepdim=True)
    d_products = torch.ops.aten.threshold_backward(d_scores[:, None] * weights, products, 0).flatten(1, 2)
    queries = index.queries[block.rows, :, rows]
    d_queries = torch.bmm(d_products, index.keys[block.rows, seen])
    gradient.queries[block.rows, :, rows] = d_queries.view(queries.shape)
    _add(gradient.keys[block.rows, seen], torch.bmm(d_products.transpose(1, 2), queries.flatten(1, 2)))
    return loss

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

from policies.model.hashing import bucket_codes, bucket_votes, planes
from policies.model.indexer import sum_heads
from policies.model.selectors import NEVER, Selection, select_topk

BLOCK_ROWS = 64
BLOCK_FLOATS = 1 << 19
"""A block takes as many sequences as keep its attention matrices within so many floats."""
KEPT_FLOATS = 1 << 26
"""Up to so many probabilities a layer are kept for the backward pass; beyond, it computes them again."""
_DROPPED = 1e30


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionPlan:
    """How one layer attends."""

    scale: float
    selection: Selection
    forced: Tensor | None = None
    """[B, T, K] places to attend to instead, -1 for none; a row of nothing but -1 chooses for itself."""
    record: bool = False
    """Whether to return what was chosen."""
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
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Attention of [B, H, T, D] queries and keys and [B, H, T, V] values: [B, H, T, V]; the indexer's loss;
    when the plan asks for them the places attended to, [B, T, K] int32, in order and -1 for none.

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
    def forward(ctx: Any, plan: AttentionPlan, *tensors: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
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
        record = _empty_record(plan, q) if plan.record else None
        for block in _blocks(heads, plan.lengths or [length] * num_rows):
            view = _View(block, (q, k), index, plan)
            block.chosen = _choose(view, plan)
            if record is not None:
                _record(block, record)
            probs = _softmax(block, _logits(block, q, k, plan), block.chosen)
            torch.matmul(
                probs, v[block.rows, :, : block.last], out=out[block.rows, :, block.first : block.last]
            )
            if plan.indexer_loss != "none":
                chosen, target = block.chosen, probs
                if plan.indexer_loss == "dense" and chosen is not None:
                    chosen, target = None, _softmax(block, _logits(block, q, k, plan), None)
                total += _indexer_loss(view, target, chosen, gradient)
            block.probs = probs if keep else None
            blocks.append(block)
        ctx.plan, ctx.blocks, ctx.gradient = plan, blocks, gradient
        ctx.save_for_backward(q, k, v)
        ctx.set_materialize_grads(False)
        if record is not None:
            ctx.mark_non_differentiable(record)
        return out, total, record

    @staticmethod
    @once_differentiable
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        d_out, d_total = grads[:2]
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
    # In place: a fresh tensor of this size costs more than the softmax, as its pages are new to the process.
    return torch.softmax(logits, -1, out=logits)


class _View:
    """A block as a selector sees it; index scores are computed once, and are -inf at later keys."""

    def __init__(
        self, block: _Block, attention: tuple[Tensor, Tensor], index: IndexParts, plan: AttentionPlan
    ) -> None:
        self.block, self.attention, self.index, self.plan = block, attention, index, plan
        self.rows = slice(block.first, block.last)

    @property
    def key_pos(self) -> Tensor:
        return torch.arange(self.block.last, device=self.index.keys.device)

    @property
    def query_pos(self) -> Tensor:
        return self.key_pos[self.block.first :, None]

    @functools.cached_property
    def queries(self) -> Tensor:
        return self.index.queries[self.block.rows, :, self.rows]

    @functools.cached_property
    def keys(self) -> Tensor:
        return self.index.keys[self.block.rows, : self.block.last]

    @functools.cached_property
    def weights(self) -> Tensor:
        return self.index.weights[self.block.rows, :, self.rows]

    @functools.cached_property
    def scored(self) -> tuple[Tensor, Tensor]:
        """Rectified products [b, Hi, R, S] and the scores [b, R, S]."""
        products = torch.bmm(self.queries.flatten(1, 2), self.keys.transpose(1, 2)).relu_()
        products = products.view(self.block.num_rows, self.queries.shape[1], -1, self.block.last)
        scores = sum_heads(products, self.weights)
        self.hide_later(scores)
        return products, scores

    def hide_later(self, scores: Tensor) -> None:
        first, last = self.block.first, self.block.last
        scores[..., first:] += _future(last - first, scores.device)

    def index_scores(self, among: Tensor | None = None) -> Tensor:
        return self.scored[1]

    def attention_mass(self) -> Tensor:
        q, k = self.attention
        return _softmax(self.block, _logits(self.block, q, k, self.plan), None).sum(1)

    def hash_votes(self) -> Tensor:
        how = self.plan.selection
        cuts = planes(how.seed, self.keys.shape[-1], how.tables, how.bits)
        query_codes = bucket_codes(self.queries, cuts, how.bits)
        key_codes = bucket_codes(self.keys, cuts, how.bits)
        return bucket_votes(query_codes, self.weights.squeeze(-1), key_codes, how.bits)


def _choose(view: _View, plan: AttentionPlan) -> Tensor | None:
    """[b, R, S] bool, which keys the block's rows attend to; None: all earlier ones."""
    block, how = view.block, plan.selection
    forced = None if plan.forced is None else plan.forced[block.rows, block.first : block.last]
    live = None if forced is None else (forced < 0).all(-1, keepdim=True)
    chosen = None
    if how.selector is not None and block.last > how.top_k and (live is None or bool(live.any())):
        scores = how.selector(view, how)
        if scores.ndim == 2:  # by position alone: the same for every sequence
            scores = scores.repeat(block.num_rows, 1, 1)
        view.hide_later(scores)
        chosen = select_topk(scores, how.top_k)
    if forced is None or live is None:
        return chosen
    if chosen is None:
        chosen = view.key_pos <= view.query_pos
    # One column more than there are keys takes the places that mean none.
    columns = torch.where(forced < 0, block.last, forced).long()
    mask = columns.new_zeros(*forced.shape[:2], block.last + 1, dtype=torch.bool)
    return torch.where(live, chosen, mask.scatter_(2, columns, True)[..., :-1])


def _empty_record(plan: AttentionPlan, q: Tensor) -> Tensor:
    num_rows, _, length, _ = q.shape
    width = length if plan.selection.selector is None else min(plan.selection.top_k, length)
    if plan.forced is not None:
        width = max(width, plan.forced.shape[-1])
    return torch.full((num_rows, length, width), -1, dtype=torch.int32, device=q.device)


def _record(block: _Block, record: Tensor) -> None:
    """Write the places that the block's rows attend to."""
    target = record[block.rows, block.first : block.last]
    chosen = block.chosen
    if chosen is None:
        ones = torch.ones(target.shape[1], block.last, dtype=torch.bool, device=record.device)
        chosen = ones.tril(block.first).expand(block.num_rows, -1, -1)
    sequence, row, place = chosen.nonzero(as_tuple=True)
    rank = chosen.cumsum(-1, dtype=torch.int32)[sequence, row, place] - 1
    target[sequence, row, rank.long()] = place.to(record.dtype)


def _indexer_loss(view: _View, probs: Tensor, chosen: Tensor | None, gradient: IndexParts | None) -> Tensor:
    """The block's weighted divergence; adds its gradient to `gradient`: over I it is softmax(I) - target."""
    block, plan = view.block, view.plan
    products, scores = view.scored
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
    gradient.weights[block.rows, :, rows] = (products * d_scores[:, None]).sum(-1, keepdim=True)
    d_products = torch.ops.aten.threshold_backward(d_scores[:, None] * view.weights, products, 0).flatten(
        1, 2
    )
    d_queries = torch.bmm(d_products, view.keys)
    gradient.queries[block.rows, :, rows] = d_queries.view(view.queries.shape)
    _add(gradient.keys[block.rows, seen], torch.bmm(d_products.transpose(1, 2), view.queries.flatten(1, 2)))
    return loss

"""From the projections of packed tokens to rows of heads with their rotary positions.

What autograd would do with slices and concatenations, a copy each way, is here one walk over memory forward
and one back. Rotary pairs lie side by side, so that turning them is one complex product.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from policies.model.packing import PackedBatch


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadShape:
    num_heads: int
    nope: int
    rope: int
    value: int


def head_rows(
    q: Tensor, kv: Tensor, k_rope: Tensor, shape: HeadShape, batch: PackedBatch, turns: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys [B, H, T, nope + rope] and values [B, H, T, V], float32 at least.

    Args:
        q: [N, H * (nope + rope)].
        kv: [N, H * (nope + V)], each head's key before its value.
        k_rope: [N, rope], which all heads share.
        turns: [T, rope / 2] complex, what each place's pairs are multiplied with.
    """
    return _HeadRows.apply(q, kv, k_rope, shape, batch, turns)


class _HeadRows(torch.autograd.Function):
    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu")
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        q, kv, k_rope, shape, batch, turns = inputs
        ctx.shape, ctx.batch, ctx.turns, ctx.dtype = shape, batch, turns, q.dtype
        dtype = torch.promote_types(q.dtype, torch.float32)
        nope = shape.nope
        q_rows, kv_rows, k_rope_rows = (_padded(x, batch) for x in (q, kv, k_rope))
        rows = (batch.num_rows, shape.num_heads, batch.length)
        queries = q.new_empty(*rows, nope + shape.rope, dtype=dtype)
        queries.copy_(q_rows.unflatten(-1, (shape.num_heads, -1)).transpose(1, 2))
        _turn(queries[..., nope:], turns)
        heads = kv_rows.unflatten(-1, (shape.num_heads, -1)).transpose(1, 2)
        keys = torch.empty_like(queries)
        keys[..., :nope].copy_(heads[..., :nope])
        keys[..., nope:].copy_(_turn(k_rope_rows.to(dtype, copy=True), turns)[:, None])
        values = q.new_empty(*rows, shape.value, dtype=dtype)
        values.copy_(heads[..., nope:])
        return queries, keys, values

    @staticmethod
    @once_differentiable
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        shape, batch, nope = ctx.shape, ctx.batch, ctx.shape.nope
        d_queries, d_keys, d_values = grads
        back = ctx.turns.conj().resolve_conj()
        rows = (batch.num_rows, batch.length, shape.num_heads)
        d_q = d_queries.new_empty(*rows, nope + shape.rope)
        d_q.copy_(d_queries.transpose(1, 2))
        _turn(d_q[..., nope:], back[:, None])
        d_kv = d_keys.new_empty(*rows, nope + shape.value)
        d_kv[..., :nope].copy_(d_keys[..., :nope].transpose(1, 2))
        d_kv[..., nope:].copy_(d_values.transpose(1, 2))
        d_k_rope = _turn(d_keys[..., nope:].sum(1), back)
        packed = (batch.to_packed(x.flatten(2)).to(ctx.dtype) for x in (d_q, d_kv, d_k_rope))
        return *packed, None, None, None


def _padded(x: Tensor, batch: PackedBatch) -> Tensor:
    """[N, X] to [B, T, X]."""
    if batch.pad_index is not None:
        x = x.index_select(0, batch.pad_index)
    return x.view(batch.num_rows, batch.length, -1)


def _turn(x: Tensor, turns: Tensor) -> Tensor:
    """Multiplies the pairs of the last dimension in place, where its layout allows; gives the result."""
    pairs = x.unflatten(-1, (-1, 2))
    if all(stride % 2 == 0 for stride in pairs.stride()[:-1]) and x.storage_offset() % 2 == 0:
        torch.view_as_complex(pairs).mul_(turns)
    else:
        x.copy_(torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * turns).flatten(-2))
    return x

"""SwiGLU layers as autograd functions: one dense, one over experts.

Plain autograd walks tensors of megabytes once per operation. Here a block of rows goes through the whole
layer while it is in cache, and the backward pass recomputes the cheap part.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

BLOCK_ROWS = 2048


def swiglu(x_ND: Tensor, gate_FD: Tensor, up_FD: Tensor, down_DF: Tensor) -> Tensor:
    """down(silu(gate(x)) * up(x)) for [N, D]."""
    return functional.linear(
        functional.silu(functional.linear(x_ND, gate_FD)) * functional.linear(x_ND, up_FD), down_DF
    )


def grouped_swiglu(
    x_ND: Tensor, experts_NK: Tensor, gates_NK: Tensor, gate_up: Tensor, down: Tensor
) -> Tensor:
    """Sum over a token's K experts of gate x expert(x).

    Args:
        gate_up: [E, 2F, D], gate rows then up rows.
        down: [E, D, F].
    """
    return _GroupedSwiglu.apply(x_ND, experts_NK, gates_NK, gate_up, down)


class _GroupedSwiglu(torch.autograd.Function):
    """Tokens sorted by expert, then one product per expert that has tokens."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)
    def forward(ctx: Any, x: Tensor, experts: Tensor, gates: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        num_chosen = experts.shape[1]
        chosen = experts.flatten()
        order = chosen.argsort(stable=True)
        counts = torch.bincount(chosen, minlength=gate_up.shape[0]).tolist()
        tokens = order // num_chosen
        sorted_gates = gates.flatten()[order].to(x.dtype)
        inner = x.new_empty(len(order), gate_up.shape[1])
        out_sorted = x.new_empty(len(order), x.shape[1])
        for expert, rows in _blocks(counts):
            hidden = x.index_select(0, tokens[rows])
            torch.mm(hidden, gate_up[expert].t(), out=inner[rows])
            gate, up = inner[rows].chunk(2, dim=-1)
            weighted = functional.silu(gate).mul_(up).mul_(sorted_gates[rows, None])
            torch.mm(weighted, down[expert].t(), out=out_sorted[rows])
        inverse = torch.empty_like(order)
        inverse[order] = torch.arange(len(order), device=order.device)
        ctx.save_for_backward(x, tokens, inverse, sorted_gates, inner, gate_up, down)
        ctx.counts = counts
        ctx.num_chosen = num_chosen
        return _sum_over_experts(out_sorted, inverse, num_chosen)

    @staticmethod
    @once_differentiable
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, tokens, inverse, sorted_gates, inner, gate_up, down = ctx.saved_tensors
        d_gate_up, d_down = torch.zeros_like(gate_up), torch.zeros_like(down)
        d_sorted = x.new_empty(len(tokens), x.shape[1])
        d_gates = torch.empty_like(sorted_gates)
        for expert, rows in _blocks(ctx.counts):
            hidden = x.index_select(0, tokens[rows])
            d_out = grads[0].index_select(0, tokens[rows])
            gate, up = inner[rows].chunk(2, dim=-1)
            silu = functional.silu(gate)
            act = silu * up
            weight = sorted_gates[rows, None]
            d_down[expert].addmm_(d_out.t(), act * weight)
            d_act = d_out @ down[expert]
            d_gates[rows] = (act.mul_(d_act)).sum(-1)
            d_act *= weight
            d_inner = torch.empty_like(inner[rows])
            width = d_act.shape[1]
            torch.mul(d_act, silu, out=d_inner[:, width:])
            d_inner[:, :width] = torch.ops.aten.silu_backward(d_act.mul_(up), gate)
            torch.mm(d_inner, gate_up[expert], out=d_sorted[rows])
            d_gate_up[expert].addmm_(d_inner.t(), hidden)
        d_x = _sum_over_experts(d_sorted, inverse, ctx.num_chosen)
        return d_x, None, d_gates[inverse].view(-1, ctx.num_chosen), d_gate_up, d_down


def _blocks(counts: list[int]) -> list[tuple[int, slice]]:
    """Expert and slice of sorted rows, at most BLOCK_ROWS at a time; experts without tokens are left out."""
    blocks, start = [], 0
    for expert, count in enumerate(counts):
        stop = start + count
        blocks += [
            (expert, slice(row, min(row + BLOCK_ROWS, stop))) for row in range(start, stop, BLOCK_ROWS)
        ]
        start = stop
    return blocks


def _sum_over_experts(values: Tensor, inverse: Tensor, num_chosen: int) -> Tensor:
    places_NK = inverse.view(-1, num_chosen)
    total = values.index_select(0, places_NK[:, 0])
    for choice in range(1, num_chosen):
        total += values.index_select(0, places_NK[:, choice])
    return total

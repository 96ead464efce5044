"""Log-probabilities of given tokens, straight from hidden states: logits exist a block of rows at a time.

A head over a vocabulary makes a layer's largest tensor, and plain autograd walks it from memory once per
operation, padding included. Here each block goes through product, softmax and choice while it is in cache.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK_FLOATS = 1 << 18
"""A block takes as many rows as keep its logits within so many floats."""


def target_logps(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The log-probability of each row's target, and each row's entropy, which has no gradient: [N] nats.

    Args:
        targets_N: int64 ids in [0, V).
        temperature: what the logits are divided by.
    """
    if hidden_ND.dtype in (
        torch.bfloat16,
        torch.float16,
    ):  # their log-probabilities would be off by hundredths
        hidden_ND, weight_VD = hidden_ND.float(), weight_VD.float()
    return _TargetLogps.apply(hidden_ND, weight_VD, targets_N, temperature)


class _TargetLogps(torch.autograd.Function):
    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        logps = hidden.new_empty(len(hidden), len(weight))
        scratch = hidden.new_empty(_block_rows(weight), len(weight))
        entropies = hidden.new_empty(len(hidden))
        for rows in _blocks(len(hidden), len(scratch)):
            logits = torch.mm(hidden[rows], weight.t(), out=scratch[: rows.stop - rows.start])
            if temperature != 1.0:
                logits /= temperature
            block = logps[rows]
            torch.ops.aten._log_softmax.out(logits, -1, False, out=block)
            entropies[rows] = torch.exp(block, out=logits).mul_(block).sum(-1).neg_()
        ctx.save_for_backward(hidden, weight, targets, logps)
        ctx.temperature = temperature
        ctx.mark_non_differentiable(entropies)
        ctx.set_materialize_grads(False)
        return logps.gather(1, targets[:, None]).squeeze(1), entropies

    @staticmethod
    @once_differentiable
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        hidden, weight, targets, logps = ctx.saved_tensors
        if grads[0] is None:
            return None, None, None, None
        d_targets = (grads[0] / ctx.temperature)[:, None]
        d_hidden, d_weight = torch.empty_like(hidden), torch.zeros_like(weight)
        scratch = hidden.new_empty(_block_rows(weight), len(weight))
        for rows in _blocks(len(hidden), len(scratch)):
            given = d_targets[rows]
            # Over the logits: the target's own share less the softmax.
            d_logits = torch.exp(logps[rows], out=scratch[: rows.stop - rows.start]).mul_(-given)
            d_logits.scatter_add_(1, targets[rows, None], given)
            torch.mm(d_logits, weight, out=d_hidden[rows])
            d_weight.addmm_(d_logits.t(), hidden[rows])
        return d_hidden, d_weight, None, None


def _block_rows(weight: Tensor) -> int:
    return max(1, BLOCK_FLOATS // len(weight))


def _blocks(num_rows: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, num_rows)) for start in range(0, num_rows, size)]

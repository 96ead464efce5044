"""RMS norm as an autograd function: fewer walks over memory than the composition of its parts.

Computed in float32 at least, whatever the precision of what it gets and gives.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x_ND: Tensor) -> Tensor:
        return _RMSNorm.apply(x_ND, self.weight, self.eps)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        ctx.dtype = x.dtype
        x, weight = _float32_at_least(x), _float32_at_least(weight)
        mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1])
        scale = mean_square.add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight).to(ctx.dtype)

    @staticmethod
    @once_differentiable
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight, scale = ctx.saved_tensors
        given = _float32_at_least(grads[0])
        product = given * x
        d_weight = torch.mv(product.t(), scale.squeeze(-1))
        along = torch.mv(product, weight)[:, None].mul_(scale.pow(3)).div_(x.shape[-1])
        d_x = torch.mul(given, weight, out=product).mul_(scale)
        return d_x.addcmul_(x, along, value=-1).to(ctx.dtype), d_weight, None


def _float32_at_least(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()

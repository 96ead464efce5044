"""Rotary positions in the two layouts that DeepSeek-V3.2 mixes.

Attention rotates neighbours (x0, x1), (x2, x3), ...; the indexer rotates halves (x0, x[R/2]),
(x1, x[R/2 + 1]), ... by the same angles. Confusing the two trains, and quietly gives a worse model.
"""

import torch
from torch import Tensor


def rotary_tables(positions: Tensor, rope_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin of position x frequency: two [N, R / 2] float32."""
    exponents = torch.arange(0, rope_dim, 2, dtype=torch.float32, device=positions.device) / rope_dim
    angles = positions[:, None].to(torch.float32) * (1.0 / theta**exponents)
    return angles.cos(), angles.sin()


def rotate_neighbours(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """[..., R] rotated in interleaved pairs; the result holds the first members, then the second.

    Queries and keys are laid out alike, so their products are those of the interleaved order.
    """
    first, second = x[..., 0::2], x[..., 1::2]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def rotate_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """[..., D >= R]: the first R dimensions rotated as halves, the rest as they are."""
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)

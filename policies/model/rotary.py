"""Rotary positions in the two layouts that DeepSeek-V3.2 mixes.

Attention rotates neighbours (x0, x1), (x2, x3), ...; the indexer rotates halves (x0, x[R/2]),
(x1, x[R/2 + 1]), ... by the same angles. Confusing the two trains, and quietly gives a worse model.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Yarn:
    """Positions stretched beyond the length of pre-training (YaRN, arXiv 2309.00071)."""

    factor: float
    original_length: float
    beta_fast: float
    """Frequencies that turn more often than this within the original length stay as they are."""
    beta_slow: float
    """Those that turn less often are divided by `factor`; between the two, a ramp."""
    attention_factor: float
    """cos and sin are multiplied with it."""
    truncate: bool
    """The ramp begins and ends at whole dimensions."""
    logit_factor: float
    """Attention's logits, but not the indexer's scores, are multiplied with it."""


def yarn_mscale(factor: float, mscale: float = 1.0) -> float:
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def rotary_tables(
    positions: Tensor, rope_dim: int, theta: float, yarn: Yarn | None = None
) -> tuple[Tensor, Tensor]:
    """cos and sin of position x frequency: two [N, R / 2] float32."""
    exponents = torch.arange(0, rope_dim, 2, dtype=torch.float32, device=positions.device) / rope_dim
    frequencies = 1.0 / theta**exponents
    if yarn is not None:
        frequencies = _stretched(frequencies, rope_dim, theta, yarn)
    angles = positions[:, None].to(torch.float32) * frequencies
    if yarn is None:
        return angles.cos(), angles.sin()
    return angles.cos() * yarn.attention_factor, angles.sin() * yarn.attention_factor


def _stretched(frequencies: Tensor, rope_dim: int, theta: float, yarn: Yarn) -> Tensor:
    """[R / 2]: each frequency between its own and that divided by the factor."""

    def dimension(turns: float) -> float:
        """Which dimension turns so often within the original length."""
        return rope_dim * math.log(yarn.original_length / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension(yarn.beta_fast), dimension(yarn.beta_slow)
    if yarn.truncate:
        low, high = math.floor(low), math.ceil(high)
    # The bound is rope_dim - 1, although the ramp has rope_dim / 2 places: so have it all implementations.
    low, high = max(low, 0), min(high, rope_dim - 1)
    places = torch.arange(rope_dim // 2, dtype=torch.float32, device=frequencies.device)
    ramp = ((places - low) / (high - low if high != low else 0.001)).clamp(0, 1)
    return frequencies / yarn.factor * ramp + frequencies * (1 - ramp)


def rotate_neighbours(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """[..., R] rotated in interleaved pairs: the definition; attention turns complex pairs in place."""
    first, second = x[..., 0::2], x[..., 1::2]
    return torch.stack((first * cos - second * sin, second * cos + first * sin), dim=-1).flatten(-2)


def rotate_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """[..., D >= R]: the first R dimensions rotated as halves, the rest as they are."""
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)

"""torch's fused attention on a CPU: products and softmax of a block in one visit, and no probabilities kept.

It shares a block out among threads once, not once an operation. What it cannot do is what the indexer's loss
needs: show the probabilities.
"""

import functools

import torch
from torch import Tensor
from torch.nn import functional

DROPPED = 1e30
"""What hides a key is less by so much: its exponential is exactly 0."""


def attend(q: Tensor, k: Tensor, v: Tensor, chosen: Tensor | None, scale: float) -> Tensor:
    """Attention of the last R of S places: [B, H, R, V].

    Args:
        q: [B, H, R, D].
        k: [B, H, S, D].
        v: [B, H, S, V].
        chosen: [B, R, S] bool, the keys to attend to; None: all earlier ones.
    """
    q, k, v, width = *_same_width(q, k, v), v.shape[-1]
    mask = _mask(q, k, chosen)
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)[..., :width]


def _same_width(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Zeros added to the narrower change no product; the kernel knows one width."""
    missing = q.shape[-1] - v.shape[-1]
    if missing > 0:
        return q, k, functional.pad(v, (0, missing))
    if missing < 0:
        return functional.pad(q, (0, -missing)), functional.pad(k, (0, -missing)), v
    return q, k, v


def _mask(q: Tensor, k: Tensor, chosen: Tensor | None) -> Tensor:
    """To add to the products: [B, 1, R, S] or [R, S]."""
    if chosen is not None:
        return chosen.to(q.dtype).sub_(1.0).mul_(DROPPED)[:, None]
    rows, keys = q.shape[2], k.shape[2]
    width = 1 << (keys - 1).bit_length()
    return _earlier(rows, width, q.dtype)[:, width - keys :]


@functools.lru_cache(maxsize=32)
def _earlier(rows: int, keys: int, dtype: torch.dtype) -> Tensor:
    """[R, S] for R queries at the last of S places; its last columns serve fewer places."""
    return torch.full((rows, keys), -DROPPED, dtype=dtype).triu_(1 + keys - rows)

"""Choosing tokens: the processed distribution, its log-probabilities, and draws that depend on nothing else.

A draw is a function of (session seed, position) alone, so a session's tokens are the same whatever runs
beside it, in whatever order.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_MASK = (1 << 64) - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    temperature: float = 1.0
    """0 takes the most likely token; its log-probability is then that at temperature 1."""
    top_p: float = 1.0
    """Keep the smallest set of most likely tokens whose probability reaches this."""
    top_k: int = 0
    """Keep so many most likely tokens; 0: all."""
    max_new_tokens: int = 64
    """Per turn."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"sampling.temperature must be finite and at least 0, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"sampling.top_p must lie in (0, 1], got {self.top_p}")
        if self.top_k < 0:
            raise ValueError(f"sampling.top_k must be at least 0, got {self.top_k}")
        if self.max_new_tokens < 1:
            raise ValueError(f"sampling.max_new_tokens must be at least 1, got {self.max_new_tokens}")

    @property
    def restricts(self) -> bool:
        """Whether some tokens are cut off, so that the kept set has to be remembered."""
        return self.temperature > 0 and (self.top_p < 1 or self.top_k > 0)


def process_logits(logits_NV: Tensor, samplings: list[Sampling]) -> Tensor:
    """Log-probabilities [N, V] float32 after temperature, top-k and top-p; -inf for a token that was cut."""
    temperature = torch.tensor([s.temperature or 1.0 for s in samplings])
    scaled_NV = logits_NV.float() / temperature[:, None]
    if any(s.restricts for s in samplings):
        scaled_NV = scaled_NV.masked_fill(~_kept(scaled_NV, samplings), float("-inf"))
    return scaled_NV.log_softmax(-1)


def _kept(scaled_NV: Tensor, samplings: list[Sampling]) -> Tensor:
    """[N, V] bool: top-k first, then top-p over what is left; the most likely token always stays."""
    vocab = scaled_NV.shape[1]
    order = torch.sort(scaled_NV, dim=-1, descending=True, stable=True)
    top_k = torch.tensor([s.top_k if s.restricts and s.top_k else vocab for s in samplings])
    top_p = torch.tensor([s.top_p if s.restricts else 1.0 for s in samplings], dtype=torch.float64)
    in_k = torch.arange(vocab) < top_k[:, None]
    probs = order.values.masked_fill(~in_k, float("-inf")).double().softmax(-1)
    before = probs.cumsum(-1) - probs
    keep_sorted = in_k & ((before < top_p[:, None]) | (top_p[:, None] >= 1))
    keep_sorted[:, 0] = True
    return torch.zeros_like(keep_sorted).scatter_(1, order.indices, keep_sorted)


def draw(logps_NV: Tensor, samplings: list[Sampling], seeds: list[int], positions: list[int]) -> Tensor:
    """Token ids [N]: inverse-CDF draws in float64, or the first maximum at temperature 0."""
    cdf_NV = logps_NV.exp().double().cumsum(-1)
    total_N1 = cdf_NV[:, -1:].contiguous()
    target_N1 = torch.from_numpy(uniforms(seeds, positions))[:, None] * total_N1
    # Rounding must not reach past the last token that has any probability.
    last = torch.searchsorted(cdf_NV, total_N1)
    tokens = torch.minimum(torch.searchsorted(cdf_NV, target_N1, right=True), last).squeeze(1)
    if any(s.temperature == 0 for s in samplings):
        greedy = torch.tensor([s.temperature == 0 for s in samplings])
        tokens = torch.where(greedy, logps_NV.argmax(-1), tokens)
    return tokens


def uniforms(seeds: list[int], positions: list[int]) -> np.ndarray:
    """[N] float64 in [0, 1): a counter-based hash of seed and position."""
    state = np.array([seed & _MASK for seed in seeds], dtype=np.uint64)
    steps = np.array(positions, dtype=np.uint64)
    with np.errstate(over="ignore"):
        mixed = _mix(_mix(state) ^ (steps * np.uint64(0x9E3779B97F4A7C15) + np.uint64(0xD1B54A32D192ED03)))
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))

"""How sparse attention chooses the tokens that a query attends to.

A selector gives every (query, key) pair a score; `select_topk` keeps the k best earlier tokens. The order is
total: the higher score first, then the lower position. Scores of a sum of ReLUs tie at exactly zero all the
time, so without the second rule a rollout and the trainer would attend to different tokens.
"""

import difflib
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

NEVER = float("-inf")


def _window_scores(query_pos: Tensor, key_pos: Tensor) -> Tensor:
    """The latest tokens win."""
    return (key_pos - query_pos).to(torch.float32)


def _random_scores(query_pos: Tensor, key_pos: Tensor) -> Tensor:
    """A fixed hash of the pair: the lower bound that any learned choice must beat."""
    mixed = (query_pos * 0x9E3779B1 + key_pos * 0x85EBCA77) & 0x7FFFFFFF
    mixed = ((mixed ^ (mixed >> 15)) * 0x2C1B3C6D) & 0x7FFFFFFF
    mixed = ((mixed ^ (mixed >> 12)) * 0x297A2D39) & 0x7FFFFFFF
    return (mixed ^ (mixed >> 15)).to(torch.float32)


PositionScores = Callable[[Tensor, Tensor], Tensor]

# None: no scores from positions; "lightning" asks the indexer, "dense" keeps everything.
SELECTORS: dict[str, PositionScores | None] = {
    "lightning": None,
    "dense": None,
    "window": _window_scores,
    "random": _random_scores,
}


def nearest_name(name: str) -> str:
    near = difflib.get_close_matches(name, SELECTORS, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def select_topk(scores: Tensor, k: int) -> Tensor:
    """Which entries are among the k best of their row: bool, the shape of `scores`.

    Entries of -inf are never chosen, so a row with fewer than k others keeps all of those.
    """
    if scores.shape[-1] <= k:
        return scores > NEVER
    # The k-th best; in a row with fewer than k entries the lowest number, which all of them reach.
    threshold = _kth_best(scores, k).clamp_(min=torch.finfo(scores.dtype).min)
    chosen = scores >= threshold
    surplus = chosen.view(torch.int8).sum(-1, dtype=torch.int32) > k
    if surplus.any():
        chosen[surplus] = _first_ties(scores[surplus], threshold[surplus], k)
    return chosen


def select_topk_indices(scores: Tensor, k: int) -> Tensor:
    """The same choice as places in each row of [R, S]: [R, min(k, S)] int64, in order of position.

    In a row with fewer than k entries above -inf the rest point at entries of -inf, for the caller to mask.
    """
    k = min(k, scores.shape[-1])
    chosen = select_topk(scores, k)
    missing = k - chosen.view(torch.int8).sum(-1, dtype=torch.int32)
    if missing.any():
        unused = ~chosen
        chosen |= unused & (unused.cumsum(-1, dtype=torch.int32) <= missing[:, None])
    return chosen.nonzero()[:, 1].view(-1, k)


def _kth_best(scores: Tensor, k: int) -> Tensor:
    """[..., 1]: the k-th largest of each row."""
    if scores.device.type == "cpu" and scores.dtype == torch.float32:
        # NumPy's vectorised sort takes an eighth of the time of torch.topk's selection here.
        ordered = np.sort(scores.numpy(), axis=-1)
        return torch.from_numpy(ordered[..., -k, None].copy())
    return scores.topk(k, dim=-1, sorted=False).values.amin(-1, keepdim=True)


def _first_ties(scores: Tensor, threshold: Tensor, k: int) -> Tensor:
    """Rows [R, S] in which more entries reach the threshold than fit: the earliest of those that equal it."""
    above = scores > threshold
    tied = scores == threshold
    room = k - above.sum(-1, keepdim=True)
    return above | (tied & (tied.cumsum(-1, dtype=torch.int32) <= room))

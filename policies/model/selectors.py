"""How sparse attention chooses the tokens that a query attends to.

A selector scores every (query, key) pair that a view shows it; `select_topk` keeps the k best earlier tokens.
The order is total: the higher score first, then the lower position. Scores of a sum of ReLUs tie at exactly
zero all the time, so without the second rule a rollout and the trainer would attend to different tokens. A
query that sees no more than k tokens keeps them all.

Training and decoding each have a view of their own; a selector sees no other difference between them.
"""

import difflib
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

NEVER = float("-inf")
PARTITION_FROM = 4096
FEW_ROWS = 16
SHARED_FROM = 1 << 19
"""From so many scores on, rows are shared out among threads."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """How one model chooses. `selector` is None where every earlier token is kept."""

    selector: "Selector | None"
    top_k: int
    seed: int = 0
    """Of `random` and of `lsh`'s planes."""
    tables: int = 1
    bits: int = 1
    """`lsh`: a table has 2^bits buckets."""
    window: int = 1
    """`lsh`: so many latest tokens are candidates whatever their hash."""
    candidates: int = 1
    """`lsh`: at most so many candidates a query, the window among them."""


class View(Protocol):
    """What a mode of the forward shows: R queries and S keys. Scores are [..., R, S]; at keys after the query
    they may hold anything, for the caller to mask.
    """

    @property
    def query_pos(self) -> Tensor:
        """int64, of a shape that goes with [..., R, S]."""
        ...

    @property
    def key_pos(self) -> Tensor:
        """[S] int64."""
        ...

    def index_scores(self, among: Tensor | None = None) -> Tensor:
        """The indexer's scores; a view may leave out the pairs that `among` [..., R, S] bool is False for."""
        ...

    def attention_mass(self) -> Tensor:
        """The main attention's probabilities over all earlier tokens, summed over heads."""
        ...

    def hash_votes(self) -> Tensor:
        """The sum over index heads of head weight x tables in which the query's bucket is the key's."""
        ...


Selector = Callable[[View, Selection], Tensor]


def _lightning(view: View, selection: Selection) -> Tensor:
    """The learned indexer."""
    return view.index_scores()


def _oracle(view: View, selection: Selection) -> Tensor:
    """What the attention itself looks at: the upper bound, at the price of dense attention."""
    return view.attention_mass()


def _window(view: View, selection: Selection) -> Tensor:
    """The latest tokens win."""
    return (view.key_pos - view.query_pos).to(torch.float32)


def _random(view: View, selection: Selection) -> Tensor:
    """A fixed hash of the pair: the lower bound that any learned choice must beat."""
    mixed = view.query_pos * 0x9E3779B1 + view.key_pos * 0x85EBCA77 + selection.seed * 0xC2B2AE3D
    mixed = mixed & 0x7FFFFFFF
    mixed = ((mixed ^ (mixed >> 15)) * 0x2C1B3C6D) & 0x7FFFFFFF
    mixed = ((mixed ^ (mixed >> 12)) * 0x297A2D39) & 0x7FFFFFFF
    return (mixed ^ (mixed >> 15)).to(torch.float32)


def _lsh(view: View, selection: Selection) -> Tensor:
    """Candidates by hash, then the indexer's exact scores among them.

    A candidate is in the recent window, or the heads that share a bucket with it weigh more for it than
    against. Of too many, those with the most votes stay. The others are never chosen, so a row may keep fewer
    than k.
    """
    votes = view.hash_votes()
    age = view.query_pos - view.key_pos
    votes = votes.masked_fill(votes <= 0, NEVER)
    votes = votes.masked_fill((age >= 0) & (age < selection.window), float("inf")).masked_fill(age < 0, NEVER)
    candidates = select_topk(votes, selection.candidates) | (view.query_pos < selection.top_k)
    return view.index_scores(candidates).masked_fill(~candidates, NEVER)


# None keeps everything.
SELECTORS: dict[str, Selector | None] = {
    "lightning": _lightning,
    "dense": None,
    "oracle": _oracle,
    "lsh": _lsh,
    "window": _window,
    "random": _random,
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
    threshold = _kth_best(scores, k)
    full = scores.device.type == "cpu" and bool((threshold > NEVER).all())
    # In a row with fewer than k entries the lowest number, which all of them reach.
    threshold.clamp_(min=torch.finfo(scores.dtype).min)
    chosen = scores >= threshold
    # At least k reach it in each of full rows. One count of all is far quicker than one a row.
    if full and np.count_nonzero(chosen.numpy()) == threshold.numel() * k:
        return chosen
    surplus = chosen.view(torch.int8).sum(-1, dtype=torch.int32) > k
    if surplus.any():
        chosen[surplus] = _first_ties(scores[surplus], threshold[surplus], k)
    return chosen


def select_topk_indices(scores: Tensor, k: int) -> Tensor:
    """The same choice as places in each row of [R, S]: [R, min(k, S)] int64, in order of position.

    In a row with fewer than k entries above -inf the rest point at entries of -inf, for the caller to mask.
    """
    k = min(k, scores.shape[-1])
    if scores.device.type == "cpu" and scores.dtype == torch.float32:
        return _places(scores, k)
    chosen = select_topk(scores, k)
    missing = k - chosen.sum(-1, dtype=torch.int32)
    unused = ~chosen
    chosen |= unused & (unused.cumsum(-1, dtype=torch.int32) <= missing[:, None])
    return chosen.nonzero()[:, 1].view(-1, k)


def _places(scores: Tensor, k: int) -> Tensor:
    """`select_topk_indices` in NumPy, whose operations on the few numbers of a decoding step take a third of
    torch's time. Entries of -inf are like any other: the first of them fill a row.
    """
    values = scores.numpy()
    threshold = _kth_best(scores, k).numpy()
    chosen = values >= threshold
    if np.count_nonzero(chosen) != k * len(values):
        tied = np.flatnonzero(np.count_nonzero(chosen, axis=1) > k)
        if len(tied) <= FEW_ROWS:
            _drop_last_ties(values, threshold, chosen, tied, k)
        else:
            above, equal = values[tied] > threshold[tied], values[tied] == threshold[tied]
            room = k - np.count_nonzero(above, axis=1)
            chosen[tied] = above | (equal & (equal.cumsum(axis=1, dtype=np.int32) <= room[:, None]))
    places = np.flatnonzero(chosen).reshape(-1, k)
    places -= np.arange(0, chosen.size, chosen.shape[1])[:, None]
    return torch.from_numpy(places)


def _kth_best(scores: Tensor, k: int) -> Tensor:
    """[..., 1]: the k-th largest of each row."""
    if scores.device.type == "cpu" and scores.dtype == torch.float32:
        values, place = scores.numpy(), scores.shape[-1] - k
        threads = torch.get_num_threads()
        if values.size < SHARED_FROM or threads == 1:
            return torch.from_numpy(_at_place(values, place))
        # NumPy uses one core, and lets go of Python meanwhile.
        rows = values.reshape(-1, values.shape[-1])
        parts = _pool(threads).map(lambda part: _at_place(part, place), np.array_split(rows, threads))
        return torch.from_numpy(np.concatenate(list(parts)).reshape(*values.shape[:-1], 1))
    return scores.topk(k, dim=-1, sorted=False).values.amin(-1, keepdim=True)


def _at_place(values: np.ndarray, place: int) -> np.ndarray:
    """[..., 1]: what would stand at `place` in each row, were it sorted.

    NumPy's vectorised sort takes an eighth of the time of torch.topk's selection here, and on long rows its
    partition a fifth of that, unless there are many ties.
    """
    if values.shape[-1] >= PARTITION_FROM and np.count_nonzero(values) > 0.9 * values.size:
        return np.partition(values, place, axis=-1)[..., place, None].copy()
    return np.sort(values, axis=-1)[..., place, None].copy()


@functools.lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads)


def _drop_last_ties(
    values: np.ndarray, threshold: np.ndarray, chosen: np.ndarray, rows: np.ndarray, k: int
) -> None:
    """In these rows: the latest of those that equal the threshold and are too many.

    Row by row, which for a few long rows takes a tenth of the time of a running count.
    """
    for row in rows.tolist():
        surplus = np.count_nonzero(chosen[row]) - k
        chosen[row, np.flatnonzero(values[row] == threshold[row])[-surplus:]] = False


def _first_ties(scores: Tensor, threshold: Tensor, k: int) -> Tensor:
    """Rows [R, S] in which more entries reach the threshold than fit: the earliest of those that equal it."""
    above = scores > threshold
    tied = scores == threshold
    room = k - above.sum(-1, keepdim=True)
    return above | (tied & (tied.cumsum(-1, dtype=torch.int32) <= room))

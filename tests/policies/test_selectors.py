"""The total order of the sparse selection, against a slow stable sort."""

import pytest
import torch
from torch import Tensor

from policies.model.selectors import NEVER, SELECTORS, select_topk, select_topk_indices


def slow_choice(scores: Tensor, k: int) -> Tensor:
    """Sort by (score down, position up), keep k, drop -inf."""
    order = torch.sort(scores, dim=-1, descending=True, stable=True).indices[..., :k]
    chosen = torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, order, True)
    return chosen & (scores > NEVER)


def tied_scores(rows: int, columns: int, seed: int) -> Tensor:
    """Scores like those of few ReLU heads with signed weights: half of them exactly 0, some repeated."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(rows, columns, generator=generator)
    scores[torch.rand(rows, columns, generator=generator) < 0.5] = 0.0
    scores[torch.rand(rows, columns, generator=generator) < 0.1] = -0.0
    scores[:, ::7] = scores[:, 1:2]
    return scores


def test_ties_go_to_the_lower_position() -> None:
    scores = torch.tensor([[0.0, 2.0, 0.0, -1.0, 0.0, 1.0]])
    assert select_topk(scores, 4).tolist() == [[True, True, True, False, False, True]]
    assert sorted(select_topk_indices(scores, 4)[0].tolist()) == [0, 1, 2, 5]


def test_a_row_with_fewer_than_k_earlier_tokens_keeps_them_all() -> None:
    scores = torch.tensor([[3.0, 1.0, NEVER, NEVER]])
    assert select_topk(scores, 3).tolist() == [[True, True, False, False]]
    assert {0, 1} < set(select_topk_indices(scores, 3)[0].tolist())


@pytest.mark.parametrize("k", [1, 5, 16, 63, 64, 80])
@pytest.mark.parametrize("seed", range(4))
def test_choice_equals_a_stable_sort_whatever_the_ties(k: int, seed: int) -> None:
    scores = tied_scores(50, 64, seed).masked_fill(~torch.ones(50, 64, dtype=torch.bool).tril(10), NEVER)
    expected = slow_choice(scores, k)
    assert torch.equal(select_topk(scores, k), expected)
    if k <= 64:
        places = select_topk_indices(scores, k)
        chosen = torch.zeros_like(expected).scatter_(-1, places, True) & (scores > NEVER)
        assert torch.equal(chosen, expected)
        assert all(len(set(row)) == k for row in places.tolist())


def test_window_keeps_the_latest_and_random_is_a_fixed_hash() -> None:
    window, random = SELECTORS["window"], SELECTORS["random"]
    assert window is not None
    assert random is not None
    queries, keys = torch.tensor([[5]]), torch.arange(6)
    assert select_topk(window(queries, keys), 2).tolist() == [[False] * 4 + [True] * 2]
    assert torch.equal(random(queries, keys), random(queries, keys))
    assert not torch.equal(random(queries, keys), random(queries + 1, keys))

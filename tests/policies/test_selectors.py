"""The total order of the sparse selection, against a slow stable sort."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from policies.model.hashing import bucket_codes, bucket_votes, planes
from policies.model.selectors import NEVER, SELECTORS, Selection, select_topk, select_topk_indices


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


@pytest.mark.parametrize("k", [1, 5, 16, 40, 63])
@pytest.mark.parametrize("rows", [1, 3, 40])
def test_full_rows_few_or_many_are_chosen_from_by_the_same_order(rows: int, k: int) -> None:
    scores = tied_scores(rows, 64, seed=k)
    scores[0] = torch.rand(64)  # no ties here
    expected = slow_choice(scores, k)
    assert torch.equal(select_topk(scores, k), expected)
    places = select_topk_indices(scores, k)
    assert torch.equal(places, expected.nonzero()[:, 1].view(rows, k))


class Pairs:
    """A view of hand-made scores: one query at each of the last positions."""

    def __init__(self, scores: Tensor, votes: Tensor | None = None) -> None:
        self.scores, self.votes = scores, votes
        self.key_pos = torch.arange(scores.shape[1])
        self.query_pos = self.key_pos[-scores.shape[0] :, None]

    def index_scores(self, among: Tensor | None = None) -> Tensor:
        return self.scores.clone()

    def attention_mass(self) -> Tensor:
        return self.scores + 100

    def hash_votes(self) -> Tensor:
        assert self.votes is not None
        return self.votes


def keep(name: str, view: Pairs, **options: int) -> list[list[int]]:
    selector = SELECTORS[name]
    assert selector is not None
    how = Selection(selector=selector, **({"top_k": 2} | options))
    scores = selector(view, how)
    scores = scores.masked_fill(view.key_pos > view.query_pos, NEVER)
    return [row.nonzero().squeeze(1).tolist() for row in select_topk(scores, how.top_k)]


def test_window_keeps_the_latest_and_lightning_the_best() -> None:
    view = Pairs(torch.tensor([[5.0, 1.0, 3.0, 2.0, 9.0], [0.0, 1.0, 0.0, 0.0, 0.0]]))
    assert keep("window", view) == [[2, 3], [3, 4]]
    assert keep("lightning", view) == [[0, 2], [0, 1]]  # 9.0 lies ahead; ties go to the lower position
    assert keep("oracle", view) == [[0, 2], [0, 1]]


def test_random_depends_on_the_pair_and_the_seed_alone() -> None:
    view = Pairs(torch.zeros(40, 40))
    assert keep("random", view) == keep("random", view)
    assert keep("random", view, seed=1) != keep("random", view)
    assert keep("random", Pairs(torch.zeros(3, 40))) == keep("random", view)[-3:]
    assert sorted({place for row in keep("random", view) for place in row})[-1] > 30
    assert len({tuple(row) for row in keep("random", view)[-8:]}) == 8  # each query draws for itself


def test_lsh_ranks_candidates_by_score_and_keeps_nobody_else() -> None:
    scores = torch.tensor([[9.0, 8.0, 1.0, 2.0, 7.0, -3.0, -4.0]])
    votes = torch.tensor([[0.0, -1.0, 3.0, 1.0, 2.0, 0.0, 0.0]])
    # The best two scores have no votes, or are spoken against; position 6 is the window.
    assert keep("lsh", Pairs(scores, votes), window=1, candidates=9) == [[3, 4]]
    # Two candidates beside the window: those with the most votes.
    assert keep("lsh", Pairs(scores, votes), window=1, candidates=3) == [[2, 4]]
    assert keep("lsh", Pairs(scores, votes), window=2, candidates=2) == [[5, 6]]
    assert keep("lsh", Pairs(scores, torch.zeros(1, 7)), window=1, candidates=9) == [[6]]  # fewer than k
    # Queries that see no more than k tokens keep them all, whatever their hash.
    early = Pairs(torch.zeros(4, 4), torch.zeros(4, 4))
    assert keep("lsh", early, top_k=3, window=1, candidates=9) == [[0], [0, 1], [0, 1, 2], [3]]


def test_buckets_are_those_of_the_seed_in_every_process() -> None:
    cuts = planes(7, 3, 2, 2)
    assert cuts.shape == (3, 4)
    code = "from policies.model.hashing import planes; print(planes(7, 3, 2, 2).tolist())"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == str(cuts.tolist())
    assert not torch.equal(planes(8, 3, 2, 2), cuts)
    x = torch.tensor([1.0, -2.0, 0.5])
    signs = (x @ cuts > 0).tolist()
    assert bucket_codes(x, cuts, 2).tolist() == [signs[0] + 2 * signs[1], signs[2] + 2 * signs[3]]


def test_votes_weigh_shared_buckets_by_head() -> None:
    query_codes = torch.tensor([[[[1, 0]], [[1, 3]]]])  # one sequence, two heads, one query, two tables
    weights = torch.tensor([[[0.5], [-2.0]]])
    key_codes = torch.tensor([[[1, 0], [1, 3], [0, 3], [2, 2]]])
    # Key 0: both heads in table 0, head 0 in table 1; key 1: both in table 0, head 1 in table 1; ...
    assert bucket_votes(query_codes, weights, key_codes, 2).tolist() == [[[-1.0, -3.5, -2.0, 0.0]]]

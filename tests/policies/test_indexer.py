"""The lightning indexer's scores and loss by hand."""

import math

import pytest
import torch

from policies.model.config import tiny_config
from policies.model.indexer import Indexer, index_scores, indexer_loss_rows
from policies.model.rotary import rotary_tables


def test_scores_are_a_signed_sum_of_rectified_products() -> None:
    queries = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])  # one query token, two heads
    keys = torch.tensor([[2.0, 3.0], [-1.0, 4.0], [-5.0, -6.0]])
    weights = torch.tensor([[0.5, -2.0]])
    # 0.5 * 2 - 2 * 3; 0.5 * 0 - 2 * 4; both heads negative: exactly 0
    assert index_scores(queries, keys, weights).tolist() == [[-5.0, -8.0, 0.0]]


def test_head_weights_carry_both_scales_and_keys_a_layer_norm_with_bias() -> None:
    indexer = Indexer(tiny_config(32, index_n_heads=4, index_head_dim=16))
    indexer.k_norm.bias.data.fill_(0.25)
    hidden, latent = torch.randn(3, 128), torch.randn(3, 96)
    cos, sin = rotary_tables(torch.zeros(3), 16, 10_000.0)  # position 0: no rotation
    queries, keys, weights = indexer(hidden, latent, cos, sin)
    assert torch.allclose(weights, hidden @ indexer.weights_proj.weight.T / math.sqrt(4 * 16))
    assert torch.allclose(queries.flatten(1), latent @ indexer.wq_b.weight.T)
    assert torch.allclose(keys.mean(-1), torch.full((3,), 0.25), atol=1e-6)
    assert torch.allclose(keys.var(-1, unbiased=False), torch.ones(3), atol=1e-2)


def test_rotation_uses_halves_of_the_first_dimensions() -> None:
    indexer = Indexer(tiny_config(32, index_n_heads=1, index_head_dim=20))  # 16 rotated, 4 passed through
    torch.nn.init.zeros_(indexer.wq_b.weight)
    indexer.wq_b.weight.data[1, 0] = 1.0  # the query is e1
    cos, sin = rotary_tables(torch.tensor([1]), 16, 10_000.0)
    queries, _, _ = indexer(torch.zeros(1, 128), torch.eye(1, 96), cos, sin)
    angle = 10_000.0 ** (-2 / 16)  # the second frequency, partner e9
    expected = torch.zeros(20)
    expected[1], expected[9] = math.cos(angle), math.sin(angle)
    assert torch.allclose(queries[0, 0], expected, atol=1e-6)


def test_loss_is_the_divergence_over_allowed_entries() -> None:
    scores = torch.tensor([[0.0, math.log(3.0), 50.0]])
    target = torch.tensor([[0.5, 0.5, 0.0]])
    allowed = torch.tensor([[True, True, False]])
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert indexer_loss_rows(scores, target, allowed).item() == pytest.approx(expected)


def test_loss_gradient_is_the_guess_minus_the_target() -> None:
    scores = torch.tensor([[0.0, math.log(3.0), 50.0]], requires_grad=True)
    allowed = torch.tensor([[True, True, False]])
    indexer_loss_rows(scores, torch.tensor([[0.5, 0.5, 0.0]]), allowed).sum().backward()
    assert scores.grad is not None
    assert scores.grad[0].tolist() == pytest.approx([-0.25, 0.25, 0.0])

"""The two rotary layouts, told apart on position pairs."""

import math

import pytest
import torch

from policies.model.rotary import Yarn, rotary_tables, rotate_halves, rotate_neighbours


def test_neighbours_turn_x0_with_x1_and_halves_turn_x0_with_x2() -> None:
    cos, sin = rotary_tables(torch.tensor([1]), 4, theta=10_000.0)
    # Angles at position 1: 1 and 0.01 radians.
    x = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    assert rotate_neighbours(x, cos, sin)[0].tolist() == pytest.approx([math.cos(1), math.sin(1), 0, 0])
    second = torch.tensor([[0.0, 1.0, 0.0, 0.0]])
    # x1 is the partner of x0 among neighbours (first frequency) and heads its own pair among halves (second).
    assert rotate_neighbours(second, cos, sin)[0].tolist() == pytest.approx([-math.sin(1), math.cos(1), 0, 0])
    assert rotate_halves(second, cos, sin)[0].tolist() == pytest.approx(
        [0, math.cos(0.01), 0, math.sin(0.01)]
    )


def test_halves_leave_the_dimensions_behind_the_rotated_ones_alone() -> None:
    cos, sin = rotary_tables(torch.tensor([3]), 2, theta=100.0)
    turned = rotate_halves(torch.tensor([[1.0, 0.0, 7.0, 8.0]]), cos, sin)
    assert turned[0].tolist() == pytest.approx([math.cos(3), math.sin(3), 7, 8])


@pytest.mark.parametrize("rotate", [rotate_neighbours, rotate_halves])
def test_products_depend_on_the_distance_alone(rotate) -> None:
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, 8)

    def product(query_at: int, key_at: int) -> float:
        q_tables = rotary_tables(torch.tensor([query_at]), 8, 50.0)
        k_tables = rotary_tables(torch.tensor([key_at]), 8, 50.0)
        return float((rotate(query, *q_tables) * rotate(key, *k_tables)).sum())

    assert product(9, 4) == pytest.approx(product(25, 20), abs=1e-5)
    assert abs(product(9, 4) - product(9, 5)) > 1e-3


def test_yarn_divides_slow_frequencies_leaves_fast_ones_and_scales_both() -> None:
    stretch = Yarn(
        factor=8.0,
        original_length=100.0,
        beta_fast=4.0,
        beta_slow=1.0,
        attention_factor=0.5,
        truncate=True,
        logit_factor=1.0,
    )
    # Dimension d turns 100 / (2 pi) * 100^(-d / 4) times: 4 times at d = 4 ln(100 / 8 pi) / (2 ln 100) = 0.6,
    # once at 1.2. The ramp goes from 0 to 2: the first frequency is left, the second half divided.
    cos, sin = rotary_tables(torch.tensor([1]), 4, 100.0, stretch)
    second = 0.1 * (0.5 / 8 + 0.5)
    assert cos[0].tolist() == pytest.approx([0.5 * math.cos(1), 0.5 * math.cos(second)])
    assert sin[0].tolist() == pytest.approx([0.5 * math.sin(1), 0.5 * math.sin(second)])

"""Processed distributions by hand; draws that depend on seed and position alone."""

import math

import pytest
import torch

from policies.model.sampling import Sampling, draw, process_logits, uniforms

LOGITS = torch.tensor([[0.0, math.log(2.0), math.log(4.0), math.log(1.0)]])  # 1 : 2 : 4 : 1


def test_temperature_top_k_and_top_p_renormalise_what_is_left() -> None:
    def probs(**kwargs) -> list[float]:
        return process_logits(LOGITS, [Sampling(**kwargs)]).exp()[0].tolist()

    assert probs() == pytest.approx([1 / 8, 2 / 8, 4 / 8, 1 / 8])
    assert probs(temperature=0.5) == pytest.approx([1 / 22, 4 / 22, 16 / 22, 1 / 22])
    assert probs(top_k=2) == pytest.approx([0, 1 / 3, 2 / 3, 0])
    assert probs(top_p=0.5) == pytest.approx([0, 0, 1, 0])
    assert probs(top_p=0.51) == pytest.approx([0, 1 / 3, 2 / 3, 0])
    assert probs(top_k=3, top_p=0.9) == pytest.approx(
        [1 / 7, 2 / 7, 4 / 7, 0]
    )  # 6/7 < 0.9, so a third; ties: lower id
    assert probs(temperature=0, top_p=0.1) == pytest.approx([1 / 8, 2 / 8, 4 / 8, 1 / 8])


def test_draws_follow_the_distribution_and_never_take_a_cut_token() -> None:
    count = 20_000
    sampling = [Sampling(top_k=3)] * count
    logps = process_logits(LOGITS.expand(count, -1), sampling)
    tokens = draw(logps, sampling, [7] * count, list(range(count)))
    shares = torch.bincount(tokens, minlength=4) / count
    assert shares.tolist() == pytest.approx([1 / 7, 2 / 7, 4 / 7, 0], abs=0.015)
    assert shares[3] == 0


def test_temperature_zero_takes_the_first_of_the_most_likely() -> None:
    logps = process_logits(torch.tensor([[1.0, 3.0, 3.0]]), [Sampling(temperature=0)])
    assert draw(logps, [Sampling(temperature=0)], [0], [0]).tolist() == [1]


def test_uniforms_depend_on_seed_and_position_only_and_are_spread() -> None:
    alone = uniforms([5], [3])[0]
    assert uniforms([1, 5, 9], [3, 3, 3])[1] == alone
    assert len({alone, uniforms([5], [4])[0], uniforms([6], [3])[0], uniforms([-5], [3])[0]}) == 4
    many = uniforms([11] * 10_000, list(range(10_000)))
    assert 0 <= many.min() < many.max() < 1
    assert many.mean() == pytest.approx(0.5, abs=0.01)
    assert abs(float((many[1:] * many[:-1]).mean()) - 0.25) < 0.01


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
    ],
)
def test_bad_settings_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"sampling.{message}"):
        Sampling(**fields)

"""The GRPO objective against numbers worked by hand, and its estimators against exact expectations."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rl.losses import (
    LossConfig,
    Normalization,
    aggregate,
    grpo_loss,
    importance_ratio,
    off_policy_keep,
    unbiased_kl,
)

LN2 = math.log(2.0)


def everywhere(rows: int, tokens: int) -> torch.Tensor:
    return torch.ones(rows, tokens, dtype=torch.bool)


def test_the_ratio_is_new_over_old_and_one_outside_the_mask() -> None:
    logp = torch.tensor([[math.log(0.6), math.log(0.1)]])
    sampled = torch.tensor([[math.log(0.3), math.log(0.9)]])
    mask = torch.tensor([[True, False]])
    assert importance_ratio(logp, sampled, mask)[0].tolist() == pytest.approx([2.0, 1.0])


def test_a_positive_advantage_is_clipped_above_only() -> None:
    # ratio 2 at advantage 1: min(2, 1.2) = 1.2; ratio 0.5: min(0.5, 0.8) = 0.5
    logp = torch.tensor([[LN2, -LN2]])
    terms = grpo_loss(logp, torch.zeros(1, 2), torch.tensor([1.0]), everywhere(1, 2), LossConfig())
    assert terms.loss.item() == pytest.approx(-(1.2 + 0.5) / 2)
    assert terms.clip_share.item() == pytest.approx(0.5)


def test_a_negative_advantage_is_clipped_below_only() -> None:
    # ratio 2 at advantage -1: min(-2, -1.2) = -2; ratio 0.5: min(-0.5, -0.8) = -0.8
    logp = torch.tensor([[LN2, -LN2]])
    terms = grpo_loss(logp, torch.zeros(1, 2), torch.tensor([-1.0]), everywhere(1, 2), LossConfig())
    assert terms.loss.item() == pytest.approx((2.0 + 0.8) / 2)


def test_on_policy_the_gradient_raises_what_was_better_than_its_group() -> None:
    logp = torch.zeros(2, 1, requires_grad=True)
    grpo_loss(
        logp, torch.zeros(2, 1), torch.tensor([0.5, -0.5]), everywhere(2, 1), LossConfig()
    ).loss.backward()
    assert logp.grad is not None
    assert logp.grad.tolist() == [[pytest.approx(-0.25)], [pytest.approx(0.25)]]


def test_padding_takes_no_part_in_the_loss_or_its_gradient() -> None:
    logp = torch.tensor([[0.0, 0.0, 500.0]], requires_grad=True)  # the last token is padding
    mask = torch.tensor([[True, True, False]])
    terms = grpo_loss(
        logp,
        torch.zeros(1, 3),
        torch.tensor([1.0]),
        mask,
        LossConfig(kl_weight=0.1),
        torch.tensor([[0.0, 0.0, 1000.0]]),
    )
    terms.loss.backward()
    assert terms.loss.item() == pytest.approx(-1.0)
    assert logp.grad is not None
    assert logp.grad[0, 2].item() == 0.0
    assert torch.isfinite(logp.grad).all()


def test_each_normalisation_weighs_rows_as_its_name_says() -> None:
    loss = torch.tensor([[1.0, 0.0], [3.0, 5.0]])
    mask = torch.tensor([[True, False], [True, True]])
    assert aggregate(loss, mask, LossConfig(normalization="response")).item() == pytest.approx(
        (1.0 + 4.0) / 2
    )
    assert aggregate(loss, mask, LossConfig(normalization="token")).item() == pytest.approx(9.0 / 3)
    constant = LossConfig(normalization="constant", max_tokens=10)
    assert aggregate(loss, mask, constant).item() == pytest.approx(9.0 / 20)


def test_the_off_policy_mask_drops_only_negative_rows_that_drifted() -> None:
    # mean log(old / new) over the two response tokens: 1.0, 1.0, 0.2; the fourth column is not the policy's
    sampled = torch.tensor([[-1.0, -1.0, 9.0], [-1.0, -1.0, 9.0], [-1.0, -1.0, 9.0]])
    logp = torch.tensor([[-2.0, -2.0, 0.0], [-2.0, -2.0, 0.0], [-1.2, -1.2, 0.0]])
    mask = torch.tensor([[True, True, False]] * 3)
    advantage = torch.tensor([-1.0, 1.0, -1.0])
    assert off_policy_keep(logp, sampled, advantage, mask, delta=0.5).tolist() == [False, True, True]


def test_the_off_policy_mask_spares_the_kl_term() -> None:
    logp, sampled = torch.tensor([[-2.0]]), torch.tensor([[-1.0]])
    config = LossConfig(off_policy_delta=0.5, kl_weight=1.0)
    terms = grpo_loss(logp, sampled, torch.tensor([-1.0]), everywhere(1, 1), config, torch.tensor([[-1.5]]))
    # only the KL is left: ratio e^-1 times (e^0.5 - 0.5 - 1)
    assert terms.loss.item() == pytest.approx(math.exp(-1.0) * (math.exp(0.5) - 1.5), rel=1e-5)
    assert terms.masked_share.item() == 1.0


def test_plain_k3_leaves_the_ratio_out() -> None:
    logp, sampled = torch.tensor([[-2.0]]), torch.tensor([[-1.0]])
    config = LossConfig(kl_weight=1.0, kl_estimator="k3")
    terms = grpo_loss(logp, sampled, torch.tensor([0.0]), everywhere(1, 1), config, torch.tensor([[-1.5]]))
    assert terms.loss.item() == pytest.approx(math.exp(0.5) - 1.5, rel=1e-5)


def plain_k3(logp: Tensor, reference: Tensor, ratio: Tensor, mask: Tensor) -> Tensor:
    """What GRPO had before: not weighted by the ratio."""
    return unbiased_kl(logp, reference, torch.ones_like(ratio), mask)


def with_detached_ratio(logp: Tensor, reference: Tensor, ratio: Tensor, mask: Tensor) -> Tensor:
    return unbiased_kl(logp, reference, ratio.detach(), mask)


Estimator = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def kl_errors(estimator: Estimator, seed: int) -> tuple[float, float]:
    """Errors of the estimator's expectation over pi_old, and of its gradient, against the exact reverse KL.

    A softmax over seven ids in float64, so that the expectation is a sum and not a sample.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn, old, reference = torch.randn(3, 7, dtype=torch.float64, generator=generator)
    old_logp, reference_logp = old.log_softmax(0), reference.log_softmax(0)

    exact_logits = drawn.clone().requires_grad_()
    exact_logp = exact_logits.log_softmax(0)
    exact = (exact_logp.exp() * (exact_logp - reference_logp)).sum()
    (exact_gradient,) = torch.autograd.grad(exact, exact_logits)

    logits = drawn.clone().requires_grad_()
    logp = logits.log_softmax(0)[None]
    mask = everywhere(1, 7)
    ratio = importance_ratio(logp, old_logp[None], mask)
    estimate = (old_logp.exp() * estimator(logp, reference_logp[None], ratio, mask)[0]).sum()
    (gradient,) = torch.autograd.grad(estimate, logits)
    return abs((estimate - exact).item()), (gradient - exact_gradient).abs().max().item()


@pytest.mark.parametrize("seed", range(5))
def test_the_kl_estimator_and_its_gradient_are_exact_in_expectation_off_policy(seed: int) -> None:
    value_error, gradient_error = kl_errors(unbiased_kl, seed)
    assert value_error < 1e-12
    assert gradient_error < 1e-12


@pytest.mark.parametrize("seed", range(5))
def test_plain_k3_and_a_detached_ratio_miss_the_exact_gradient(seed: int) -> None:
    value_error, gradient_error = kl_errors(plain_k3, seed)
    assert value_error > 1e-3
    assert gradient_error > 1e-2
    value_error, gradient_error = kl_errors(with_detached_ratio, seed)
    assert value_error < 1e-12  # its value is right, which is why nobody notices
    assert gradient_error > 1e-2


def test_what_is_watched_counts_the_policys_tokens_alone_and_has_no_gradient() -> None:
    # ratios 2, 2, 1/2 at advantage 1, and 1/2 at advantage -1; the other two columns are not the policy's
    logp = torch.tensor([[LN2, LN2, -LN2], [-LN2, 3.0, 3.0]], requires_grad=True)
    mask = torch.tensor([[True, True, True], [True, False, False]])
    terms = grpo_loss(
        logp,
        torch.zeros(2, 3),
        torch.tensor([1.0, -1.0]),
        mask,
        LossConfig(kl_weight=0.1, kl_estimator="k3"),
        torch.zeros(2, 3),
    )
    assert terms.clip_share.item() == pytest.approx(3 / 4)  # all but the 1/2 at advantage 1
    assert terms.ratio_mean.item() == pytest.approx((2 + 2 + 0.5 + 0.5) / 4)
    # K3 of a difference d is e^d - d - 1, where e^d is 1/2 twice and 2 twice
    assert terms.kl.item() == pytest.approx((2 * (0.5 + LN2 - 1) + 2 * (2 - LN2 - 1)) / 4, rel=1e-5)
    assert terms.loss.requires_grad
    for watched in (terms.kl, terms.ratio_mean, terms.clip_share, terms.masked_share):
        assert not watched.requires_grad


@pytest.mark.parametrize("normalization", ["response", "token", "constant"])
def test_a_batch_in_which_the_policy_wrote_nothing_teaches_nothing(normalization: Normalization) -> None:
    logp = torch.zeros(2, 3, requires_grad=True)
    nowhere = torch.zeros(2, 3, dtype=torch.bool)
    config = LossConfig(normalization=normalization, off_policy_delta=0.5, max_tokens=4)
    terms = grpo_loss(logp, torch.zeros(2, 3), torch.tensor([1.0, -1.0]), nowhere, config)
    terms.loss.backward()
    assert logp.grad is not None
    assert not logp.grad.any()
    watched = (terms.loss, terms.kl, terms.ratio_mean, terms.clip_share, terms.masked_share)
    assert [value.item() for value in watched] == [0.0] * 5


def test_the_off_policy_mask_begins_beyond_its_bound_and_below_an_advantage_of_nothing() -> None:
    sampled = torch.tensor([[-1.0], [-1.0], [-1.0]])
    logp = torch.tensor([[-1.5], [-1.75], [-1.75]], requires_grad=True)
    advantage = torch.tensor([-1.0, 0.0, -1.0])
    kept = off_policy_keep(logp, sampled, advantage, everywhere(3, 1), delta=0.5)
    assert kept.tolist() == [True, True, False]


def test_a_kl_without_a_reference_is_refused() -> None:
    with pytest.raises(ValueError, match="reference"):
        grpo_loss(
            torch.zeros(1, 1), torch.zeros(1, 1), torch.ones(1), everywhere(1, 1), LossConfig(kl_weight=0.1)
        )


@pytest.mark.parametrize(
    "fields",
    [
        {"clip_low": 0.0},
        {"clip_low": 1.0},
        {"clip_low": math.nan},
        {"clip_high": 0.0},
        {"clip_high": math.nan},
        {"kl_weight": -0.1},
        {"kl_weight": math.nan},
        {"off_policy_delta": 0.0},
        {"off_policy_delta": math.nan},
    ],
)
def test_a_setting_out_of_range_is_named(fields: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        LossConfig(**fields)  # pyright: ignore[reportArgumentType]

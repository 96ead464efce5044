"""The GRPO objective of DeepSeek-V3.2 (arXiv 2512.02556, section 3.1) as pure functions.

Shape suffixes: B rows (episodes), T tokens of the completion (what follows the prompt). Log-probabilities in
nats. `mask_BT` is True where the policy wrote the token; everything else (environment text, padding) carries
no loss.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Normalization = Literal["response", "token", "constant"]
KlEstimator = Literal["unbiased", "k3"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LossConfig:
    clip_low: float = 0.2
    """The ratio is clipped below at 1 - clip_low."""
    clip_high: float = 0.2
    """The ratio is clipped above at 1 + clip_high."""
    kl_weight: float = 0.0
    """Strength of the KL to the reference policy; 0 leaves the reference out."""
    kl_estimator: KlEstimator = "unbiased"
    """unbiased: K3 times the importance ratio (the paper); k3: without it, as GRPO had it before."""
    off_policy_delta: float | None = None
    """Nats: a row of negative advantage whose mean log(pi_old / pi_theta) exceeds it is masked; None:
    never.
    """
    normalization: Normalization = "response"
    """response: each row's mean, then the rows' (the paper); token: the mean of all tokens; constant: by
    max_tokens.
    """
    max_tokens: int = 1
    """Divisor of a row under `constant`."""

    def __post_init__(self) -> None:
        if not 0 < self.clip_low < 1:
            raise ValueError(f"loss.clip_low must lie in (0, 1), got {self.clip_low}")
        if not self.clip_high > 0:
            raise ValueError(f"loss.clip_high must be above 0, got {self.clip_high}")
        if not self.kl_weight >= 0:
            raise ValueError(f"loss.kl_weight must be at least 0, got {self.kl_weight}")
        if self.off_policy_delta is not None and not self.off_policy_delta > 0:
            raise ValueError(f"loss.off_policy_delta must be above 0 nats, got {self.off_policy_delta}")


@dataclass(frozen=True, kw_only=True, slots=True)
class LossTerms:
    """The loss and what is worth watching of it; all but `loss` are detached scalars."""

    loss: Tensor
    kl: Tensor
    ratio_mean: Tensor
    clip_share: Tensor
    """Share of the policy's tokens whose clipped term is the one in force."""
    masked_share: Tensor
    """Share of rows that the off-policy mask leaves out."""


def importance_ratio(logp_BT: Tensor, sampled_logp_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """pi_theta / pi_old by token, 1 outside the mask; pi_old is what the replica said as it sampled (eq.
    5).
    """
    # Mask before exp: padding may overflow it, and 0 * inf is NaN in the backward pass.
    return torch.where(mask_BT, logp_BT - sampled_logp_BT, 0.0).exp()


def unbiased_kl(logp_BT: Tensor, reference_logp_BT: Tensor, ratio_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """KL(pi_theta || pi_ref) by token: the K3 estimator times the importance ratio, which is not detached
    (eq. 7).
    """
    difference_BT = torch.where(mask_BT, reference_logp_BT - logp_BT, 0.0)
    return ratio_BT * (difference_BT.exp() - difference_BT - 1.0)


def off_policy_keep(
    logp_BT: Tensor, sampled_logp_BT: Tensor, advantage_B: Tensor, mask_BT: Tensor, delta: float
) -> Tensor:
    """[B] bool, False where the advantage is negative and mean log(pi_old / pi_theta) exceeds delta (eq. 8,
    9).
    """
    drift_BT = torch.where(mask_BT, sampled_logp_BT - logp_BT.detach(), 0.0)
    drift_B = drift_BT.sum(dim=1) / mask_BT.sum(dim=1).clamp(min=1)
    return ~((advantage_B < 0) & (drift_B > delta))


def aggregate(loss_BT: Tensor, mask_BT: Tensor, config: LossConfig) -> Tensor:
    """One number from the tokens' losses, by the named normalisation."""
    loss_BT = torch.where(mask_BT, loss_BT, 0.0)
    if config.normalization == "token":
        return loss_BT.sum() / mask_BT.sum().clamp(min=1)
    if config.normalization == "constant":
        return loss_BT.sum() / (loss_BT.shape[0] * config.max_tokens)
    return (loss_BT.sum(dim=1) / mask_BT.sum(dim=1).clamp(min=1)).mean()


def grpo_loss(
    logp_BT: Tensor,
    sampled_logp_BT: Tensor,
    advantage_B: Tensor,
    mask_BT: Tensor,
    config: LossConfig,
    reference_logp_BT: Tensor | None = None,
) -> LossTerms:
    """Clipped policy gradient, off-policy sequence mask and unbiased KL.

    Args:
        logp_BT: [B, T] under the policy that is trained.
        sampled_logp_BT: [B, T] as the replica gave them when it sampled.
        advantage_B: [B], reward minus the group's mean.
        mask_BT: [B, T] bool, True where the policy wrote the token.
        reference_logp_BT: [B, T] under the reference; needed when `kl_weight` is not 0.

    Raises:
        ValueError: the KL is asked for without a reference.
    """
    ratio_BT = importance_ratio(logp_BT, sampled_logp_BT, mask_BT)
    clipped_BT = ratio_BT.clamp(1.0 - config.clip_low, 1.0 + config.clip_high)
    advantage_B1 = advantage_B[:, None]
    policy_BT = -torch.minimum(ratio_BT * advantage_B1, clipped_BT * advantage_B1)
    keep_B = torch.ones_like(advantage_B, dtype=torch.bool)
    if config.off_policy_delta is not None:
        keep_B = off_policy_keep(logp_BT, sampled_logp_BT, advantage_B, mask_BT, config.off_policy_delta)
    loss_BT = policy_BT * keep_B[:, None]
    kl_BT = torch.zeros_like(loss_BT)
    if config.kl_weight:
        if reference_logp_BT is None:
            raise ValueError("loss.kl_weight is above 0, so the reference's log-probabilities are needed")
        weight_BT = ratio_BT if config.kl_estimator == "unbiased" else torch.ones_like(ratio_BT)
        kl_BT = unbiased_kl(logp_BT, reference_logp_BT, weight_BT, mask_BT)
        loss_BT = loss_BT + config.kl_weight * kl_BT
    in_force_BT = (clipped_BT * advantage_B1 < ratio_BT * advantage_B1) & mask_BT
    num_tokens = mask_BT.sum().clamp(min=1)
    return LossTerms(
        loss=aggregate(loss_BT, mask_BT, config),
        kl=torch.where(mask_BT, kl_BT, 0.0).sum().detach() / num_tokens,
        ratio_mean=torch.where(mask_BT, ratio_BT, 0.0).sum().detach() / num_tokens,
        clip_share=in_force_BT.sum().detach() / num_tokens,
        masked_share=1.0 - keep_B.float().mean(),
    )

"""How far a learner is from the engine that played, and its gradient from the right one, by what it keeps.

For `benchmarks.stabilisers`. A variant is what a learner keeps of a rollout's choices, and whether it masks
off-policy rows. The right gradient is that of many more episodes of the same tasks, played with the learner's
own weights in float32, everything kept.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from policies.model.decoder import WorldsmithForCausalLM
from rl.advantage import group_advantages, rewards_of
from rl.losses import LossConfig, grpo_loss, importance_ratio, unbiased_kl
from rl.recorded import Keep
from rl.rescoring import Rows, held_to, lay_out, score, score_all
from rl.trajectory import Trajectory

ROWS = 64
"""Trajectories that are scored at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """keep: the choices that the learner is held to. masked: whether off-policy rows are masked."""

    name: str
    keep: Keep
    masked: bool = True


EVERYTHING = Variant(name="everything on", keep=Keep())
NOTHING = Variant(
    name="everything off", keep=Keep(routing=False, selection=False, sampling_mask=False), masked=False
)
VARIANTS = (
    EVERYTHING,
    Variant(name="keep routing off", keep=Keep(routing=False)),
    Variant(name="keep sampling mask off", keep=Keep(sampling_mask=False)),
    Variant(name="off-policy masking off", keep=Keep(), masked=False),
    Variant(name="keep selection off", keep=Keep(selection=False)),
    NOTHING,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """What one variant makes of one set of rollouts.

    drift_mean, drift_p99, drift_max: |log p(learner) - log p(engine)|, nats, over sampled tokens.
    ratio_mean: of p(learner) / p(engine) over tokens. ess: effective sample size of those ratios, a share of
    the tokens; ess_episodes: of their products over an episode, a share of the episodes.
    masked: share of rows that off-policy masking leaves out; clipped: share of tokens.
    gradient_error: |g - g*| / |g*|, g* being the right one; gradient_cosine: between the two.
    gradient_moved: |g - g'| / |g'|, g' being that of the same rollouts with everything kept.
    """

    variant: str
    drift_mean: float
    drift_p99: float
    drift_max: float
    ratio_mean: float
    ess: float
    ess_episodes: float
    masked: float
    clipped: float
    gradient_error: float
    gradient_cosine: float
    gradient_moved: float
    tokens: int
    episodes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Pass:
    """One pass over rollouts: the gradient, flat, and what came of the loss on the way."""

    gradient: Tensor
    drift: Tensor
    """[sampled tokens] nats: log p(learner) - log p(engine)."""
    drift_episodes: Tensor
    """[episodes], its sum over each."""
    masked: float
    clipped: float


def policy_gradient(
    model: WorldsmithForCausalLM,
    parts: Iterable[tuple[Rows, slice]],
    advantage_B: Tensor,
    variant: Variant,
    loss: LossConfig,
    *,
    temperature: float,
) -> Pass:
    """The gradient of `grpo_loss` over all rows, of which `parts` has a few at a time (`laid_out`)."""
    if not variant.masked:
        loss = replace(loss, off_policy_delta=None)
    drifts: list[Tensor] = []
    sums: list[Tensor] = []
    masked = clipped = 0.0
    model.zero_grad(set_to_none=True)
    for rows, place in parts:
        held = held_to(rows.records, variant.keep)
        logps = score(model, rows, held, temperature=temperature)
        terms = grpo_loss(logps, rows.told_BT, advantage_B[place], rows.sampled_BT, loss)
        share = len(rows.ids) / len(advantage_B)
        (terms.loss * share).backward()
        masked += terms.masked_share.item() * share
        clipped += terms.clip_share.item() * int(rows.sampled_BT.sum())
        drift = torch.where(rows.sampled_BT, logps.detach() - rows.told_BT, 0.0)
        drifts.append(drift[rows.sampled_BT])
        sums.append(drift.sum(1))
    every = torch.cat(drifts)
    return Pass(
        gradient=flat_gradient(model),
        drift=every,
        drift_episodes=torch.cat(sums),
        masked=masked,
        clipped=clipped / len(every),
    )


def laid_out(played: Sequence[Trajectory]) -> Iterator[tuple[Rows, slice]]:
    """The rollouts a few at a time, each few with their place among all."""
    for start in range(0, len(played), ROWS):
        place = slice(start, min(start + ROWS, len(played)))
        yield lay_out(played[place]), place


def flat_gradient(model: WorldsmithForCausalLM) -> Tensor:
    """Of the parameters that learn, float32; takes it from the model."""
    parts = [
        torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten()
        for p in model.parameters()
        if p.requires_grad
    ]
    flat = torch.cat(parts)
    model.zero_grad(set_to_none=True)
    return flat


def freeze_indexer(model: WorldsmithForCausalLM) -> WorldsmithForCausalLM:
    """As in reinforcement learning; ready to score."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".indexer." not in name)
    return model.eval()


def ess(log_ratios: Tensor) -> float:
    """(sum of ratios)^2 / sum of their squares, as a share of their number."""
    ratios = (log_ratios.double() - log_ratios.double().max()).exp()
    return (ratios.sum() ** 2 / (ratios**2).sum() / len(ratios)).item()


def relative_error(found: Tensor, right: Tensor) -> float:
    return ((found - right).norm() / right.norm()).item()


def cosine(left: Tensor, right: Tensor) -> float:
    return torch.nn.functional.cosine_similarity(left.double(), right.double(), dim=0).item()


def cell(variant: Variant, found: Pass, right: Tensor, all_kept: Tensor) -> Cell:
    sizes = found.drift.abs().double()
    return Cell(
        variant=variant.name,
        drift_mean=sizes.mean().item(),
        drift_p99=sizes.quantile(0.99).item(),
        drift_max=sizes.max().item(),
        ratio_mean=found.drift.double().exp().mean().item(),
        ess=ess(found.drift),
        ess_episodes=ess(found.drift_episodes),
        masked=found.masked,
        clipped=found.clipped,
        gradient_error=relative_error(found.gradient, right),
        gradient_cosine=cosine(found.gradient, right),
        gradient_moved=relative_error(found.gradient, all_kept),
        tokens=len(found.drift),
        episodes=len(found.drift_episodes),
    )


def ablate(
    model: WorldsmithForCausalLM,
    played: Sequence[Trajectory],
    right: Tensor,
    loss: LossConfig,
    *,
    group_size: int,
    temperature: float,
) -> list[dict[str, Any]]:
    """A cell for every variant on the same rollouts; `right` is the gradient to compare with."""
    parts = list(laid_out(played))
    advantages = group_advantages(rewards_of(played), group_size)
    kept = policy_gradient(model, parts, advantages, EVERYTHING, loss, temperature=temperature)
    cells: list[dict[str, Any]] = []
    for variant in VARIANTS:
        found = kept
        # With everything kept, masking that leaves nothing out makes no difference.
        if variant.keep != EVERYTHING.keep or (kept.masked and not variant.masked):
            found = policy_gradient(model, parts, advantages, variant, loss, temperature=temperature)
        cells.append(asdict(cell(variant, found, right, kept.gradient)))
    return cells


def kl_gradients(
    model: WorldsmithForCausalLM,
    reference: WorldsmithForCausalLM,
    played: Sequence[Trajectory],
    *,
    temperature: float,
) -> dict[str, dict[str, float]]:
    """Gradients of the mean KL to the reference by each estimator, beside the exact sum over all ids.

    All choices kept; the exact one is taken at the states that the rollouts visited, so that it differs from
    an estimate by the estimator, and by the tokens that happened to be drawn there.
    """
    estimators = {"exact": 0, "unbiased": 1, "ratio detached": 2, "plain K3": 3}
    tokens = sum(t.num_sampled for t in played)
    gradients: dict[str, Tensor] = {}
    values: dict[str, float] = {}
    for name in estimators:
        model.zero_grad(set_to_none=True)
        values[name] = 0.0
        for rows, _ in laid_out(played):
            total = _kl(name, model, reference, rows, temperature) / tokens
            total.backward()
            values[name] += total.item()
        gradients[name] = flat_gradient(model)
    right = gradients["exact"]
    return {
        name: {
            "value": values[name],
            "gradient_error": relative_error(gradients[name], right),
            "gradient_cosine": cosine(gradients[name], right),
        }
        for name in estimators
    }


def _kl(
    name: str,
    model: WorldsmithForCausalLM,
    reference: WorldsmithForCausalLM,
    rows: Rows,
    temperature: float,
) -> Tensor:
    """The sum over the sampled tokens, by one estimator."""
    held = rows.records
    with torch.no_grad():  # the reference chooses experts and positions for itself
        reference_BTV = score_all(
            reference, rows, replace(held, routes=None, selected=None), temperature=temperature
        )
    all_BTV = score_all(model, rows, held, temperature=temperature)
    if name == "exact":
        difference = torch.where(all_BTV > float("-inf"), all_BTV - reference_BTV, 0.0)
        return ((all_BTV.exp() * difference).sum(-1) * rows.sampled_BT).sum()
    targets = rows.ids[:, -rows.sampled_BT.shape[1] :, None]
    logps, reference_logps = (x.gather(-1, targets).squeeze(-1) for x in (all_BTV, reference_BTV))
    ratio = importance_ratio(logps, rows.told_BT, rows.sampled_BT)
    weight = {"unbiased": ratio, "ratio detached": ratio.detach(), "plain K3": torch.ones_like(ratio)}[name]
    return unbiased_kl(logps, reference_logps, weight, rows.sampled_BT).sum()

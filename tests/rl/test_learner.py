"""The learner against TRL itself: the seams we rely on exist, and where both define a loss, the losses
agree.
"""

import inspect
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from trl.trainer.grpo_trainer import GRPOTrainer

from envs.outcome import Cause
from policies.model.config import tiny_config
from policies.model.decoder import WorldsmithForCausalLM
from policies.tokenizer import build_tokenizer
from rl.cold_start import make_rl_optimizer
from rl.learner import Feed, Learner, Objective, make_args
from rl.losses import LossConfig
from rl.recorded import detach
from rl.trajectory import Trajectory

GROUP = 4
ROWS = 8
TRL_NAMES = {"response": "grpo", "token": "bnpo", "constant": "dr_grpo"}
"""What TRL calls the normalisations."""


def random_trajectory(
    rng: np.random.Generator, sample: int, vocab: int, layers: int, version: int = 0
) -> Trajectory:
    prompt, total = int(rng.integers(3, 7)), int(rng.integers(12, 30))
    sampled = [False] * prompt + [bool(x) for x in rng.random(total - prompt) < 0.6]
    sampled[prompt] = True
    return Trajectory(
        task_id=f"t{sample // GROUP}",
        domain="d",
        level=1,
        group=sample // GROUP,
        sample=sample % GROUP,
        attempt=0,
        seed=sample,
        token_ids=tuple(int(x) for x in rng.integers(4, vocab, total)),
        num_prompt_tokens=prompt,
        sampled=tuple(sampled),
        logps=tuple(float(-x) if s else 0.0 for x, s in zip(rng.random(total) * 8, sampled, strict=True)),
        routes=rng.integers(0, 8, (total, layers, 2)).astype(np.uint8),
        versions=(version,) * total,
        reward=float(rng.random() < 0.5),
        cause=Cause.ANSWERED,
        verdict=None,
        messages=(),
        num_turns=1,
        seconds_environment=0.0,
    )


def make_learner(tmp_path: Path, batch: Sequence[Trajectory], loss: LossConfig, micro: int = ROWS) -> Learner:
    torch.manual_seed(0)
    tokenizer = build_tokenizer({"hello": 3})
    model = WorldsmithForCausalLM(tiny_config(len(tokenizer), num_hidden_layers=2, index_topk=8))
    reference = WorldsmithForCausalLM(tiny_config(len(tokenizer), num_hidden_layers=2, index_topk=8)).eval()
    return Learner(
        model,
        tokenizer=tokenizer,
        args=make_args(
            tmp_path,
            rows_per_step=ROWS,
            rows_per_micro_batch=micro,
            group_size=GROUP,
            learning_rate=1e-3,
            num_steps=1,
        ),
        objective=Objective(loss=loss, reference=reference if loss.kl_weight else None),
        feed=Feed(next_batch=lambda: batch, after_step=lambda: None),
        optimizer=make_rl_optimizer(model, 1e-3),
    )


def batch_of(seed: int, vocab: int = 261, layers: int = 1) -> list[Trajectory]:
    rng = np.random.default_rng(seed)
    return [random_trajectory(rng, sample, vocab, layers) for sample in range(ROWS)]


def policy_of(learner: Learner) -> torch.nn.Module:
    assert learner.model is not None
    return learner.model


def gradients_of(loss: torch.Tensor, model: torch.nn.Module) -> torch.Tensor:
    """All gradients of the loss, end to end."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    return torch.cat([g.flatten() for g in gradients if g is not None])


def scored_inputs(learner: Learner) -> dict[str, Any]:
    policy_of(learner).eval()
    learner.current_gradient_accumulation_steps = 1  # the trainer sets it as its loop begins
    return learner._generate_and_score_completions([{"prompt": f"ticket {i}"} for i in range(ROWS)])


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    "loss",
    [
        LossConfig(),
        LossConfig(clip_low=0.1, clip_high=0.3),
        LossConfig(off_policy_delta=0.5),
        LossConfig(kl_weight=0.3),
        LossConfig(kl_weight=0.3, off_policy_delta=1.0),
        LossConfig(kl_weight=0.3, kl_estimator="k3"),
        LossConfig(normalization="token", kl_weight=0.3, off_policy_delta=1.0),
        LossConfig(normalization="constant", max_tokens=40, kl_weight=0.3, off_policy_delta=1.0),
    ],
)
def test_our_loss_is_trls_loss_where_both_define_it(tmp_path: Path, seed: int, loss: LossConfig) -> None:
    learner = make_learner(tmp_path, batch_of(seed), loss)
    inputs = scored_inputs(learner)
    model = policy_of(learner)
    ours = learner.compute_loss(model, dict(inputs))
    our_gradients = gradients_of(ours, model)

    learner.epsilon_low, learner.epsilon_high = loss.clip_low, loss.clip_high
    learner.off_policy_mask_threshold = loss.off_policy_delta
    learner.beta = loss.kl_weight
    learner.args.use_bias_correction_kl = loss.kl_estimator == "unbiased"  # pyright: ignore[reportAttributeAccessIssue]
    learner.loss_type = TRL_NAMES[loss.normalization]
    learner.max_completion_length = loss.max_tokens
    learner._active = detach(inputs)
    theirs = GRPOTrainer._compute_loss(learner, model, dict(inputs))
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5, abs=1e-7)
    assert abs(ours.item()) > 1e-3
    assert torch.allclose(our_gradients, gradients_of(theirs, model), rtol=1e-4, atol=1e-6)
    assert our_gradients.abs().max() > 1e-3


def test_the_batch_holds_what_was_sampled_and_the_paper_s_advantages(tmp_path: Path) -> None:
    batch = batch_of(1)
    inputs = scored_inputs(make_learner(tmp_path, batch, LossConfig()))
    for row, trajectory in enumerate(batch):
        ids = torch.cat([inputs["prompt_ids"][row], inputs["completion_ids"][row]])
        mask = torch.cat([inputs["prompt_mask"][row], inputs["completion_mask"][row]]).bool()
        assert ids[mask].tolist() == list(trajectory.token_ids)
        own = mask & (inputs["recorded_routes"][row, :, 0, 0] >= 0)
        assert inputs["recorded_routes"][row][own].tolist() == trajectory.routes.tolist()
        completion = len(trajectory.token_ids) - trajectory.num_prompt_tokens
        kept = inputs["tool_mask"][row, :completion].bool().tolist()
        assert kept == list(trajectory.sampled[trajectory.num_prompt_tokens :])
        old = inputs["old_per_token_logps"][row, :completion].tolist()
        assert old == pytest.approx(list(trajectory.logps[trajectory.num_prompt_tokens :]))
    rewards = torch.tensor([t.reward or 0.0 for t in batch]).view(-1, GROUP)
    assert torch.allclose(inputs["advantages"].view(-1, GROUP), rewards - rewards.mean(dim=1, keepdim=True))


def test_forced_routes_decide_the_experts_and_leave_the_router_its_gradient(tmp_path: Path) -> None:
    learner = make_learner(tmp_path, batch_of(2), LossConfig())
    inputs = scored_inputs(learner)
    learner.compute_loss(learner.model, dict(inputs)).backward()
    gates = [p for name, p in policy_of(learner).named_parameters() if name.endswith("mlp.gate.weight")]
    assert gates
    assert all(gate.grad is not None and gate.grad.abs().sum() > 0 for gate in gates)
    live = dict(inputs) | {"recorded_routes": torch.full_like(inputs["recorded_routes"], -1)}
    assert (
        learner.compute_loss(learner.model, live).item()
        != learner.compute_loss(learner.model, dict(inputs)).item()
    )


def test_a_step_over_micro_batches_moves_the_policy_as_one_batch_does(tmp_path: Path) -> None:
    moved = []
    for micro in (ROWS, ROWS // 4):
        learner = make_learner(tmp_path / str(micro), batch_of(3), LossConfig(), micro)
        learner.train()
        moved.append({name: p.detach().clone() for name, p in policy_of(learner).named_parameters()})
    for name in moved[0]:
        assert torch.allclose(moved[0][name], moved[1][name], atol=2e-5), name


def test_the_loss_of_a_micro_batch_is_its_share_of_the_step(tmp_path: Path) -> None:
    learner = make_learner(tmp_path, batch_of(3), LossConfig())
    inputs = scored_inputs(learner)
    whole = learner.compute_loss(learner.model, dict(inputs)).item()
    learner.current_gradient_accumulation_steps = 4
    assert learner.compute_loss(learner.model, dict(inputs)).item() == pytest.approx(whole / 4)


@pytest.mark.parametrize("kept", [False, True])
def test_log_probabilities_are_taken_at_the_samplers_temperature(tmp_path: Path, kept: bool) -> None:
    learner = make_learner(tmp_path, batch_of(5), LossConfig())
    inputs, model = scored_inputs(learner), policy_of(learner)
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    held = detach(inputs)
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask, routes=held.routes).logits
    if kept:  # every id: what is renormalised is the same
        held = replace(held, kept=torch.arange(logits.shape[-1]).expand(*ids.shape, -1))
    learner.temperature = 0.5
    width = inputs["completion_ids"].shape[1]
    with torch.no_grad(), learner._held_to(held):
        logps, _, _ = learner._get_per_token_logps_and_entropies(model, ids, mask, width)
    wanted = (logits[:, -width - 1 : -1] / 0.5).log_softmax(-1)
    wanted = wanted.gather(-1, inputs["completion_ids"][..., None]).squeeze(-1)
    real = inputs["completion_mask"].bool()
    assert torch.allclose(logps[real], wanted[real], atol=1e-5)


def test_an_unmeasured_row_takes_no_part_in_the_mean(tmp_path: Path) -> None:
    rewards = (1.0, 0.0, None, 1.0)
    batch = [replace(t, reward=rewards[place % 4]) for place, t in enumerate(batch_of(4))]
    advantages = scored_inputs(make_learner(tmp_path, batch, LossConfig()))["advantages"].tolist()
    assert advantages[:4] == pytest.approx([1 / 3, -2 / 3, 0.0, 1 / 3])


def test_an_unmeasured_row_teaches_nothing(tmp_path: Path) -> None:
    batch = [replace(t, reward=None if t.sample % 2 else 1.0) for t in batch_of(4)]
    inputs = scored_inputs(make_learner(tmp_path, batch, LossConfig()))
    assert inputs["advantages"].tolist() == [0.0] * ROWS


def test_trl_still_has_the_seams_that_the_learner_uses() -> None:
    loss_inputs = inspect.signature(GRPOTrainer.compute_loss).parameters
    assert list(loss_inputs) == ["self", "model", "inputs", "return_outputs", "num_items_in_batch"]
    assert list(inspect.signature(GRPOTrainer._generate_and_score_completions).parameters) == [
        "self",
        "inputs",
    ]
    logps = list(inspect.signature(GRPOTrainer._get_per_token_logps_and_entropies).parameters)
    assert logps[:7] == [
        "self", "model", "input_ids", "attention_mask", "logits_to_keep", "batch_size", "compute_entropy",
    ]  # fmt: skip
    assert "rollout_func" in inspect.signature(GRPOTrainer.__init__).parameters


def test_a_batch_that_does_not_divide_up_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="multiple"):
        make_args(
            tmp_path, rows_per_step=10, rows_per_micro_batch=4, group_size=2, learning_rate=1e-3, num_steps=1
        )

"""The compute ledger, against numbers worked by hand."""

from typing import Any

import pytest

from policies.model.config import tiny_config
from policies.model.decoder import WorldsmithForCausalLM
from rl.budget import Compute, active_parameters, compute_of, step_compute

METRICS: list[dict[str, Any]] = [
    {"kind": "cold_start", "step": 0, "tokens": 40},
    {"kind": "cold_start", "step": 1, "tokens": 100},  # a running total
    {"kind": "eval", "when": "before"},
    {"kind": "rl", "step": 0, "tokens": 50, "trained_tokens": 20},
    {"kind": "rl", "step": 1, "tokens": 60, "trained_tokens": 10},
    {"kind": "distill", "step": 0, "tokens": 30},
]


def compute(metrics: list[dict[str, Any]], *, from_start: bool = False, reference: bool = False) -> Compute:
    return compute_of(metrics, 7, from_start=from_start, with_reference=reference)


def test_what_is_played_is_generated_and_what_is_trained_on_passes_both_ways() -> None:
    spent = compute(METRICS)
    assert spent == Compute(pretraining=6 * 7 * 100, distillation=2 * 7 * 30, rl=7 * (2 * 110 + 6 * 30))
    assert spent.rl_share == pytest.approx((220 + 180) / 600)
    assert spent.as_fields()["post_training_share"] == pytest.approx((220 + 180 + 60) / 600)


def test_stages_add_up_by_what_they_were_spent_on() -> None:
    one, other = Compute(pretraining=1, distillation=2, rl=4), Compute(pretraining=8, distillation=16, rl=32)
    assert one + other == Compute(pretraining=9, distillation=18, rl=36)
    assert (one + other).as_fields() == {
        "pretraining_flops": 9,
        "distillation_flops": 18,
        "rl_flops": 36,
        "rl_share": 4.0,
        "post_training_share": 6.0,
    }
    assert Compute(rl=3).as_fields()["post_training_share"] is None


def test_steps_that_a_resumed_run_wrote_out_of_order_count_once() -> None:
    steps = [{"kind": "cold_start", "step": step, "tokens": tokens} for step, tokens in ((1, 100), (0, 40))]
    assert compute(steps).pretraining == 6 * 7 * 100


def test_a_run_that_starts_from_a_policy_does_no_pretraining() -> None:
    spent = compute(METRICS, from_start=True)
    assert (spent.pretraining, spent.distillation) == (0, 7 * (6 * 100 + 2 * 30))
    assert spent.rl_share is None


def test_the_reference_of_a_kl_is_one_more_forward() -> None:
    assert compute(METRICS, reference=True).rl - compute(METRICS).rl == 2 * 7 * 30


def test_the_sum_of_steps_is_the_run() -> None:
    steps = [step_compute(7, played=p, trained=t, with_reference=False) for p, t in ((50, 20), (60, 10))]
    assert sum(steps, Compute()).rl == compute(METRICS).rl


def test_a_run_that_does_not_tell_what_it_trained_on_counts_all_that_it_played() -> None:
    old = [{"kind": "rl", "step": 0, "tokens": 50}]
    assert compute(old).rl == 7 * (2 + 6) * 50


def test_a_token_passes_through_the_experts_that_it_is_routed_to_and_no_embedding() -> None:
    few = WorldsmithForCausalLM(tiny_config(300, num_hidden_layers=2, n_routed_experts=8))
    many = WorldsmithForCausalLM(tiny_config(300, num_hidden_layers=2, n_routed_experts=16))
    router = few.config.hidden_size * 8  # the only active part that grows with the experts
    assert active_parameters(many) - active_parameters(few) == router
    wide = WorldsmithForCausalLM(tiny_config(400, num_hidden_layers=2, n_routed_experts=8))
    assert active_parameters(wide) - active_parameters(few) == 100 * few.config.hidden_size  # of the head

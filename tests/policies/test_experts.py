"""Routing by hand, expert dispatch against a plain loop, balance."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from policies.model.config import tiny_config
from policies.model.decoder import WorldsmithForCausalLM
from policies.model.experts import (
    MLP,
    Router,
    expert_loads,
    fuse_experts,
    routers,
    split_experts,
    update_correction_bias,
)
from policies.model.swiglu import grouped_swiglu, swiglu


def hand_router(scores: list[float], **overrides) -> tuple[Router, Tensor]:
    """A router and a token whose sigmoid scores are those given."""
    config = tiny_config(32, n_routed_experts=len(scores), **overrides)
    router = Router(config)
    router.weight.data.zero_()
    router.weight.data[:, 0] = torch.logit(torch.tensor(scores))
    return router, torch.eye(1, config.hidden_size)


def test_gates_are_the_unbiased_scores_normalised_and_scaled() -> None:
    router, token = hand_router([0.1, 0.6, 0.3, 0.2], num_experts_per_tok=2, routed_scaling_factor=2.5)
    router.e_score_correction_bias += torch.tensor([0.0, 0.0, -1.0, 0.05])  # lifts expert 3 over expert 2
    gates, experts = router(token)
    assert experts.tolist() == [[1, 3]]
    assert gates[0].tolist() == pytest.approx([2.5 * 0.6 / 0.8, 2.5 * 0.2 / 0.8])


def test_groups_compete_by_the_sum_of_their_two_best() -> None:
    # Group 0 has the single best expert (0.9 + 0.1), group 1 the better pair (0.6 + 0.5).
    scores = [0.9, 0.1, 0.05, 0.6, 0.5, 0.05]
    router, token = hand_router(scores, n_group=2, topk_group=1, num_experts_per_tok=2)
    assert router(token)[1].tolist() == [[3, 4]]


def test_forced_experts_are_weighed_live_and_negative_ones_are_chosen_live() -> None:
    router, token = hand_router([0.1, 0.6, 0.3, 0.2])
    gates, experts = router(token.repeat(2, 1), torch.tensor([[0, 3], [-1, -1]]))
    assert experts.tolist() == [[0, 3], [1, 2]]
    assert gates[0].tolist() == pytest.approx([1 / 3, 2 / 3])
    gates[0, 0].backward()
    assert router.weight.grad is not None
    assert router.weight.grad.abs().sum() > 0


def slow_mixture(x: Tensor, experts: Tensor, gates: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    rows = []
    for token, chosen, weights in zip(x, experts, gates, strict=True):
        total = torch.zeros_like(token)
        for expert, weight in zip(chosen.tolist(), weights, strict=True):
            gate, up = (gate_up[expert] @ token).chunk(2)
            total = total + weight * (down[expert] @ (functional.silu(gate) * up))
        rows.append(total)
    return torch.stack(rows)


def test_grouped_dispatch_and_its_gradients_equal_a_loop_over_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("policies.model.swiglu.BLOCK_ROWS", 5)  # experts span blocks; expert 3 has no token
    torch.manual_seed(0)
    shapes = [(30, 6), (30, 2), (4, 10, 6), (4, 6, 5)]
    x, gates, gate_up, down = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes)
    experts = torch.stack([torch.randperm(3)[:2] for _ in range(30)])
    with torch.autocast("cpu", enabled=False):
        ours = grouped_swiglu(x, experts, gates, gate_up, down)
    theirs = slow_mixture(x, experts, gates, gate_up, down)
    assert torch.allclose(ours, theirs)
    upstream = torch.randn_like(ours)
    leaves = [x, gates, gate_up, down]
    for got, expected in zip(
        torch.autograd.grad(ours, leaves, upstream),
        torch.autograd.grad(theirs, leaves, upstream),
        strict=True,
    ):
        assert torch.allclose(got, expected)


def test_dense_layer_and_its_gradients_equal_plain_autograd() -> None:
    torch.manual_seed(0)
    x, gate, up, down = (
        torch.randn(s, dtype=torch.float64, requires_grad=True) for s in [(7, 6), (5, 6), (5, 6), (6, 5)]
    )
    ours = swiglu(x, gate, up, down)
    theirs = (functional.silu(x @ gate.T) * (x @ up.T)) @ down.T
    assert torch.allclose(ours, theirs)
    upstream = torch.randn_like(ours)
    leaves = [x, gate, up, down]
    for got, expected in zip(
        torch.autograd.grad(ours, leaves, upstream),
        torch.autograd.grad(theirs, leaves, upstream),
        strict=True,
    ):
        assert torch.allclose(got, expected)


def test_loads_count_real_tokens_once_even_under_checkpointing() -> None:
    model = WorldsmithForCausalLM(tiny_config(32)).train()
    model.gradient_checkpointing_enable()
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
    model(torch.randint(0, 32, (2, 4)), attention_mask=mask).logits.sum().backward()
    assert [router.load.sum().item() for router in routers(model)] == [5 * 2] * 3  # 5 tokens, 2 experts each


def test_evaluation_leaves_the_loads_alone() -> None:
    model = WorldsmithForCausalLM(tiny_config(32)).eval()
    model(torch.randint(0, 32, (2, 4)))
    assert not any(router.load.any() for router in routers(model))


def test_balance_lowers_the_bias_of_busy_experts_and_raises_that_of_idle_ones() -> None:
    model = WorldsmithForCausalLM(tiny_config(32, n_routed_experts=4, num_hidden_layers=2))
    (router,) = routers(model)
    router.load += torch.tensor([70.0, 10.0, 20.0, 0.0])
    assert expert_loads(model)[0].tolist() == pytest.approx([0.7, 0.1, 0.2, 0.0])
    update_correction_bias(model, 0.001)
    assert router.e_score_correction_bias.tolist() == pytest.approx([-0.001, 0.001, 0.001, 0.001])
    update_correction_bias(model, 0.001)  # nothing counted since: nothing to correct
    assert router.e_score_correction_bias.tolist() == pytest.approx([-0.001, 0.001, 0.001, 0.001])


def test_experts_split_for_the_disk_and_fuse_again() -> None:
    state = {
        "a.mlp.experts.gate_up_proj": torch.randn(3, 4, 2),
        "a.mlp.experts.down_proj": torch.randn(3, 2, 2),
    }
    split = split_experts(state)
    assert torch.equal(split["a.mlp.experts.2.up_proj.weight"], state["a.mlp.experts.gate_up_proj"][2, 2:])
    assert fuse_experts(split).keys() == state.keys()
    assert all(torch.equal(fuse_experts(split)[name], state[name]) for name in state)


def test_an_expert_without_all_its_matrices_is_named() -> None:
    split = split_experts({"a.mlp.experts.gate_up_proj": torch.randn(3, 4, 2)})
    assert fuse_experts(split).keys() == {"a.mlp.experts.gate_up_proj"}  # the others may be stacked already
    del split["a.mlp.experts.1.up_proj.weight"]
    with pytest.raises(ValueError, match=r"experts are incomplete: a\.mlp\.experts\.1\.up_proj\.weight$"):
        fuse_experts(split)


def test_an_adapter_around_a_projection_takes_part() -> None:
    class Doubled(torch.nn.Module):
        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return 2 * self.inner(x)

    layer = WorldsmithForCausalLM(tiny_config(32)).model.decoder_layers()[0]
    assert isinstance(layer.mlp, MLP)
    x = torch.randn(3, 128)
    before = layer.mlp(x)
    layer.mlp.up_proj = Doubled(layer.mlp.up_proj)  # pyright: ignore[reportAttributeAccessIssue]
    assert torch.allclose(layer.mlp(x), 2 * before)

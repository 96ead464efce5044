"""The whole network: padding, losses that stay apart, checkpointing, bad arguments."""

import pytest
import torch
from torch import Tensor

from policies.model.config import ModelConfig, tiny_config
from policies.model.decoder import WorldsmithForCausalLM
from policies.model.experts import routers


def make_model(seed: int = 0, **overrides) -> WorldsmithForCausalLM:
    """A small network with weights large enough that attention and routing are far from uniform."""
    torch.manual_seed(seed)
    sizes = {"num_hidden_layers": 3, "hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 32}
    model = WorldsmithForCausalLM(tiny_config(64, **(sizes | overrides)))
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            parameter.data.mul_(5)
    for router in routers(model):
        router.e_score_correction_bias.uniform_(-0.1, 0.1)
    return model


def token_ids(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(0, 64, shape, generator=torch.Generator().manual_seed(seed))


def log_probs(logits: Tensor) -> Tensor:
    return logits.log_softmax(-1)


@pytest.mark.parametrize("index_topk", [4, 64])
def test_padding_on_either_side_changes_nothing(index_topk: int) -> None:
    model = make_model(index_topk=index_topk)
    ids = token_ids(1, 9)
    alone = model(ids).logits[0]
    padded = torch.cat((token_ids(1, 3, seed=2), ids, token_ids(1, 4, seed=3)), 1).repeat(2, 1)
    mask = torch.tensor([[0] * 3 + [1] * 9 + [0] * 4, [1] * 16])
    both = model(padded, attention_mask=mask).logits
    assert torch.allclose(both[0, 3:12], alone, atol=1e-5)
    assert both[0, :3].abs().max() == 0
    (alone_grad,) = torch.autograd.grad(model(ids).logits.sum(), model.model.norm.weight)
    (padded_grad,) = torch.autograd.grad(
        model(padded[:1], attention_mask=mask[:1]).logits.sum(), model.model.norm.weight
    )
    assert torch.allclose(alone_grad, padded_grad, rtol=1e-4, atol=1e-4)


def test_logits_to_keep_takes_a_count_or_columns() -> None:
    model = make_model()
    ids = token_ids(2, 7)
    full = model(ids).logits
    assert torch.allclose(model(ids, logits_to_keep=3).logits, full[:, -3:], atol=1e-6)
    assert torch.allclose(model(ids, logits_to_keep=torch.tensor([0, 5])).logits, full[:, [0, 5]], atol=1e-6)


def test_labels_give_the_shifted_cross_entropy() -> None:
    model = make_model()
    ids = token_ids(1, 5)
    labels = ids.clone()
    labels[0, :3] = -100
    logps = log_probs(model(ids).logits[0])
    expected = -(logps[2, ids[0, 3]] + logps[3, ids[0, 4]]) / 2
    assert model(ids, labels=labels).loss.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("mode", ["dense", "sparse"])
def test_the_indexer_learns_from_its_loss_alone_and_gives_nothing_back(mode: str) -> None:
    model = make_model(index_topk=6)
    ids = token_ids(2, 20)
    out = model(ids, indexer_loss=mode)
    out.logits.log_softmax(-1)[..., 0].sum().backward(retain_graph=True)
    assert all(p.grad is None or not p.grad.any() for n, p in model.named_parameters() if ".indexer." in n)
    model.zero_grad()
    out.indexer_loss.backward()
    for name, parameter in model.named_parameters():
        has_gradient = parameter.grad is not None and bool(parameter.grad.any())
        assert has_gradient == (".indexer." in name), name


@pytest.mark.parametrize("mode", ["dense", "sparse"])
def test_indexer_loss_ignores_padding_and_asking_for_it_changes_no_logit(mode: str) -> None:
    model = make_model(index_topk=6)
    ids = token_ids(1, 12)
    out = model(ids, indexer_loss=mode)
    assert torch.allclose(out.logits, model(ids).logits, atol=1e-6)
    padded = torch.cat((ids, token_ids(1, 5, seed=4)), 1)
    mask = torch.tensor([[1] * 12 + [0] * 5])
    again = model(padded, attention_mask=mask, indexer_loss=mode).indexer_loss
    assert again.item() == pytest.approx(out.indexer_loss.item(), rel=1e-5)


def test_training_the_indexer_brings_its_loss_down() -> None:
    model = make_model(index_topk=6)
    ids = token_ids(4, 24)
    parameters = [p for n, p in model.named_parameters() if ".indexer." in n]
    optimizer = torch.optim.Adam(parameters, lr=1e-2)
    losses = []
    for _ in range(25):
        loss = model(ids, indexer_loss="dense").indexer_loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_forced_routes_reproduce_a_forward_after_the_router_moved() -> None:
    model = make_model()
    ids = token_ids(2, 10)
    first = model(ids, return_routes=True)
    assert first.routes.shape == (2, 10, 2, 2)
    assert torch.allclose(model(ids, routes=first.routes).logits, first.logits, atol=1e-6)
    for router in routers(model):
        router.e_score_correction_bias.copy_(torch.randn(8) * 3)  # the bias decides, the gates stay
    assert not torch.allclose(model(ids).logits, first.logits, atol=1e-3)
    assert torch.allclose(model(ids, routes=first.routes).logits, first.logits, atol=1e-5)
    assert torch.allclose(
        model(ids, routes=torch.full_like(first.routes, -1)).logits, model(ids).logits, atol=1e-6
    )


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_gives_the_same_gradients_with_forced_routes(reentrant: bool) -> None:
    model = make_model(index_topk=4).train()
    ids, mask = token_ids(2, 10), torch.tensor([[1] * 10, [1] * 7 + [0] * 3])
    routes = torch.randint(0, 4, (2, 10, 2, 1)).repeat(1, 1, 1, 2)
    routes[..., 1] += 4
    routes[:, -3:] = -1

    def gradients() -> list[Tensor]:
        model.zero_grad()
        out = model(ids, attention_mask=mask, routes=routes, indexer_loss="sparse")
        (log_probs(out.logits)[..., 0].sum() + out.indexer_loss).backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    plain = gradients()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(plain, gradients(), strict=True))


@pytest.mark.parametrize("selector", ["dense", "window", "random"])
def test_other_selectors_choose_by_position(selector: str) -> None:
    lightning = make_model(index_topk=6)
    other = make_model(index_topk=6, token_selector=selector)
    ids = token_ids(1, 20)
    a, b = lightning(ids).logits[0], other(ids).logits[0]
    assert torch.allclose(a[:6], b[:6], atol=1e-5)  # all earlier tokens fit into k
    assert not torch.allclose(a[6:], b[6:], atol=1e-3)
    if selector == "dense":
        wide = make_model(index_topk=64)
        assert torch.allclose(wide(ids).logits[0], b, atol=1e-5)


def test_a_selector_that_is_changed_on_the_way_is_the_one_that_attends() -> None:
    """As a cold start does, from dense attention to the indexer's."""
    model, ids = make_model(index_topk=4, token_selector="dense"), token_ids(2, 24)
    dense = model(ids).logits
    model.config.token_selector = "lightning"
    sparse = make_model(index_topk=4)(ids).logits
    assert torch.equal(model(ids).logits, sparse)
    assert not torch.allclose(dense, sparse, atol=1e-2)


def test_bad_arguments_say_what_was_expected() -> None:
    with pytest.raises(ValueError, match="indexer_loss must be one of"):
        make_model()(token_ids(1, 3), indexer_loss="full")
    with pytest.raises(ValueError, match="0 everywhere"):
        make_model()(token_ids(2, 3), attention_mask=torch.zeros(2, 3))
    with pytest.raises(ValueError, match="takes no position_ids"):
        make_model()(token_ids(1, 3), position_ids=torch.arange(3)[None], use_cache=False)
    with pytest.raises(ValueError, match=r"attention_mask must have shape \(1, 3\)"):
        make_model()(token_ids(1, 3), attention_mask=torch.tensor([[1, 0]]))


def test_tiny_is_small_and_its_sizes_can_be_overridden() -> None:
    model = WorldsmithForCausalLM(tiny_config(1024))
    assert 1_500_000 < model.num_parameters() < 2_200_000
    assert isinstance(model.config, ModelConfig)
    assert tiny_config(32, index_topk=7).index_topk == 7

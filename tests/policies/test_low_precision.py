"""bf16: training under autocast, 16-bit weights in trainer and engine, each beside float32.

A bf16 number has 8 bits, so a product is off by up to 1 in 256; the bounds are a few times what was seen.
"""

import copy

import pytest
import torch
from torch import Tensor

from policies.engine import Engine, Sampling
from policies.model.config import tiny_config
from policies.model.decode import FusedDecoder
from policies.model.decoder import WorldsmithForCausalLM
from policies.replay import pad_routes, pad_selected

LENGTH = 40
MEAN_NATS = 0.02
"""Bound of the mean difference of a log-probability."""
MOST_NATS = 0.15


def make_pair(**overrides) -> tuple[WorldsmithForCausalLM, WorldsmithForCausalLM]:
    """A bf16 network, and one in float32 with the very same numbers; distributions are far from flat."""
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 3, "hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 32}
    model = WorldsmithForCausalLM(tiny_config(64, **(sizes | overrides))).eval()
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            parameter.data.mul_(3)
    torch.nn.Module.to(model, torch.bfloat16)
    return model, copy.deepcopy(model).float()


def token_ids(*shape: int) -> Tensor:
    return torch.randint(0, 64, shape, generator=torch.Generator().manual_seed(1))


def assert_near(low: Tensor, exact: Tensor) -> None:
    difference = (low.detach().float() - exact.detach()).abs()
    assert exact.detach().abs().max() > 3.0  # as far as the numbers themselves reach
    assert difference.mean() < MEAN_NATS
    assert difference.max() < MOST_NATS
    assert difference.max() > 0.0


def score(model: WorldsmithForCausalLM, ids: Tensor, **options) -> Tensor:
    return model(ids[:, :-1], targets=ids[:, 1:], **options).target_logps


@pytest.mark.parametrize("top_k", [LENGTH, 8])
def test_the_trainers_forward_is_near_that_of_float32(top_k: int) -> None:
    low, exact = make_pair(index_topk=top_k)
    ids = token_ids(4, LENGTH + 1)
    with torch.no_grad():
        told = exact(ids[:, :-1], return_selected=True, return_routes=True)
        # What each chooses may differ at a near tie; what is computed of a choice is compared.
        held = {"selected": told.selected, "routes": told.routes}
        logps = score(low, ids, **held)
        assert logps.dtype == torch.float32
        expected = score(exact, ids, **held)
        assert_near(logps, expected)
        with torch.autocast("cpu", torch.bfloat16):
            assert_near(score(exact, ids, **held), expected)


def gradients(model: WorldsmithForCausalLM, ids: Tensor, held: dict[str, Tensor]) -> dict[str, Tensor]:
    model.zero_grad()
    out = model(ids[:, :-1], targets=ids[:, 1:], indexer_loss="sparse", **held)
    (out.indexer_loss - out.target_logps.mean()).backward()
    return {name: p.grad.float() for name, p in model.named_parameters() if p.grad is not None}


def test_gradients_point_where_those_of_float32_do() -> None:
    low, exact = make_pair(index_topk=8)
    ids = token_ids(4, LENGTH + 1)
    with torch.no_grad():
        told = exact(ids[:, :-1], return_selected=True, return_routes=True)
    held = {"selected": told.selected, "routes": told.routes}
    expected = gradients(exact, ids, held)
    in_16_bits = gradients(low, ids, held)
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = gradients(exact, ids, held)
    assert expected.keys() == in_16_bits.keys() == under_autocast.keys()
    for name, gradient in expected.items():
        for found in (in_16_bits[name], under_autocast[name]):
            cosine = torch.nn.functional.cosine_similarity(gradient.flatten(), found.flatten(), dim=0)
            assert cosine > 0.98, name


@pytest.mark.parametrize("overrides", [{"index_topk": 64}, {"index_topk": 8}, {"n_routed_experts": 40}])
def test_the_engine_gives_what_the_trainer_computes(overrides: dict) -> None:
    low, _ = make_pair(**overrides)
    engine = Engine(low, num_slots=3, max_length=64, stop_token_ids=[], record_selected=True)
    prompts = token_ids(3, 20).tolist()
    sampling = Sampling(max_new_tokens=24)
    sessions = [engine.open(prompt, seed=seed, sampling=sampling) for seed, prompt in enumerate(prompts)]
    turns = []
    while len(turns) < len(sessions):
        turns += engine.step()
    records = [engine.close(session) for session in sessions]
    ids = torch.tensor([record.token_ids for record in records])
    shape = {"num_columns": ids.shape[1], "offsets": [0] * len(records)}
    with torch.no_grad():
        logps = score(
            low,
            ids,
            routes=pad_routes([record.routes for record in records], **shape)[:, :-1],
            selected=pad_selected([record.selected for record in records], **shape)[:, :-1],
        )
    recorded = torch.tensor([record.logps for record in records])[:, 1:]
    assert_near(recorded[:, 19:], logps[:, 19:])


def test_the_engine_scores_as_in_float32() -> None:
    low, exact = make_pair(index_topk=64)
    ids = token_ids(60).tolist()
    scores = [
        torch.tensor(Engine(model, num_slots=1, max_length=64, stop_token_ids=[]).score(ids))
        for model in (low, exact)
    ]
    assert_near(*scores)


def test_latents_take_half_the_room_and_index_keys_stay_whole() -> None:
    low, exact = make_pair()
    sizes = [Engine(m, num_slots=2, max_length=16, stop_token_ids=[]).cache_bytes for m in (low, exact)]
    places = 3 * 2 * 16
    assert sizes == [places * (2 * 80 + 4 * 16), places * 4 * (80 + 16)]


def test_router_head_weights_and_output_head_stay_in_float32() -> None:
    low, exact = make_pair()
    x_ND = torch.randn(5, 64)
    for layer, wide in zip(FusedDecoder(low).layers, FusedDecoder(exact).layers, strict=True):
        assert layer.into.dtype == layer.queries.dtype == layer.out.dtype == torch.bfloat16
        assert layer.head_weights is not None
        assert wide.head_weights is None
        assert torch.allclose(x_ND @ layer.head_weights.t(), (x_ND @ wide.into.t())[:, -4:], atol=1e-5)
        if layer.moe is not None and wide.moe is not None:
            assert layer.moe.router is not None
            assert torch.allclose(x_ND @ layer.moe.router.t(), (x_ND @ wide.moe.into.t())[:, -8:], atol=1e-5)
    assert FusedDecoder(low).head.dtype == torch.float32

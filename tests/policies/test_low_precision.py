"""bf16: training under autocast, 16-bit weights in trainer and engine, each beside float32.

A bf16 number has 8 bits, so a product is off by up to 1 in 256; the bounds are a few times what was seen.
"""

import copy

import pytest
import torch
from torch import Tensor

from policies.engine import Engine, Sampling
from policies.model.cache import LatentCache, allocate_cache
from policies.model.config import tiny_config
from policies.model.decode import FusedDecoder, NewTokens
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
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2:
            parameter.data.mul_(3)
        elif name.endswith(("proj.bias", "mqa.bias")):
            parameter.data.normal_()
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


def test_latents_take_half_the_room_and_rotary_and_index_keys_stay_whole() -> None:
    low, exact = make_pair()
    sizes = [Engine(m, num_slots=2, max_length=16, stop_token_ids=[]).cache_bytes for m in (low, exact)]
    places, latent, rope, index = 3 * 2 * 16, 64, 16, 16
    assert sizes == [places * (2 * latent + 4 * rope + 4 * index), places * 4 * (latent + rope + index)]


def read_text(decoder: FusedDecoder, cache: LatentCache, part: slice) -> Tensor:
    """[V] logits after some of LENGTH tokens."""
    places = torch.arange(LENGTH)[part]
    tokens = NewTokens(
        ids=token_ids(LENGTH)[part],
        slots=torch.zeros_like(places),
        positions=places,
        num_cached=int(places[-1]) + 1,
        fewest=int(places[0]) + 1,
    )
    with torch.inference_mode():
        return decoder.forward(tokens, cache, torch.tensor([-1]))[0][0]


def test_the_two_parts_of_a_rotary_key_are_the_key() -> None:
    """Of the first layer, whose input is the same in both: rounding once would be off by 1 in 512."""
    models, caches = make_pair(attention_bias=True), []
    for model in models:
        decoder = FusedDecoder(model)
        caches.append(allocate_cache(model.config, 1, LENGTH, decoder.dtype))
        read_text(decoder, caches[-1], slice(0, LENGTH))
    rank = models[0].config.kv_lora_rank
    first, rest = caches[0].latents[0, 0, :, rank:].float().chunk(2, -1)
    key = caches[1].latents[0, 0, :, rank:]
    assert torch.allclose(first + rest, key, rtol=0, atol=1e-4 * key.abs().max().item())
    assert not torch.allclose(first, key, rtol=0, atol=1e-3 * key.abs().max().item())


def test_attention_sees_the_sum_of_a_keys_two_parts() -> None:
    low, _ = make_pair()
    decoder, rank = FusedDecoder(low), low.config.kv_lora_rank
    cache = allocate_cache(low.config, 1, LENGTH, decoder.dtype)
    read_text(decoder, cache, slice(0, LENGTH - 1))
    last = slice(LENGTH - 1, LENGTH)
    expected = read_text(decoder, cache, last)
    first, rest = cache.latents[..., rank:].clone().chunk(2, -1)
    for parts, same in [((rest, first), True), ((first, 0 * rest), False), ((0 * first, rest), False)]:
        cache.latents[..., rank:] = torch.cat(parts, -1)
        assert torch.allclose(read_text(decoder, cache, last), expected, atol=1e-4) is same


def test_router_rotary_key_head_weights_and_output_head_stay_in_float32() -> None:
    low, exact = make_pair()
    x_ND = torch.randn(5, 64)
    for layer, wide in zip(FusedDecoder(low).layers, FusedDecoder(exact).layers, strict=True):
        assert layer.into.dtype == layer.queries.dtype == layer.out.dtype == torch.bfloat16
        assert layer.exact is not None
        assert wide.exact is None
        assert len(layer.exact) == 16 + 4
        assert torch.allclose(x_ND @ layer.exact.t(), (x_ND @ wide.into.t())[:, -20:], atol=1e-5)
        if layer.moe is not None and wide.moe is not None:
            assert layer.moe.router is not None
            assert torch.allclose(x_ND @ layer.moe.router.t(), (x_ND @ wide.moe.into.t())[:, -8:], atol=1e-5)
    assert FusedDecoder(low).head.dtype == torch.float32

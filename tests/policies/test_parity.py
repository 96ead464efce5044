"""One network, however it is computed: transformers' forward, ours, prefill with decoding, any chunking."""

import itertools

import pytest
import torch
from torch import Tensor
from transformers import DeepseekV32ForCausalLM

from policies.model.cache import allocate_cache
from policies.model.config import tiny_config
from policies.model.decode import FusedDecoder, NewTokens
from policies.model.decoder import WorldsmithForCausalLM
from policies.model.experts import routers
from policies.model.packing import pack

YARN = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 40.0,
    "original_max_position_embeddings": 8,  # short, so that the positions of these tests are stretched
    "beta_fast": 4,
    "beta_slow": 1,
}
SHAPES = {
    "k beyond the context": {"index_topk": 64},
    "k below, many heads": {"index_topk": 8, "index_n_heads": 48},
    "ties at zero": {"index_topk": 6, "index_n_heads": 2},
    "one of everything": {
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "index_n_heads": 1,
        "index_topk": 1,
        "num_experts_per_tok": 1,
    },
    "groups": {"index_topk": 8, "n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5},
    "no dense layer": {"index_topk": 9, "first_k_dense_replace": 0, "v_head_dim": 24, "n_shared_experts": 2},
    "biases, raw gates": {"index_topk": 7, "attention_bias": True, "norm_topk_prob": False},
    "yarn as published": {"index_topk": 64, "rope_parameters": YARN | {"mscale": 1.0, "mscale_all_dim": 1.0}},
    "yarn, plain": {"index_topk": 8, "rope_parameters": YARN | {"truncate": False}},
    "yarn, wide": {
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "index_head_dim": 24,
        "index_topk": 5,
        "n_routed_experts": 16,
        "n_group": 8,
        "topk_group": 3,
        "num_experts_per_tok": 4,
        "rope_parameters": YARN | {"mscale": 0.7, "mscale_all_dim": 1.3, "attention_factor": 1.1},
    },
}


def make_model(seed: int = 0, **overrides) -> WorldsmithForCausalLM:
    """A small network with weights large enough that attention and routing are far from uniform."""
    torch.manual_seed(seed)
    sizes = {"num_hidden_layers": 2, "hidden_size": 48, "intermediate_size": 64, "moe_intermediate_size": 24}
    model = WorldsmithForCausalLM(tiny_config(64, **(sizes | overrides)))
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2:
            parameter.data.mul_(5)
        elif name.endswith("proj.bias"):
            parameter.data.uniform_(-0.5, 0.5)
    for router in routers(model):
        router.e_score_correction_bias.uniform_(-0.1, 0.1)
    return model


def token_ids(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(0, 64, shape, generator=torch.Generator().manual_seed(seed))


def transformers_twin(model: WorldsmithForCausalLM) -> DeepseekV32ForCausalLM:
    twin = DeepseekV32ForCausalLM(model.config).eval()
    twin.load_state_dict(model.state_dict(), strict=True)
    return twin


def stable_topk(plain_topk):
    """torch's topk as it is, but for the indexer's scores: those in a stable order."""

    def topk(scores: Tensor, k: int, dim: int = -1, **options):
        if scores.ndim != 3:  # the router's are matrices
            return plain_topk(scores, k, dim=dim, **options)
        values, indices = torch.sort(scores, dim=dim, descending=True, stable=True)
        return torch.return_types.topk((values[..., :k], indices[..., :k]))

    return topk


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_and_gradients_equal_those_of_transformers(
    shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(**SHAPES[shape])
    twin = transformers_twin(model)
    ids = token_ids(2, 30)
    ours = model(ids).logits
    unpatched = twin(ids).logits
    monkeypatch.setattr(torch.Tensor, "topk", stable_topk(torch.Tensor.topk))
    theirs = twin(ids).logits
    assert ours.abs().max() > 0.5
    assert (ours - theirs).abs().max() < 1e-4
    if shape == "ties at zero":
        assert (ours - unpatched).abs().max() > 1e-2  # the order of ties matters here
    weights = torch.randn_like(ours)
    (ours.log_softmax(-1) * weights).sum().backward()
    (theirs.log_softmax(-1) * weights).sum().backward()
    expected = {name: p.grad for name, p in twin.named_parameters() if p.grad is not None}
    for name, parameter in model.named_parameters():
        if ".indexer." in name:
            assert parameter.grad is None, name
            assert name not in expected
            continue
        assert parameter.grad is not None, name
        scale = expected[name].abs().max()
        # One chosen token leaves the queries no gradient: ours is 0, theirs rounding.
        assert (parameter.grad - expected[name]).abs().max() < 1e-3 * scale + 1e-5, name


def read_in_chunks(model: WorldsmithForCausalLM, ids: Tensor, cuts: list[int]) -> Tensor:
    """Logits [L, V] of one sequence: the first chunk as the trainer reads it, the others over the cache."""
    decoder, cache = FusedDecoder(model), allocate_cache(model.config, 3, ids.shape[1] + 2)
    slot, logits = 1, []
    with torch.no_grad():
        for start, stop in itertools.pairwise(cuts):
            places = torch.arange(start, stop)
            if start == 0:
                batch = pack(1, stop, None, ids.device)
                captured: list[tuple[Tensor, Tensor]] = []
                hidden, _, _ = model.model(ids[:, :stop], batch, capture=captured)
                for layer, rows in enumerate(captured):
                    rope = model.config.qk_rope_head_dim
                    cache.write_captured(layer, places + slot * cache.max_length, rows, rope)
                logits.append(model.lm_head(hidden))
                continue
            tokens = NewTokens(
                ids=ids[0, start:stop],
                slots=torch.full((stop - start,), slot),
                positions=places,
                num_cached=stop,
                fewest=start + 1,
            )
            logits.append(decoder.forward(tokens, cache, torch.arange(stop - start))[0])
    return torch.cat(logits)


SELECTED = [
    {"index_n_heads": 2},
    {"token_selector": "oracle"},
    {"token_selector": "window"},
    {"token_selector": "random", "selector_seed": 3},
    {"token_selector": "lsh", "lsh_tables": 4, "lsh_bits": 3, "lsh_window": 2},
    {"token_selector": "lsh", "lsh_tables": 2, "lsh_bits": 5, "lsh_window": 1, "lsh_candidates": 8},
    {"token_selector": "dense", "rope_parameters": YARN | {"mscale": 1.0, "mscale_all_dim": 1.0}},
    {"index_n_heads": 1, "index_topk": 1, "rope_parameters": YARN},
]


@pytest.mark.parametrize("overrides", SELECTED, ids=lambda o: o.get("token_selector", "lightning"))
def test_any_chunking_gives_the_logits_of_one_forward(
    overrides: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("policies.model.decode.GATHERED_FLOATS", 5_000)  # chunks take several portions
    monkeypatch.setattr("policies.model.blockwise.BLOCK_ROWS", 8)
    model = make_model(**({"index_topk": 6} | overrides)).eval()
    ids = token_ids(1, 33, seed=5)
    with torch.no_grad():
        whole = model(ids).logits[0].log_softmax(-1)
    for cuts in ([0, 33], [0, 20, 33], [0, *range(4, 34)], [0, 3, 4, 17, 18, 33]):
        pieces = read_in_chunks(model, ids, cuts).log_softmax(-1)
        assert (pieces - whole).abs().max() < 1e-5, cuts

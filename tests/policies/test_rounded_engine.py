"""The engine in bfloat16: rounded once, close to itself in every mode, and proved like the other."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from policies.engine import Engine, Sampling, SessionRecord
from policies.model.cache import allocate_cache
from policies.model.config import tiny_config
from policies.model.decode import FusedDecoder
from policies.model.decoder import WorldsmithForCausalLM
from policies.model.experts import routers
from policies.weights import WeightsMismatchError, load_published, publish

CLOSE = 0.05
"""Nats: two roundings of one sum to bfloat16."""


def make_model(seed: int = 0, **overrides: int | str) -> WorldsmithForCausalLM:
    torch.manual_seed(seed)
    sizes = {"num_hidden_layers": 3, "hidden_size": 64, "index_topk": 12} | overrides
    model = WorldsmithForCausalLM(tiny_config(64, **sizes)).eval()
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            parameter.data.mul_(2)
    for router in routers(model):
        router.e_score_correction_bias.uniform_(-0.1, 0.1)
    return model


def make_engine(model: WorldsmithForCausalLM, kind: type[Engine] = Engine) -> Engine:
    return kind(model, num_slots=4, max_length=96, stop_token_ids=[], dtype=torch.bfloat16)


def prompt(length: int, seed: int) -> list[int]:
    return torch.randint(6, 64, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def play(engine: Engine) -> list[SessionRecord]:
    """Four sessions of two turns with an environment's text between."""
    sampling = Sampling(max_new_tokens=10)
    sessions = [engine.open(prompt(9 + 2 * i, i), seed=i, sampling=sampling) for i in range(4)]
    for turn in (0, 1):
        ended: set[int] = set()
        while len(ended) < len(sessions):
            ended |= {one.session for one in engine.step()}
        if turn == 0:
            for session in sessions:
                engine.extend(session, prompt(7, 50 + session))
    return [engine.close(session) for session in sessions]


def drift(record: SessionRecord, logps: Tensor) -> Tensor:
    """|difference| to log-probabilities [T - 1] of all tokens but the first, where the engine sampled."""
    return (logps - torch.tensor(record.logps[1:])).abs()[torch.tensor(record.sampled_mask[1:])]


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"token_selector": "dense"},
        {"token_selector": "oracle"},
        {"token_selector": "lsh", "lsh_tables": 4},
    ],
)
def test_a_rounded_engine_is_near_the_trainer_and_not_equal_to_it(overrides: dict) -> None:
    model = make_model(**overrides)
    drifts = []
    for record in play(make_engine(model)):
        ids = torch.tensor([record.token_ids])
        with torch.no_grad():
            logps = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None]).squeeze(1)
        drifts.append(drift(record, logps))
    every = torch.cat(drifts)
    assert 1e-4 < every.mean().item() < CLOSE  # float32 comes within 1e-5


def test_turns_and_one_flat_reading_agree_as_far_as_two_roundings_do() -> None:
    engine = make_engine(make_model(token_selector="dense"))
    for record in play(engine):
        assert drift(record, torch.tensor(engine.score(record.token_ids))).max() < CLOSE


def test_many_tokens_through_sorted_experts_agree_with_few(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(make_model(token_selector="dense"))
    text = prompt(60, 3)
    few = torch.tensor(engine.score(text))
    monkeypatch.setattr("policies.model.decode.DENSE_EXPERT_TOKENS", 8)
    many = torch.tensor(engine.score(text))
    assert not torch.equal(few, many)
    assert (few - many).abs().max() < CLOSE


def test_weights_are_rounded_once_as_they_arrive_and_the_model_stays_as_published() -> None:
    model, other = make_model(0), make_model(1)
    engine = make_engine(model)
    decoder = engine._fused
    assert decoder.layers[0].into.dtype == decoder.embed.dtype == torch.bfloat16
    assert decoder.head.dtype == torch.float32
    play(engine)
    assert engine._fused is decoder
    engine.load_weights(other.state_dict(), version=1)
    assert engine._fused is not decoder
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())


def test_the_router_is_not_rounded() -> None:
    """Beside the products around it, which are: its scores come of float32 weights."""
    moe = FusedDecoder(make_model(), torch.bfloat16).layers[1].moe
    assert moe is not None
    assert moe.router is not None
    assert moe.router.dtype == torch.float32
    assert not torch.equal(moe.router, moe.router.bfloat16().float())
    columns = moe.down.shape[1]
    assert len(moe.into) == 2 * columns


def test_its_latents_take_half_and_the_keys_stay() -> None:
    config = make_model().config
    whole = allocate_cache(config, 5, 40)
    half = allocate_cache(config, 5, 40, torch.bfloat16)
    rotary = whole.latents[..., : config.qk_rope_head_dim].numel() * 4
    assert half.latents.nbytes - rotary == (whole.latents.nbytes - rotary) / 2
    assert half.index_keys.dtype == torch.float32
    assert make_engine(make_model()).cache_bytes == allocate_cache(config, 4, 96, torch.bfloat16).num_bytes


def test_another_dtype_is_refused() -> None:
    with pytest.raises(ValueError, match=r"dtype float32 or bfloat16, got 2, 64 and torch\.float16"):
        Engine(make_model(), num_slots=2, max_length=64, stop_token_ids=[], dtype=torch.float16)


class ServesOldWeights(Engine):
    """Takes everything and goes on computing with what it had."""

    def load_weights(self, state_dict: Mapping[str, Tensor], *, version: int) -> None:
        before = self._fused
        super().load_weights(state_dict, version=version)
        self._fused = before


def test_new_weights_are_proved_and_the_canary_hears_old_ones() -> None:
    engine = make_engine(make_model(0))
    load_published(engine, publish(make_model(1), version=3))
    assert engine.version == 3
    with pytest.raises(WeightsMismatchError, match="computes other log-probabilities"):
        load_published(make_engine(make_model(0), ServesOldWeights), publish(make_model(1), version=3))

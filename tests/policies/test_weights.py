"""Proof of sync: what did not arrive, is not held or is not served is refused, named and undone."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from policies.engine import Engine
from policies.model.config import tiny_config
from policies.model.decode import FusedDecoder
from policies.model.decoder import WorldsmithForCausalLM
from policies.model.experts import routers
from policies.weights import PublishedWeights, WeightsMismatchError, load_published, publish

BIAS = "model.layers.1.mlp.gate.e_score_correction_bias"


def make_model(seed: int) -> WorldsmithForCausalLM:
    torch.manual_seed(seed)
    model = WorldsmithForCausalLM(tiny_config(64, num_hidden_layers=2, hidden_size=32, index_topk=12)).eval()
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            parameter.data.mul_(4)
    for router in routers(model):
        router.e_score_correction_bias.uniform_(-0.1, 0.1)
    return model


class ForgetsBuffers(Engine):
    """Takes parameters alone, as a walk over `named_parameters` does."""

    def load_weights(self, state_dict: Mapping[str, Tensor], *, version: int) -> None:
        kept = {name: value for name, value in self.model.state_dict().items() if "correction_bias" in name}
        super().load_weights({**state_dict, **kept}, version=version)


class ServesOldWeights(Engine):
    """Takes everything and goes on computing with what it had."""

    def load_weights(self, state_dict: Mapping[str, Tensor], *, version: int) -> None:
        before = FusedDecoder(self.model)
        self.model.load_state_dict(state_dict)
        self._fused, self.version = before, version


def engine(kind: type[Engine] = Engine) -> Engine:
    return kind(make_model(0), num_slots=2, max_length=64, stop_token_ids=[5])


def published(version: int = 3) -> PublishedWeights:
    return publish(make_model(1), version=version)


def test_a_good_update_is_served() -> None:
    served = engine()
    load_published(served, published())
    assert served.version == 3
    assert served.score(range(6, 40)) == pytest.approx(engine_of(1).score(range(6, 40)), abs=1e-6)


def engine_of(seed: int) -> Engine:
    return Engine(make_model(seed), num_slots=2, max_length=64, stop_token_ids=[5])


def test_a_replica_that_forgets_buffers_is_named_and_goes_back() -> None:
    served = engine(ForgetsBuffers)
    before = served.score(range(6, 40))
    with pytest.raises(WeightsMismatchError, match=f"version 3: the replica holds another {BIAS}"):
        load_published(served, published())
    assert served.version == 0
    assert served.score(range(6, 40)) == before


def test_a_replica_that_serves_old_weights_is_heard_by_the_canary() -> None:
    with pytest.raises(WeightsMismatchError, match="computes other log-probabilities"):
        load_published(engine(ServesOldWeights), published())


@pytest.mark.parametrize("fault", ["changed", "missing", "surplus"])
def test_what_did_not_arrive_as_published_is_named(fault: str) -> None:
    good = published()
    tensors = dict(good.tensors)
    if fault == "changed":
        tensors[BIAS] = tensors[BIAS] + 1
    elif fault == "missing":
        del tensors[BIAS]
    else:
        tensors["odd"] = tensors[BIAS]
    served = engine()
    with pytest.raises(WeightsMismatchError, match="odd" if fault == "surplus" else BIAS):
        load_published(served, replace(good, tensors=tensors))
    assert served.version == 0


def test_publishing_counts_no_experts_loads_and_changes_no_mode() -> None:
    model = make_model(0).train()
    loads = [router.load.clone() for router in routers(model)]
    publish(model, version=0)
    assert model.training
    assert all(torch.equal(router.load, load) for router, load in zip(routers(model), loads, strict=True))

"""Choices recorded in one forward and forced in another: selections and experts, in training and decoding."""

import pytest
import torch
from torch import Tensor

from policies.engine import Engine, Sampling
from policies.model.cache import allocate_cache
from policies.model.config import tiny_config
from policies.model.decode import FusedDecoder, NewTokens
from policies.model.decoder import WorldsmithForCausalLM
from policies.model.experts import routers
from policies.replay import pad_kept_sets, pad_selected, record_selected, restrict_logits

LAYERS, K = 2, 5


def make_model(**overrides) -> WorldsmithForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "intermediate_size": 64, "moe_intermediate_size": 24}
    config = tiny_config(64, **(sizes | {"num_hidden_layers": LAYERS, "index_topk": K} | overrides))
    model = WorldsmithForCausalLM(config)
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            parameter.data.mul_(5)
    return model


def token_ids(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(0, 64, shape, generator=torch.Generator().manual_seed(seed))


def move_choices(model: WorldsmithForCausalLM) -> None:
    """New indexers and correction biases: the choices change, what is done with them does not."""
    for name, parameter in model.named_parameters():
        if ".indexer." in name:
            parameter.data.normal_(generator=torch.Generator().manual_seed(len(name)))
    for router in routers(model):
        router.e_score_correction_bias.copy_(torch.linspace(-3, 3, 8))


def decode(
    model: WorldsmithForCausalLM,
    ids: Tensor,
    chunk: int,
    *,
    routes: Tensor | None = None,
    selected: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [T, V], experts and positions [T, L, K] of a sequence that is read over the cache in chunks."""
    decoder, cache = FusedDecoder(model), allocate_cache(model.config, 2, len(ids))
    logits, used, places = [], [], []
    for start in range(0, len(ids), chunk):
        part = slice(start, min(start + chunk, len(ids)))
        record: list[Tensor] = []
        tokens = NewTokens(
            ids=ids[part],
            slots=torch.ones(part.stop - start, dtype=torch.long),
            positions=torch.arange(start, part.stop),
            num_cached=part.stop,
            fewest=start + 1,
            routes=None if routes is None else routes[part],
            selected=None if selected is None else selected[part],
        )
        with torch.no_grad():
            out, experts = decoder.forward(tokens, cache, torch.arange(part.stop - start), record)
        logits.append(out)
        used.append(experts)
        wide = [torch.nn.functional.pad(r, (0, len(ids) - r.shape[1]), value=-1) for r in record]
        places.append(torch.stack(wide, 1))
    return torch.cat(logits), torch.cat(used), torch.cat(places)


def as_sets(places: Tensor) -> list[list[set[int]]]:
    return [[set(layer) - {-1} for layer in token] for token in places.tolist()]


def test_a_recorded_selection_is_in_order_and_within_reach() -> None:
    out = make_model()(token_ids(1, 12), return_selected=True)
    assert out.selected.shape == (1, 12, LAYERS, K)
    assert out.selected[0, 2].tolist() == [[0, 1, 2, -1, -1]] * LAYERS
    for position, token in enumerate(out.selected[0].tolist()):
        for layer in token:
            real = [place for place in layer if place >= 0]
            assert real == sorted(set(real))
            assert len(real) == min(K, position + 1)
            assert max(real) <= position


@pytest.mark.parametrize("chunk", [1, 4, 17])
def test_training_and_decoding_replay_each_others_choices(chunk: int) -> None:
    model, ids = make_model(), token_ids(1, 17)
    first = model(ids, return_selected=True, return_routes=True)
    _, used, places = decode(model, ids[0], chunk)
    assert as_sets(places) == as_sets(first.selected[0])
    assert torch.equal(used.sort(-1).values, first.routes[0].sort(-1).values)
    move_choices(model)
    assert (model(ids).logits - first.logits).abs().max() > 0.1
    again = model(ids, selected=first.selected, routes=first.routes).logits
    assert torch.allclose(again, first.logits, atol=1e-5)
    again = model(ids, selected=places[None], routes=used[None]).logits
    assert torch.allclose(again, first.logits, atol=1e-5)
    logits, experts, _ = decode(model, ids[0], chunk, routes=first.routes[0], selected=first.selected[0])
    assert torch.allclose(logits, first.logits[0], atol=1e-4)
    assert torch.equal(experts, first.routes[0])


def test_one_selectors_choice_is_forced_on_another_model_and_empty_rows_choose_live() -> None:
    ids = token_ids(2, 14)
    sparse, dense = make_model(), make_model(token_selector="dense")
    out = sparse(ids, return_selected=True)
    assert (dense(ids).logits - out.logits).abs().max() > 0.1
    assert torch.allclose(dense(ids, selected=out.selected).logits, out.logits, atol=1e-5)
    nothing = torch.full_like(out.selected, -1)
    assert torch.allclose(sparse(ids, selected=nothing).logits, out.logits, atol=1e-6)
    everything = dense(ids, return_selected=True).selected
    assert everything.shape == (2, 14, LAYERS, 14)
    assert torch.allclose(sparse(ids, selected=everything).logits, dense(ids).logits, atol=1e-5)
    half = everything.clone()
    half[:, :7] = -1  # the first tokens choose live: later ones still see what they did
    assert torch.allclose(
        sparse(ids, selected=half, return_selected=True).selected[:, :7, :, :K], out.selected[:, :7]
    )


def test_a_row_that_names_few_places_attends_to_those_alone_in_training_and_in_decoding() -> None:
    model, ids = make_model(), token_ids(1, 14)
    few = torch.full((1, 14, LAYERS, K), -1)
    few[0, 9:, :, :2] = torch.tensor([3, 8])
    forced = model(ids, selected=few, return_selected=True)
    assert as_sets(forced.selected[0])[9:] == [[{3, 8}] * LAYERS] * 5
    logits, _, places = decode(model, ids[0], 5, selected=few[0])
    assert as_sets(places)[9:] == [[{3, 8}] * LAYERS] * 5
    assert torch.allclose(logits, forced.logits[0], atol=1e-4)


def test_selections_of_padded_rows_count_from_their_first_token() -> None:
    model, ids = make_model(), token_ids(1, 11)
    alone = model(ids, return_selected=True)
    padded = torch.cat((token_ids(1, 3, seed=2), ids), 1)
    mask = torch.tensor([[0] * 3 + [1] * 11])
    out = model(padded, attention_mask=mask, return_selected=True)
    assert torch.equal(out.selected[:, 3:], alone.selected)
    assert (out.selected[:, :3] == -1).all()
    records = [record_selected(alone.selected[0])]
    move_choices(model)
    forced = pad_selected(records, num_columns=14, offsets=[3])
    again = model(padded, attention_mask=mask, selected=forced, return_selected=True)
    assert torch.equal(again.selected[:, 3:], alone.selected)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("forced", [True, False])
def test_checkpointing_changes_no_gradient_and_the_router_still_learns(reentrant: bool, forced: bool) -> None:
    model = make_model(index_n_heads=2).train()
    ids, mask = token_ids(2, 16), torch.tensor([[1] * 16, [1] * 9 + [0] * 7])
    recorded = model(ids, attention_mask=mask, return_selected=True, return_routes=True)
    move_choices(model)

    def run() -> tuple[dict[str, Tensor], Tensor, Tensor]:
        model.zero_grad()
        options = {"selected": recorded.selected, "routes": recorded.routes} if forced else {}
        out = model(ids, attention_mask=mask, indexer_loss="sparse", return_selected=True, **options)
        (out.logits.log_softmax(-1)[..., 0].sum() + out.indexer_loss).backward()
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        return gradients, out.selected, out.logits.detach()

    plain, plain_selected, plain_logits = run()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
    checkpointed, selected, logits = run()
    assert torch.equal(plain_selected, selected)
    assert torch.equal(plain_selected, recorded.selected) == forced
    assert torch.allclose(plain_logits, recorded.logits, atol=1e-5) == forced
    assert torch.equal(plain_logits, logits)
    assert plain.keys() == checkpointed.keys()
    assert all(torch.allclose(plain[name], checkpointed[name], atol=1e-6) for name in plain)
    assert all(plain[f"model.layers.1.{name}"].abs().sum() > 0 for name in ("mlp.gate.weight",))


def test_records_that_cannot_be_are_refused() -> None:
    model, ids = make_model(), token_ids(1, 6)
    selected = torch.full((1, 6, LAYERS, 1), -1)
    selected[0, 2, 1, 0] = 3
    with pytest.raises(ValueError, match=r"token at position 2 attends to a later one \(3\) in layer 1"):
        model(ids, selected=selected)
    with pytest.raises(ValueError, match=r"selected must have shape \(1, 6, 2\) and a fourth"):
        model(ids, selected=selected[:, :, :1])
    with pytest.raises(ValueError, match="routes name expert 8; the model has 8"):
        model(ids, routes=torch.full((1, 6, 1, 2), 8))
    with pytest.raises(ValueError, match=r"routes must have shape \(1, 6, 1, 2\)"):
        model(ids, routes=torch.zeros(1, 6, 2, 2, dtype=torch.long))
    with pytest.raises(ValueError, match="exceed 2 columns"):
        pad_selected([record_selected(selected[0])], num_columns=2, offsets=[0])
    with pytest.raises(ValueError, match="share one number of layers"):
        pad_selected([None], num_columns=2, offsets=[0])


def test_records_of_different_widths_are_padded_together() -> None:
    wide = record_selected(torch.tensor([[[0, -1, -1]], [[0, 1, -1]]]))
    narrow = record_selected(torch.tensor([[[0, -1]]]))
    assert wide.dtype == "uint16"
    padded = pad_selected([wide, narrow, None], num_columns=3, offsets=[1, 0, 0])
    assert padded[0, :, 0].tolist() == [[-1, -1, -1], [0, -1, -1], [0, 1, -1]]
    assert padded[1, :, 0].tolist() == [[0, -1, -1], [-1, -1, -1], [-1, -1, -1]]


def test_kept_sets_give_the_sampled_log_probabilities_again() -> None:
    model = make_model().eval()
    engine = Engine(model, num_slots=1, max_length=40, stop_token_ids=[])
    session = engine.open([1, 2, 3], seed=0, sampling=Sampling(top_k=6, top_p=0.8, max_new_tokens=9))
    while not engine.step():
        pass
    record = engine.close(session)
    ids = torch.tensor([record.token_ids])
    kept = pad_kept_sets([record.kept_sets], num_columns=ids.shape[1], offsets=[0])
    logits = model(ids).logits
    restricted = restrict_logits(logits[:, :-1], kept[:, 1:])
    logps = restricted.log_softmax(-1).gather(2, ids[:, 1:, None])[0, :, 0]
    sampled = torch.tensor(record.sampled_mask[1:])
    assert torch.allclose(logps[sampled], torch.tensor(record.logps[1:])[sampled], atol=1e-5)
    assert torch.equal(restricted[0, ~sampled], logits[0, :-1][~sampled])
    logps[sampled].sum().backward()
    gradient = routers(model)[0].weight.grad
    assert gradient is not None
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0
    with pytest.raises(ValueError, match="names token 64, outside the vocabulary of 64"):
        restrict_logits(logits, torch.full((1, 12, 1), 64))
    with pytest.raises(ValueError, match="12 kept sets at column 1 exceed 12 columns"):
        pad_kept_sets([record.kept_sets], num_columns=12, offsets=[1])

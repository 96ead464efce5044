"""Multi-token prediction: published names, the loss by its definition, files with and without the module."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM, DeepseekV32ForCausalLM

from policies.model.checkpoint import load_model, save_model
from policies.model.config import tiny_config
from policies.model.decoder import WorldsmithForCausalLM
from policies.model.experts import routers
from policies.model.packing import pack


def make_model(depth: int = 1, **overrides) -> WorldsmithForCausalLM:
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 32, "moe_intermediate_size": 16}
    model = WorldsmithForCausalLM(
        tiny_config(64, num_nextn_predict_layers=depth, index_topk=4, **(sizes | overrides))
    )
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            parameter.data.mul_(5)
    return model


def token_ids(*shape: int) -> Tensor:
    return torch.randint(0, 64, shape, generator=torch.Generator().manual_seed(1))


def plain_loss(model: WorldsmithForCausalLM, ids: Tensor, depth: int) -> Tensor:
    """Cross-entropy of module `depth`, every module fed the tokens that have what it needs and no others."""
    out, (hidden, _, _) = torch.empty(0), model.model(ids, pack(1, ids.shape[1], None, ids.device))
    for step, layer in enumerate(model.model.prediction_layers()[:depth], start=1):
        length = ids.shape[1] - step
        mixed = layer.combine(hidden[:length], model.model.embed_tokens(ids[0, step:]))
        inputs = model.model._layer_inputs(pack(1, length, None, ids.device))
        hidden = layer(mixed, inputs, None, None)[0]
        out = layer.shared_head.norm(hidden)
    logits = model.lm_head(out[:-1])
    return functional.cross_entropy(logits, ids[0, depth + 1 :])


def test_names_are_those_of_the_published_checkpoints() -> None:
    names = {n for n in make_model().state_dict() if n.startswith("model.layers.2.")}
    main = {n for n in make_model().state_dict() if n.startswith("model.layers.1.")}
    extra = {"enorm.weight", "hnorm.weight", "eh_proj.weight", "shared_head.norm.weight"}
    assert {n.removeprefix("model.layers.2.") for n in names} == extra | {
        n.removeprefix("model.layers.1.") for n in main
    }


def test_the_projection_reads_the_embedding_first_and_both_normed() -> None:
    layer = make_model().model.prediction_layers()[0]
    hidden, ahead = torch.randn(3, 32), torch.randn(3, 32)
    left, right = layer.eh_proj.weight.chunk(2, dim=1)
    normed = [x / x.square().mean(-1, keepdim=True).sqrt() for x in (ahead, hidden)]
    expected = normed[0] @ left.T + normed[1] @ right.T
    assert torch.allclose(layer.combine(hidden, ahead), expected, atol=1e-4)


def test_without_modules_the_network_is_what_it_was() -> None:
    model, plain = make_model(), make_model(depth=0)
    assert not plain.model.prediction_layers()
    state = {n: v for n, v in model.state_dict().items() if not n.startswith("model.layers.2.")}
    plain.load_state_dict(state, strict=True)
    ids = token_ids(2, 9)
    assert torch.equal(model(ids, labels=ids).loss, plain(ids, labels=ids).loss)
    assert torch.equal(model(ids, labels=ids, predict_ahead=True).loss, plain(ids, labels=ids).loss)


@pytest.mark.parametrize("depth", [1, 2])
def test_the_loss_is_that_of_the_definition(depth: int) -> None:
    model, ids = make_model(depth), token_ids(1, 9)
    expected = torch.stack([plain_loss(model, ids, d) for d in range(1, depth + 1)]).mean()
    got = model(ids, labels=ids, predict_ahead=True).mtp_loss
    assert got.item() == pytest.approx(expected.item(), rel=1e-5)


def test_rows_are_apart_and_padding_takes_no_part() -> None:
    model, ids = make_model(2), token_ids(3, 9)
    mask = torch.tensor([[1] * 9, [0] * 3 + [1] * 6, [1] * 2 + [0] * 7])
    labels = ids.masked_fill(mask == 0, -100)
    rows = [ids[:1], ids[1:2, 3:]]  # the third has two tokens: nothing to predict beyond the next
    alone = [[plain_loss(model, row, depth).item() for row in rows] for depth in (1, 2)]
    first = (alone[0][0] * 7 + alone[0][1] * 4) / 11
    second = (alone[1][0] * 6 + alone[1][1] * 3) / 9
    got = model(ids, attention_mask=mask, labels=labels, predict_ahead=True).mtp_loss
    assert got.item() == pytest.approx((first + second) / 2, rel=1e-5)
    short = model(ids[:, :2], labels=ids[:, :2], predict_ahead=True).mtp_loss
    assert short.item() == 0.0  # not NaN


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_loss_reaches_module_and_main_model_and_loads_are_counted_once(checkpointing: bool) -> None:
    model, ids = make_model().train(), token_ids(2, 9)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model(ids, labels=ids, predict_ahead=True).mtp_loss.backward()
    for name in ("layers.2.enorm", "layers.2.eh_proj", "layers.2.mlp.gate", "layers.0.self_attn.q_b_proj"):
        gradient = model.get_parameter(f"model.{name}.weight").grad
        assert gradient is not None, name
        assert gradient.abs().sum() > 0, name
    loads = [router.load.sum().item() for router in routers(model)]
    assert loads == [2 * 9 * 2, 2 * 8 * 2]  # two experts a token; the module's last token has no next one


def test_asking_for_what_is_not_there_is_one_line() -> None:
    ids = token_ids(1, 5)
    with pytest.raises(ValueError, match="predict_ahead needs labels"):
        make_model()(ids, predict_ahead=True)
    with pytest.raises(ValueError, match="num_nextn_predict_layers >= 1"):
        make_model(depth=0)(ids, labels=ids, predict_ahead=True)
    with pytest.raises(ValueError, match="num_nextn_predict_layers must be at least 0"):
        tiny_config(64, num_nextn_predict_layers=-1)


def test_files_carry_the_copies_and_transformers_ignores_the_module(tmp_path: Path) -> None:
    model, ids = make_model().eval(), token_ids(1, 4)
    save_model(model, tmp_path / "m")
    stored = load_file(tmp_path / "m" / "model.safetensors")
    assert torch.equal(stored["model.layers.2.embed_tokens.weight"], model.model.embed_tokens.weight)
    assert torch.equal(stored["model.layers.2.shared_head.head.weight"], model.lm_head.weight)
    assert "model.layers.2.mlp.experts.7.up_proj.weight" in stored
    loaded = load_model(tmp_path / "m")
    assert all(torch.equal(loaded.state_dict()[n], v) for n, v in model.state_dict().items())
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert type(theirs) is DeepseekV32ForCausalLM
    assert torch.allclose(theirs(ids).logits, model(ids).logits, atol=1e-4)
    other = make_model(depth=1)
    other.load_state_dict(stored)  # as a trainer resumes
    theirs.save_pretrained(tmp_path / "t")  # keeps the config's key, has no module
    assert json.loads((tmp_path / "t" / "config.json").read_text())["num_nextn_predict_layers"] == 1
    without = load_model(tmp_path / "t")
    assert without.config.num_nextn_predict_layers == 0
    assert torch.equal(without(ids).logits, loaded(ids).logits)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.layers.2.shared_head.head.weight", "must equal the main model's"),
        ("model.layers.2.enorm.weight", "1 missing: model.layers.2.enorm.weight"),
    ],
)
def test_a_damaged_module_is_refused(tmp_path: Path, name: str, message: str) -> None:
    save_model(make_model(), tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    if "enorm" in name:
        del stored[name]
    else:
        stored[name] += 1
    save_file(stored, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=message) as error:
        load_model(tmp_path)
    assert name in str(error.value)

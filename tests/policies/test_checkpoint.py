"""Model directories, ours and transformers'."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, DeepseekV32Config, DeepseekV32ForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from policies.model.checkpoint import load_model, register_model, save_model
from policies.model.config import tiny_config
from policies.model.decoder import WorldsmithForCausalLM
from policies.model.experts import routers

SIZES = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 32, "moe_intermediate_size": 16}


def small_model() -> WorldsmithForCausalLM:
    torch.manual_seed(0)
    model = WorldsmithForCausalLM(tiny_config(64, **SIZES))
    for router in routers(model):
        router.e_score_correction_bias.uniform_(-1, 1)
    return model


def test_what_we_save_both_of_us_load(tmp_path: Path) -> None:
    model = small_model()
    save_model(model, tmp_path / "m")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert type(theirs) is DeepseekV32ForCausalLM
    for loaded in (load_model(tmp_path / "m"), theirs):
        state = loaded.state_dict()
        assert state.keys() == model.state_dict().keys()
        assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m"]  # nothing half-written is left


def test_what_transformers_saves_in_shards_we_load(tmp_path: Path) -> None:
    theirs = DeepseekV32ForCausalLM(DeepseekV32Config(**small_model().config.to_dict()))
    theirs.save_pretrained(tmp_path, max_shard_size="100KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    ours = load_model(tmp_path)
    assert all(torch.equal(ours.state_dict()[name], value) for name, value in theirs.state_dict().items())
    assert ours.config.token_selector == "lightning"


def test_tied_embeddings_survive(tmp_path: Path) -> None:
    model = WorldsmithForCausalLM(tiny_config(64, **SIZES, tie_word_embeddings=True))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    save_model(model, tmp_path / "m")
    loaded = load_model(tmp_path / "m")
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)
    assert torch.equal(
        AutoModelForCausalLM.from_pretrained(tmp_path / "m").lm_head.weight, model.lm_head.weight
    )


def test_saving_again_replaces_the_weights_and_keeps_other_files(tmp_path: Path) -> None:
    model = small_model()
    model.save_pretrained(tmp_path / "m")
    (tmp_path / "m" / "tokenizer.json").write_text("{}")
    model.lm_head.weight.data += 1
    model.save_pretrained(tmp_path / "m", state_dict=model.state_dict())
    assert torch.equal(load_model(tmp_path / "m").lm_head.weight, model.lm_head.weight)
    assert (tmp_path / "m" / "tokenizer.json").exists()


def test_the_tensors_of_a_file_load_into_a_module_as_they_are(tmp_path: Path) -> None:
    model, other = small_model(), WorldsmithForCausalLM(tiny_config(64, **SIZES))
    save_model(model, tmp_path)
    other.load_state_dict(load_file(tmp_path / "model.safetensors"))  # as a trainer resumes
    assert all(torch.equal(other.state_dict()[name], value) for name, value in model.state_dict().items())


def all_equal(state: dict, model: WorldsmithForCausalLM) -> bool:
    expected = model.state_dict()
    return state.keys() == expected.keys() and all(torch.equal(state[n], v) for n, v in expected.items())


@pytest.mark.parametrize("experts", ["split", "fused"])
@pytest.mark.parametrize("max_shard_bytes", [None, 30_000])
def test_every_form_on_disk_is_read_by_both(tmp_path: Path, experts, max_shard_bytes: int | None) -> None:
    model = small_model()
    save_model(model, tmp_path / "m", max_shard_bytes=max_shard_bytes, experts=experts)
    files = sorted((tmp_path / "m").glob("*.safetensors"))
    assert (len(files) > 1) == (max_shard_bytes is not None)
    names = {name for file in files for name in load_file(file)}
    assert ("model.layers.1.mlp.experts.gate_up_proj" in names) == (experts == "fused")
    assert ("model.layers.1.mlp.experts.0.gate_proj.weight" in names) == (experts == "split")
    if max_shard_bytes is not None:
        for shard in map(load_file, files):
            assert len(shard) == 1 or sum(v.nbytes for v in shard.values()) <= max_shard_bytes
        index = json.loads((tmp_path / "m" / "model.safetensors.index.json").read_text())
        assert index["weight_map"].keys() == names
        assert index["metadata"]["total_size"] == sum(v.nbytes for f in files for v in load_file(f).values())
    assert all_equal(load_model(tmp_path / "m").state_dict(), model)
    assert all_equal(AutoModelForCausalLM.from_pretrained(tmp_path / "m").state_dict(), model)


def test_an_older_saves_shards_never_win(tmp_path: Path) -> None:
    model = small_model()
    save_model(model, tmp_path / "m", max_shard_bytes=30_000)
    model.lm_head.weight.data += 1
    save_model(model, tmp_path / "m")
    assert all_equal(load_model(tmp_path / "m").state_dict(), model)
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == ["config.json", "model.safetensors"]
    model.lm_head.weight.data += 1
    save_model(model, tmp_path / "m", max_shard_bytes=60_000)
    assert all_equal(load_model(tmp_path / "m").state_dict(), model)
    assert not (tmp_path / "m" / "model.safetensors").exists()


def test_every_tensor_that_does_not_fit_is_named(tmp_path: Path) -> None:
    save_model(small_model(), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.norm.weight"], tensors["model.layers.1.mlp.experts.3.up_proj.weight"]
    tensors["model.layers.0.self_attn.o_proj.weight"] = torch.zeros(2, 3)
    tensors["model.layers.1.mlp.experts.8.up_proj.weight"] = torch.zeros(1)
    tensors["model.layers.7.input_layernorm.weight"] = torch.zeros(1)
    tensors["junk"] = torch.zeros(1)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="weights do not fit") as error:
        load_model(tmp_path)
    assert str(error.value).partition("config.json: ")[2] == (
        "2 missing: model.layers.1.mlp.experts.3.up_proj.weight, model.norm.weight;"
        " 3 surplus: junk, model.layers.1.mlp.experts.8.up_proj.weight,"
        " model.layers.7.input_layernorm.weight;"
        " 1 of another shape: model.layers.0.self_attn.o_proj.weight is [2, 3], expected [32, 192]"
    )


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    save_model(small_model(), tmp_path, max_shard_bytes=30_000)
    first, second = sorted(tmp_path.glob("*.safetensors"))[:2]
    extra = dict(list(load_file(first).items())[:1])
    save_file(load_file(second) | extra, second)
    with pytest.raises(ValueError, match=f"is in two files, {first.name} and {second.name}"):
        load_model(tmp_path)


def test_a_tied_models_own_head_must_be_the_embedding(tmp_path: Path) -> None:
    model = WorldsmithForCausalLM(tiny_config(64, **SIZES, tie_word_embeddings=True))
    save_model(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(tensors | {"lm_head.weight": model.lm_head.weight.detach()}, tmp_path / "model.safetensors")
    assert all_equal(load_model(tmp_path).state_dict(), model)
    save_file(tensors | {"lm_head.weight": model.lm_head.weight.detach() + 1}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"lm_head\.weight must equal"):
        load_model(tmp_path)


def test_once_registered_auto_classes_give_our_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for mapping in (CONFIG_MAPPING, AutoModelForCausalLM._model_mapping):
        monkeypatch.setattr(mapping, "_extra_content", {})
    model = small_model()
    save_model(model, tmp_path / "m", max_shard_bytes=30_000)
    register_model()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert type(loaded) is WorldsmithForCausalLM
    assert all_equal(loaded.state_dict(), model)
    assert not any(router.load.any() for router in routers(loaded))
    ids = torch.randint(0, 64, (1, 9))
    assert torch.equal(loaded(ids, return_routes=True).logits, model.eval()(ids).logits)
    loaded.save_pretrained(tmp_path / "again")
    assert all_equal(load_model(tmp_path / "again").state_dict(), model)


def break_config(folder: Path, **fields: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "config.json").unlink(), "no config.json there"),
        (lambda d: (d / "config.json").write_text("{"), "not readable as JSON"),
        (lambda d: break_config(d, model_type="llama"), "model_type is 'llama', expected 'deepseek_v32'"),
        (lambda d: break_config(d, hidden_size="wide"), "hidden_size"),
        (lambda d: break_config(d, token_selector="hash"), "token_selector 'hash' is unknown"),
        (lambda d: break_config(d, hidden_size=48), "weights do not fit config.json"),
        (lambda d: (d / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda d: (d / "model.safetensors").write_bytes(b"junk"), "weights are not readable"),
        (
            lambda d: (d / "model.safetensors.index.json").write_text(
                '{"weight_map": {"a": "../../secret"}}'
            ),
            "plain file names",
        ),
    ],
)
def test_a_bad_directory_is_one_line(tmp_path: Path, damage, message: str) -> None:
    save_model(small_model(), tmp_path / "m")
    damage(tmp_path / "m")
    with pytest.raises(ValueError, match=message) as error:
        load_model(tmp_path / "m")
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)

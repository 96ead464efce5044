"""Model directories, ours and transformers'."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, DeepseekV32Config, DeepseekV32ForCausalLM

from policies.model.checkpoint import load_model, save_model
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
        (lambda d: break_config(d, token_selector="lsh"), "token_selector 'lsh' is unknown"),
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

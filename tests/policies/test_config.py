"""Configurations: what cannot be is one line; published ones are understood."""

import json
import math
from pathlib import Path

import pytest

from policies.model.config import read_config, selection, softmax_scale, tiny_config, yarn

YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"index_topk": 0}, "index_topk must be at least 1, got 0"),
        ({"num_experts_per_tok": 0}, "num_experts_per_tok must be at least 1"),
        ({"num_hidden_layers": 0, "mlp_layer_types": []}, "num_hidden_layers must be at least 1"),
        (
            {"num_attention_heads": 6},
            r"num_attention_heads \(6\) must be a multiple of num_key_value_heads \(4\)",
        ),
        ({"index_head_dim": 8}, "at most index_head_dim"),
        ({"qk_rope_head_dim": 5}, "even rotary dimension"),
        ({"token_selector": "windows"}, "did you mean 'window'"),
        ({"token_selector": "LSH"}, "expected dense, lightning, lsh, oracle, random, window"),
        ({"selector_seed": -1}, "selector_seed must lie in"),
        ({"lsh_bits": 17}, r"lsh_bits must lie in \[1, 16\], got 17"),
        ({"lsh_tables": 0}, "lsh_tables must be at least 1"),
        ({"lsh_candidates": 8}, r"lsh_candidates must be 0 or at least lsh_window \(16\), got 8"),
        ({"n_group": 3}, "must be a multiple of n_group"),
        ({"n_group": 8}, "a group needs at least 2 experts"),
        ({"topk_group": 2}, r"topk_group \(2\) exceeds n_group \(1\)"),
        ({"n_group": 4, "num_experts_per_tok": 3}, "exceeds the 2 experts"),
        ({"hidden_act": "gelu"}, "hidden_act must be 'silu'"),
        ({"mlp_layer_types": ["dense"]}, r"number of `mlp_layer_types` \(1\)"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "must be 'default' or 'yarn'"),
        ({"rope_parameters": YARN | {"factor": 0.5}}, "rope_parameters.factor must be at least 1"),
        ({"rope_parameters": YARN | {"beta_fast": "fast"}}, "rope_parameters.beta_fast must be a number"),
        (
            {"rope_parameters": YARN | {"original_max_position_embeddings": 0}},
            "original_max_position_embeddings must be at least 1, got 0",
        ),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1}}, "rope_theta must be above 1, got 1"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers must be at most 1000"),
        ({"num_nextn_predict_layers": 10**9}, "num_nextn_predict_layers must be at most 1000"),
        ({"hidden_size": 10**18}, "hidden_size must be at most 100000000"),
        ({"rope_parameters": ["yarn"]}, "rope_parameters must be a mapping"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"rope_parameters": YARN | {"factor": math.nan}}, "rope_parameters.factor must be a number"),
    ],
)
def test_what_cannot_be_is_one_line(overrides: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        tiny_config(32, **overrides)
    assert "\n" not in str(error.value)


def test_lsh_takes_four_times_k_candidates_unless_told() -> None:
    assert selection(tiny_config(32, index_topk=10)).candidates == 40
    assert selection(tiny_config(32, index_topk=2, lsh_window=30)).candidates == 30
    assert selection(tiny_config(32, lsh_candidates=99)).candidates == 99


def test_published_keys_are_understood(tmp_path: Path) -> None:
    """As in deepseek-ai/DeepSeek-V3.2's config.json: scaling apart from theta, its kind under `type`."""
    fields = tiny_config(32).to_dict() | {
        "rope_theta": 10_000,
        "rope_scaling": {
            "type": "yarn",
            "factor": 40,
            "original_max_position_embeddings": 4096,
            "beta_fast": 32,
            "beta_slow": 1,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
        },
        "max_position_embeddings": 163_840,
        "num_nextn_predict_layers": 1,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
    }
    del fields["rope_parameters"]
    (tmp_path / "config.json").write_text(json.dumps(fields))
    config = read_config(tmp_path)
    stretched = yarn(config)
    assert stretched is not None
    assert (stretched.factor, stretched.original_length, stretched.attention_factor) == (40, 4096, 1.0)
    # The published scale: (nope + rope)^-0.5 times the square of 0.1 ln 40 + 1.
    assert softmax_scale(config) == pytest.approx(48**-0.5 * 1.3688879454113936**2)
    assert config.num_nextn_predict_layers == 1

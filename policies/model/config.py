"""The model's configuration: transformers' `deepseek_v32` keys and a few of our own.

A `config.json` of ours loads in transformers (which ignores the extra keys) and theirs loads here.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers.models.deepseek_v32 import DeepseekV32Config

from policies.model.rotary import Yarn, yarn_mscale
from policies.model.selectors import SELECTORS, Selection, nearest_name

_MAX_LSH_BITS = 16
_MAX_LAYERS = 1_000
_MAX_SIZE = 100_000_000
"""Beyond these a configuration is a mistake, or meant to exhaust the machine that reads it."""
_POSITIVE = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "moe_intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "v_head_dim",
    "kv_lora_rank",
    "q_lora_rank",
    "n_routed_experts",
    "n_shared_experts",
    "num_experts_per_tok",
    "n_group",
    "topk_group",
    "index_n_heads",
    "index_head_dim",
    "index_topk",
    "lsh_tables",
    "lsh_bits",
    "lsh_window",
)
_AT_LEAST_ONE = ("factor", "original_max_position_embeddings")
_ROPE_NUMBERS = (
    "rope_theta",
    "factor",
    "original_max_position_embeddings",
    "beta_fast",
    "beta_slow",
    "attention_factor",
    "mscale",
    "mscale_all_dim",
)


@strict
class ModelConfig(DeepseekV32Config):
    """A DeepSeek-V3.2 decoder's sizes, plus the way its sparse attention chooses tokens."""

    model_type = "deepseek_v32"

    token_selector: str = "lightning"
    """lightning (the learned indexer) | dense (every earlier token) | oracle (what dense attention looks at)
    | lsh (hashes of the indexer's vectors) | window (the latest) | random."""
    selector_seed: int = 0
    """Of `random` and of `lsh`'s planes; at least 0."""
    lsh_tables: int = 8
    lsh_bits: int = 6
    """A table has 2^bits buckets."""
    lsh_candidates: int = 0
    """Candidates a query that are ranked exactly, at most; 0: four times index_topk."""
    lsh_window: int = 16
    """So many latest tokens are candidates whatever their hash."""
    num_nextn_predict_layers: int = 0
    """Multi-token-prediction modules, each a token further ahead."""


def check_config(config: ModelConfig) -> None:
    """Raise one ValueError line for sizes that the decoder cannot be built with."""
    for name in _POSITIVE:
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(config, name)}")
    _check_attention(config)
    _check_selector(config)
    _check_experts(config)
    if config.num_nextn_predict_layers < 0:
        raise ValueError(
            f"num_nextn_predict_layers must be at least 0, got {config.num_nextn_predict_layers}"
        )
    if config.hidden_act != "silu":
        raise ValueError(f"hidden_act must be 'silu', got {config.hidden_act!r}")
    kinds = config.mlp_layer_types or []
    if len(kinds) != config.num_hidden_layers or set(kinds) - {"dense", "sparse"}:
        raise ValueError(
            f"mlp_layer_types must name 'dense' or 'sparse' for each of {config.num_hidden_layers} layers,"
            f" got {len(kinds)} names: {', '.join(sorted(set(map(str, kinds))))}"
        )
    yarn(config)


def _check_limits(fields: Mapping[str, Any]) -> None:
    """Before lists of so many layers are made."""
    for name in (*_POSITIVE, "num_nextn_predict_layers"):
        value = fields.get(name)
        limit = _MAX_LAYERS if name.endswith("_layers") else _MAX_SIZE
        if isinstance(value, int) and value > limit:
            raise ValueError(f"{name} must be at most {limit}, got {value}")


def _check_attention(config: ModelConfig) -> None:
    if config.num_attention_heads % config.num_key_value_heads:
        raise ValueError(
            f"num_attention_heads ({config.num_attention_heads}) must be a multiple of num_key_value_heads"
            f" ({config.num_key_value_heads})"
        )
    if config.qk_rope_head_dim > config.index_head_dim or config.qk_rope_head_dim % 2:
        raise ValueError(
            f"qk_rope_head_dim must be even and at most index_head_dim ({config.index_head_dim}),"
            f" got {config.qk_rope_head_dim}"
        )


def _check_selector(config: ModelConfig) -> None:
    if config.token_selector not in SELECTORS:
        raise ValueError(
            f"token_selector {config.token_selector!r} is unknown; expected {', '.join(sorted(SELECTORS))}"
            f"{nearest_name(config.token_selector)}"
        )
    if not 0 <= config.selector_seed < 1 << 31:
        raise ValueError(f"selector_seed must lie in [0, 2^31), got {config.selector_seed}")
    if config.lsh_bits > _MAX_LSH_BITS:
        raise ValueError(f"lsh_bits must lie in [1, {_MAX_LSH_BITS}], got {config.lsh_bits}")
    if config.lsh_candidates != 0 and config.lsh_candidates < config.lsh_window:
        raise ValueError(
            f"lsh_candidates must be 0 or at least lsh_window ({config.lsh_window}),"
            f" got {config.lsh_candidates}"
        )


def _check_experts(config: ModelConfig) -> None:
    if config.n_routed_experts % config.n_group:
        raise ValueError(
            f"n_routed_experts ({config.n_routed_experts}) must be a multiple of n_group ({config.n_group})"
        )
    if config.n_routed_experts // config.n_group < 2:
        raise ValueError(
            f"a group needs at least 2 experts, got {config.n_routed_experts} in {config.n_group} groups"
        )
    if config.topk_group > config.n_group:
        raise ValueError(f"topk_group ({config.topk_group}) exceeds n_group ({config.n_group})")
    reachable = config.n_routed_experts // config.n_group * config.topk_group
    if config.num_experts_per_tok > reachable:
        raise ValueError(
            f"num_experts_per_tok ({config.num_experts_per_tok}) exceeds the {reachable} experts of"
            f" topk_group={config.topk_group} groups"
        )


def selection(config: ModelConfig) -> Selection:
    """How the model's sparse attention chooses."""
    return Selection(
        selector=SELECTORS[config.token_selector],
        top_k=config.index_topk,
        seed=config.selector_seed,
        tables=config.lsh_tables,
        bits=config.lsh_bits,
        window=config.lsh_window,
        candidates=config.lsh_candidates or max(4 * config.index_topk, config.lsh_window),
    )


def rope_parameters(config: DeepseekV32Config) -> dict[str, Any]:
    return dict(config.rope_parameters or {})


def rope_theta(config: DeepseekV32Config) -> float:
    return float(rope_parameters(config).get("rope_theta", 10_000.0))


def yarn(config: DeepseekV32Config) -> Yarn | None:
    """The stretching of rotary positions, None where there is none; a ValueError line for what cannot be."""
    given = rope_parameters(config)
    rope_type = given.get("rope_type", "default")
    if rope_type == "default":
        return None
    if rope_type != "yarn":
        raise ValueError(f"rope_parameters.rope_type must be 'default' or 'yarn', got {rope_type!r}")
    for name in _AT_LEAST_ONE:
        if given.get(name) is None:
            raise ValueError(f"rope_parameters.{name} is missing; rope_type 'yarn' needs it")
    factor, mscale, all_dim = given["factor"], given.get("mscale"), given.get("mscale_all_dim")
    attention_factor = given.get("attention_factor")
    if attention_factor is None:
        attention_factor = yarn_mscale(factor)
        if mscale and all_dim:
            attention_factor = yarn_mscale(factor, mscale) / yarn_mscale(factor, all_dim)
    return Yarn(
        factor=factor,
        original_length=given["original_max_position_embeddings"],
        beta_fast=given.get("beta_fast") or 32.0,
        beta_slow=given.get("beta_slow") or 1.0,
        attention_factor=attention_factor,
        truncate=bool(given.get("truncate", True)),
        logit_factor=yarn_mscale(factor, all_dim) ** 2 if all_dim else 1.0,
    )


def _check_rope_numbers(given: object) -> None:
    """Before transformers computes with them."""
    if not isinstance(given, dict):
        raise ValueError(f"rope_parameters must be a mapping, got {given!r}")
    for name in _ROPE_NUMBERS:
        value = given.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise ValueError(f"rope_parameters.{name} must be a number of at least 0, got {value!r}")
        if value < 1 and name in _AT_LEAST_ONE:
            raise ValueError(f"rope_parameters.{name} must be at least 1, got {value!r}")
        if value <= 1 and name == "rope_theta":
            raise ValueError(f"rope_parameters.rope_theta must be above 1, got {value!r}")


def softmax_scale(config: ModelConfig) -> float:
    """What attention's products are multiplied with."""
    stretched = yarn(config)
    plain = (config.qk_nope_head_dim + config.qk_rope_head_dim) ** -0.5
    return plain if stretched is None else plain * stretched.logit_factor


def read_config(directory: Path) -> ModelConfig:
    """The configuration in `directory/config.json`; a ValueError of one line says what is wrong with it."""
    if not (directory / "config.json").exists():
        raise ValueError(f"{directory}: no config.json there; expected a model directory")
    return read_config_file(directory / "config.json")


def read_config_file(path: Path) -> ModelConfig:
    """As `read_config`, for a file of any name."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not readable as JSON ({error})") from None
    found = fields.get("model_type") if isinstance(fields, dict) else None
    if found != "deepseek_v32":
        raise ValueError(f"{path}: model_type is {found!r}, expected 'deepseek_v32'")
    try:
        return make_config(fields)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def make_config(fields: Mapping[str, Any]) -> ModelConfig:
    """Checked. Raises ValueError, one line, for a configuration that cannot be."""
    for key in ("rope_parameters", "rope_scaling"):
        if fields.get(key) is not None:
            _check_rope_numbers(fields[key])
    _check_limits(fields)
    try:
        config = ModelConfig(**{key: value for key, value in fields.items() if key != "model_type"})
    except Exception as error:  # transformers' and huggingface_hub's checks share no base with ValueError
        raise ValueError(" ".join(str(error).split())) from None
    check_config(config)
    return config


def tiny_config(vocab_size: int, **overrides: Any) -> ModelConfig:
    """About 1.7 M parameters at a vocabulary of 1,024: learns on two CPU cores in minutes."""
    sizes: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": 128,
        "intermediate_size": 256,
        "moe_intermediate_size": 96,
        "num_hidden_layers": 4,
        "first_k_dense_replace": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 16,
        "v_head_dim": 48,
        "kv_lora_rank": 64,
        "q_lora_rank": 96,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "n_group": 1,
        "topk_group": 1,
        "routed_scaling_factor": 1.0,
        "index_n_heads": 4,
        "index_head_dim": 16,
        "index_topk": 64,
        "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        "tie_word_embeddings": False,
        "use_cache": False,
    }
    return make_config(sizes | overrides)

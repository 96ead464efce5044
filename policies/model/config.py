"""The model's configuration: transformers' `deepseek_v32` keys and one of our own, `token_selector`.

A `config.json` of ours loads in transformers (which ignores the extra key) and theirs loads here.
"""

import json
from pathlib import Path
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers.models.deepseek_v32 import DeepseekV32Config

from policies.model.selectors import SELECTORS, nearest_name


@strict
class ModelConfig(DeepseekV32Config):
    """A DeepSeek-V3.2 decoder's sizes, plus the way its sparse attention chooses tokens."""

    model_type = "deepseek_v32"

    token_selector: str = "lightning"
    """lightning (the learned indexer) | dense (every earlier token) | window (the latest) | random."""


def check_config(config: ModelConfig) -> None:
    """Raise one ValueError line for sizes that the decoder cannot be built with."""
    if config.token_selector not in SELECTORS:
        raise ValueError(
            f"token_selector {config.token_selector!r} is unknown; expected {', '.join(sorted(SELECTORS))}"
            f"{nearest_name(config.token_selector)}"
        )
    if config.qk_rope_head_dim > config.index_head_dim or config.qk_rope_head_dim % 2:
        raise ValueError(
            f"qk_rope_head_dim must be even and at most index_head_dim ({config.index_head_dim}),"
            f" got {config.qk_rope_head_dim}"
        )
    if config.n_routed_experts % config.n_group:
        raise ValueError(
            f"n_routed_experts ({config.n_routed_experts}) must be a multiple of n_group ({config.n_group})"
        )
    if config.n_routed_experts // config.n_group < 2:
        raise ValueError(
            f"a group needs at least 2 experts, got {config.n_routed_experts} in {config.n_group} groups"
        )
    reachable = config.n_routed_experts // config.n_group * config.topk_group
    if config.num_experts_per_tok > reachable:
        raise ValueError(
            f"num_experts_per_tok ({config.num_experts_per_tok}) exceeds the {reachable} experts of"
            f" topk_group={config.topk_group} groups"
        )
    if config.hidden_act != "silu":
        raise ValueError(f"hidden_act must be 'silu', got {config.hidden_act!r}")
    rope_type = rope_parameters(config).get("rope_type", "default")
    if rope_type != "default":
        raise ValueError(
            f"rope_parameters.rope_type must be 'default', got {rope_type!r}: YaRN is not implemented"
        )


def rope_parameters(config: DeepseekV32Config) -> dict[str, Any]:
    return dict(config.rope_parameters or {})


def rope_theta(config: DeepseekV32Config) -> float:
    return float(rope_parameters(config).get("rope_theta", 10_000.0))


def read_config(directory: Path) -> ModelConfig:
    """The configuration in `directory/config.json`; a ValueError of one line says what is wrong with it."""
    path = directory / "config.json"
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{directory}: no config.json there; expected a model directory") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not readable as JSON ({error})") from None
    found = fields.get("model_type") if isinstance(fields, dict) else None
    if found != "deepseek_v32":
        raise ValueError(f"{path}: model_type is {found!r}, expected 'deepseek_v32'")
    try:
        config = ModelConfig(**{key: value for key, value in fields.items() if key != "model_type"})
        check_config(config)
    except Exception as error:  # huggingface_hub's strict errors share no base with ValueError
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from None
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
    config = ModelConfig(**(sizes | overrides))
    check_config(config)
    return config

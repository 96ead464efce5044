"""Model directories: `config.json` and safetensors with transformers' per-expert names.

What `save_model` writes transformers' AutoModelForCausalLM loads, and `load_model` reads both. A directory
appears whole or not at all.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from policies.model.config import read_config
from policies.model.decoder import WorldsmithForCausalLM
from policies.model.experts import fuse_experts, split_experts

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def load_model(directory: str | Path) -> WorldsmithForCausalLM:
    """The module in a `deepseek_v32` directory, ours or transformers'; a bad one is one ValueError line."""
    directory = Path(directory)
    config = read_config(directory)
    tensors = _read_tensors(directory)
    last = f"model.layers.{config.num_hidden_layers}."
    tensors = {name: value for name, value in tensors.items() if not name.startswith(last)}  # the MTP layer
    model = WorldsmithForCausalLM(config)
    try:
        state = fuse_experts(tensors)
    except (KeyError, RuntimeError) as error:
        raise ValueError(
            f"{directory}: experts are incomplete or differ in shape ({_one_line(error)})"
        ) from None
    if config.tie_word_embeddings:
        state.setdefault("lm_head.weight", state.get("model.embed_tokens.weight", torch.empty(0)))
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise ValueError(f"{directory}: weights do not fit config.json: {_one_line(error)[:400]}") from None
    return model.eval()


def save_model(
    model: WorldsmithForCausalLM, directory: str | Path, *, state_dict: Mapping[str, Tensor] | None = None
) -> None:
    """Write `config.json` and the weights; an existing directory keeps its other files."""
    directory = Path(directory)
    state = model.state_dict() if state_dict is None else state_dict
    tensors = split_experts({name: value.detach().cpu() for name, value in state.items()})
    if model.config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    config = model.config.to_dict() | {"architectures": ["DeepseekV32ForCausalLM"]}
    config["dtype"] = str(model.dtype).removeprefix("torch.")
    directory.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        save_file(tensors, staging / WEIGHTS, metadata={"format": "pt"})
        (staging / "config.json").write_text(
            json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8"
        )
        for path in staging.iterdir():
            _sync(path)
        if not directory.exists():
            staging.chmod(0o755)
            staging.rename(directory)
        else:
            for path in staging.iterdir():
                path.replace(directory / path.name)
            _sync(directory)
        _sync(directory.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _read_tensors(directory: Path) -> dict[str, Tensor]:
    index = directory / INDEX
    files = [directory / WEIGHTS]
    try:
        if index.exists():
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            # A name from a file we do not trust must not lead out of the directory.
            if any(Path(shard).name != shard for shard in shards):
                raise ValueError(f"{index}: shard names must be plain file names, got {sorted(shards)[:3]}")
            files = [directory / shard for shard in sorted(shards)]
        tensors: dict[str, Tensor] = {}
        for path in files:
            tensors |= load_file(path)
    except FileNotFoundError as error:
        raise ValueError(f"{directory}: {Path(error.filename or files[0]).name} is missing") from None
    except (OSError, SafetensorError, json.JSONDecodeError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{directory}: weights are not readable ({_one_line(error)})") from None
    return tensors


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

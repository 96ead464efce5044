"""Model directories: `config.json` and safetensors under the published names.

What `save_model` writes transformers' AutoModelForCausalLM loads, and `load_model` reads both: one file or
shards, experts one by one or stacked. A new directory appears whole or not at all; nothing is loaded from one
whose tensors do not all fit.
"""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)

from policies.model.config import ModelConfig, read_config
from policies.model.decoder import WorldsmithForCausalLM
from policies.model.experts import split_experts
from policies.model.mtp import SHARED_COPY

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


def register_model() -> None:
    """Let AutoModelForCausalLM give our module, not transformers', for `deepseek_v32` in this process."""
    AutoConfig.register("deepseek_v32", ModelConfig, exist_ok=True)
    AutoModelForCausalLM.register(ModelConfig, WorldsmithForCausalLM, exist_ok=True)
    # Experts are stacked on loading as transformers stacks those of its own class.
    mapping = get_checkpoint_conversion_mapping("deepseek_v32") or []
    register_checkpoint_conversion_mapping(WorldsmithForCausalLM.__name__, mapping, overwrite=True)


def load_model(directory: str | Path) -> WorldsmithForCausalLM:
    """The module in a `deepseek_v32` directory, ours or transformers'.

    Raises ValueError, one line, for a directory that cannot be loaded; it names every tensor that is missing,
    surplus or of another shape.
    """
    directory = Path(directory)
    config = read_config(directory)
    stored = _stored_tensors(directory)
    ahead = [
        f"model.layers.{config.num_hidden_layers + depth}."
        for depth in range(config.num_nextn_predict_layers)
    ]
    if ahead and not any(name.startswith(tuple(ahead)) for name in stored):
        config.num_nextn_predict_layers = 0  # transformers keeps the key and drops the module
    _check_tensors(directory, config, stored)
    tensors: dict[str, Tensor] = {}
    for path in sorted({entry.path for entry in stored.values()}):
        tensors |= _read(path)
    _check_copies(directory, tensors, config.tie_word_embeddings)
    model = WorldsmithForCausalLM(config)
    if config.tie_word_embeddings:
        tensors[_HEAD] = tensors[_EMBEDDING]
    model.load_state_dict(tensors, strict=True)
    return model.eval()


def save_model(
    model: WorldsmithForCausalLM,
    directory: str | Path,
    *,
    state_dict: Mapping[str, Tensor] | None = None,
    max_shard_bytes: int | None = None,
    experts: Literal["split", "fused"] = "split",
) -> None:
    """Write `config.json` and the weights; an existing directory keeps its other files.

    Args:
        max_shard_bytes: files of at most so many bytes each (a larger tensor has one alone); None: one file.
        experts: one tensor an expert, as published, or stacked, as in memory.
    """
    directory = Path(directory)
    tensors = _disk_tensors(model, model.state_dict() if state_dict is None else state_dict, experts)
    config = model.config.to_dict() | {"architectures": ["DeepseekV32ForCausalLM"]}
    config["dtype"] = str(model.dtype).removeprefix("torch.")
    directory.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        _write_weights(tensors, staging, max_shard_bytes)
        (staging / "config.json").write_text(
            json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8"
        )
        for path in staging.iterdir():
            _sync(path)
        if not directory.exists():
            staging.chmod(0o755)
            staging.rename(directory)
        else:
            _replace_files(staging, directory)
        _sync(directory.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _disk_tensors(
    model: WorldsmithForCausalLM, state: Mapping[str, Tensor], experts: Literal["split", "fused"]
) -> dict[str, Tensor]:
    """The tensors under their names on disk, none sharing memory with another."""
    config = model.config
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    if experts == "split":
        tensors = split_experts(tensors)
    for depth in range(config.num_nextn_predict_layers):
        # Published prediction modules carry copies of the embedding and the head that they share.
        stem = f"model.layers.{config.num_hidden_layers + depth}"
        tensors[f"{stem}.embed_tokens.weight"] = tensors[_EMBEDDING].clone()
        tensors[f"{stem}.shared_head.head.weight"] = tensors[_HEAD].clone()
    if config.tie_word_embeddings:
        tensors.pop(_HEAD, None)
    return tensors


def _write_weights(tensors: dict[str, Tensor], folder: Path, max_shard_bytes: int | None) -> None:
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, value in tensors.items():
        if max_shard_bytes is not None and shards[-1] and size + value.nbytes > max_shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = value
        size += value.nbytes
    if len(shards) == 1:
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        return
    files = [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    for file, shard in zip(files, shards, strict=True):
        save_file(shard, folder / file, metadata={"format": "pt"})
    index = {
        "metadata": {"total_size": sum(value.nbytes for value in tensors.values())},
        "weight_map": {name: file for file, shard in zip(files, shards, strict=True) for name in shard},
    }
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _replace_files(staging: Path, directory: Path) -> None:
    """Move the new files in, the index last, and remove weights that they replace: an old index would win."""
    new = {path.name for path in staging.iterdir()}
    for path in sorted(staging.iterdir(), key=lambda path: path.name == INDEX):
        path.replace(directory / path.name)
    old = [path for path in directory.iterdir() if _SHARD.fullmatch(path.name) or path.name == WEIGHTS]
    for path in [directory / INDEX, *old]:
        if path.name not in new:
            path.unlink(missing_ok=True)
    _sync(directory)


@dataclass(frozen=True, slots=True)
class _Stored:
    path: Path
    shape: tuple[int, ...]


def _stored_tensors(directory: Path) -> dict[str, _Stored]:
    """What the files hold, from their headers alone."""
    stored: dict[str, _Stored] = {}
    for path in _weight_files(directory):
        with _readable(path), safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                if name in stored:
                    raise ValueError(
                        f"{directory}: {name} is in two files, {stored[name].path.name} and {path.name}"
                    )
                stored[name] = _Stored(path, tuple(file.get_slice(name).get_shape()))
    return stored


def _weight_files(directory: Path) -> list[Path]:
    index = directory / INDEX
    if not index.exists():
        return [directory / WEIGHTS]
    try:
        files = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        # A name from a file we do not trust must not lead out of the directory.
        odd = sorted(file for file in files if Path(file).name != file)
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{directory}: weights are not readable ({_one_line(error)})") from None
    if odd:
        raise ValueError(f"{index}: shard names must be plain file names, got {odd[:3]}")
    return [directory / file for file in sorted(files)]


def _read(path: Path) -> dict[str, Tensor]:
    with _readable(path), safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turns what safetensors raises into one line about the file."""
    try:
        yield
    except FileNotFoundError:
        raise ValueError(f"{path.parent}: {path.name} is missing") from None
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: weights are not readable ({_one_line(error)})") from None


def _check_tensors(directory: Path, config: ModelConfig, stored: Mapping[str, _Stored]) -> None:
    """Raise one ValueError that names every tensor that does not fit the configuration."""
    expected = _expected_shapes(config, stored)
    missing = sorted(expected.keys() - stored.keys() - _optional(config))
    surplus = sorted(stored.keys() - expected.keys())
    other = [
        f"{name} is {list(stored[name].shape)}, expected {list(shape)}"
        for name, shape in sorted(expected.items())
        if name in stored and stored[name].shape != shape
    ]
    if not (missing or surplus or other):
        return
    parts = [("missing", missing), ("surplus", surplus), ("of another shape", other)]
    found = "; ".join(f"{len(names)} {kind}: {', '.join(names)}" for kind, names in parts if names)
    raise ValueError(f"{directory}: weights do not fit config.json: {found}")


def _expected_shapes(config: ModelConfig, stored: Mapping[str, _Stored]) -> dict[str, tuple[int, ...]]:
    """Names on disk and shapes; experts in the form that the file has them in, layer by layer."""
    with torch.device("meta"):
        model = WorldsmithForCausalLM(config)
    shapes: dict[str, tuple[int, ...]] = {}
    for name, value in model.state_dict().items():
        if ".mlp.experts." not in name or name in stored:
            shapes[name] = tuple(value.shape)
            continue
        stem, _, part = name.rpartition(".")
        count, rows, columns = value.shape
        parts = [("gate", rows // 2), ("up", rows // 2)] if part == "gate_up_proj" else [("down", rows)]
        for expert in range(count):
            for piece, size in parts:
                shapes[f"{stem}.{expert}.{piece}_proj.weight"] = (size, columns)
    for name in _copies(config):
        shapes[name] = (config.vocab_size, config.hidden_size)
    return shapes


def _copies(config: ModelConfig) -> Iterator[str]:
    for depth in range(config.num_nextn_predict_layers):
        stem = f"model.layers.{config.num_hidden_layers + depth}"
        yield from (f"{stem}.embed_tokens.weight", f"{stem}.shared_head.head.weight")


def _optional(config: ModelConfig) -> set[str]:
    return {*_copies(config), *([_HEAD] if config.tie_word_embeddings else [])}


def _check_copies(directory: Path, tensors: dict[str, Tensor], tied: bool) -> None:
    """Drop copies of the embedding and the head; each must be what it is a copy of."""
    embedding = tensors[_EMBEDDING]
    head = embedding if tied else tensors[_HEAD]
    copies = [name for name in tensors if SHARED_COPY.fullmatch(name) or (tied and name == _HEAD)]
    differing = [
        name
        for name in copies
        if not torch.equal(tensors.pop(name), embedding if name.endswith("embed_tokens.weight") else head)
    ]
    if differing:
        raise ValueError(f"{directory}: {', '.join(differing)} must equal the main model's, which is shared")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Checkpoints of a run: weights, optimizer and counters in safetensors and JSON, each with its digest.

A checkpoint is a directory that appears whole. Loading verifies every file and falls back to the newest one
that is sound, saying which was not.
"""

import hashlib
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from policies.model.checkpoint import load_model, save_model
from policies.model.decoder import WorldsmithForCausalLM
from rl.run_files import publish_directory

KEPT = 2
"""The newest checkpoints that are kept of each stage."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """state: what the stage needs beside the tensors, as JSON."""

    path: Path
    step: int
    state: dict[str, Any]

    def has(self, name: str) -> bool:
        return (self.path / name).exists()

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()


def save_checkpoint(
    directory: Path,
    *,
    step: int,
    model: WorldsmithForCausalLM,
    optimizers: Sequence[torch.optim.Optimizer],
    state: dict[str, Any],
    files: Mapping[str, bytes] | None = None,
) -> Path:
    """Writes `directory/step-N`, atomically, and removes all but the newest `KEPT`.

    files: what else belongs to it, by name.
    """
    directory.mkdir(parents=True, exist_ok=True)
    final = directory / f"step-{step}"
    temporary = directory / f".step-{step}.tmp"
    if temporary.exists():
        shutil.rmtree(temporary)
    save_model(model, temporary)
    for number, optimizer in enumerate(optimizers):
        save_file(_optimizer_tensors(optimizer), temporary / f"optimizer-{number}.safetensors")
    for name, content in (files or {}).items():
        (temporary / name).write_bytes(content)
    digests = {path.name: _digest(path) for path in sorted(temporary.iterdir())}
    manifest = {"step": step, "state": state, "files": digests}
    (temporary / "manifest.json").write_text(json.dumps(manifest, indent=1))
    publish_directory(temporary, final)
    for old in _steps(directory)[:-KEPT]:
        shutil.rmtree(directory / f"step-{old}")
    return final


def latest_checkpoint(directory: Path) -> Checkpoint | None:
    """The newest sound checkpoint, or None."""
    for step in reversed(_steps(directory)):
        path = directory / f"step-{step}"
        fault = _fault(path)
        if fault is None:
            manifest = json.loads((path / "manifest.json").read_text())
            return Checkpoint(path=path, step=step, state=manifest["state"])
        sys.stderr.write(f"checkpoint {path} is passed over: {fault}\n")
    return None


def load_checkpoint_model(checkpoint: Checkpoint) -> WorldsmithForCausalLM:
    return load_model(checkpoint.path)


def load_optimizers(checkpoint: Checkpoint, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Puts the saved moments back, by the parameters' order."""
    for number, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in load_file(checkpoint.path / f"optimizer-{number}.safetensors").items():
            index, field = name.split(".", 1)
            state.setdefault(int(index), {})[field] = tensor
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{field}": tensor.contiguous()
        for index, fields in state.items()
        for field, tensor in fields.items()
    }


def _steps(directory: Path) -> list[int]:
    names = [path.name for path in directory.glob("step-*") if path.is_dir()] if directory.is_dir() else []
    return sorted(int(name.removeprefix("step-")) for name in names if name.removeprefix("step-").isdigit())


def _fault(path: Path) -> str | None:
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        for name, expected in manifest["files"].items():
            if _digest(path / name) != expected:
                return f"{name} is not what was written"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

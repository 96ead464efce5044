"""Checkpoints of a run: weights, optimizer and counters in safetensors and JSON, each with its digest.

A checkpoint is a directory that appears whole, with a manifest of every file's size and digest and a digest
of its own. Loading verifies all of it. One that is not sound is renamed to `step-N.damaged`, said aloud, and
the one before it is used. `latest` names the newest, for other programs to read.
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

from envs.files import write_whole
from envs.task import canonical_json, digest
from policies.model.checkpoint import load_model, save_model
from policies.model.decoder import WorldsmithForCausalLM
from rl.run_files import publish_directory

MANIFEST, MANIFEST_VERSION = "manifest.json", 2
KEPT = 2
"""The newest checkpoints that are kept of each stage."""


class CheckpointVersionError(ValueError):
    """Sound or not, this program does not read it."""


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
    contents = {
        path.name: {"bytes": path.stat().st_size, "sha256": _digest(path)}
        for path in sorted(temporary.iterdir())
    }
    manifest = {"version": MANIFEST_VERSION, "step": step, "state": state, "files": contents}
    manifest["digest"] = digest(canonical_json(manifest))
    (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1))
    publish_directory(temporary, final)
    write_whole(directory / "latest", f"{final.name}\n".encode())
    for old in checkpoint_steps(directory)[:-KEPT]:
        _remove(directory / f"step-{old}")
    return final


def latest_checkpoint(directory: Path) -> Checkpoint | None:
    """The newest sound checkpoint, or None. Raises CheckpointVersionError."""
    for step in reversed(checkpoint_steps(directory)):
        path = directory / f"step-{step}"
        try:
            return Checkpoint(path=path, step=step, state=_verified(path)["state"])
        except CheckpointVersionError:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            aside = _quarantine(path)
            sys.stderr.write(
                f"checkpoint {path} is damaged ({_reason(error)}): it is now {aside.name},"
                " and the one before it is used\n"
            )
    return None


def checkpoint_at(directory: Path, step: int) -> Checkpoint:
    """That one. Raises ValueError when it is damaged, OSError when it is not there; it is left as it is."""
    path = directory / f"step-{step}"
    return Checkpoint(path=path, step=step, state=_verified(path)["state"])


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


def checkpoint_steps(directory: Path) -> list[int]:
    """Steps with a checkpoint, sound or not, in their order."""
    names = [path.name for path in directory.glob("step-*") if path.is_dir()] if directory.is_dir() else []
    return sorted(int(name.removeprefix("step-")) for name in names if name.removeprefix("step-").isdigit())


def _verified(path: Path) -> dict[str, Any]:
    """The manifest, after all of the checkpoint proved to be what was written. Raises ValueError, OSError."""
    manifest = json.loads((path / MANIFEST).read_text())
    if "digest" not in manifest and "version" not in manifest:
        raise CheckpointVersionError(f"{path}: an older Worldsmith wrote it; choose another --out")
    told = manifest.pop("digest")
    if told != digest(canonical_json(manifest)):
        raise ValueError(f"{MANIFEST} is not what was written")
    if manifest["version"] != MANIFEST_VERSION:
        version = manifest["version"]
        raise CheckpointVersionError(f"{path}: version {version}, this Worldsmith reads {MANIFEST_VERSION}")
    for name, expected in manifest["files"].items():
        size = (path / name).stat().st_size
        if size != expected["bytes"]:
            raise ValueError(f"{name} has {size} bytes, {expected['bytes']} were written")
        if _digest(path / name) != expected["sha256"]:
            raise ValueError(f"{name} is not what was written")
    return manifest


def _quarantine(path: Path) -> Path:
    """Out of the way of later ones of its step, and kept for who wants to look."""
    number = 0
    while (aside := path.with_name(f"{path.name}.damaged{f'-{number}' if number else ''}")).exists():
        number += 1
    return path.rename(aside)


def _remove(path: Path) -> None:
    """A kill in the middle leaves nothing that looks like a checkpoint."""
    gone = path.with_name(f".{path.name}.gone")
    shutil.rmtree(gone, ignore_errors=True)
    path.rename(gone)
    shutil.rmtree(gone)


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, ValueError | OSError) else f"{MANIFEST} is not one of ours"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

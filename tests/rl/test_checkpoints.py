"""A checkpoint is taken whole or put aside, whatever happened to its bytes."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from policies.model.config import tiny_config
from policies.model.decoder import WorldsmithForCausalLM
from rl.checkpoints import KEPT, latest_checkpoint, load_checkpoint_model, load_optimizers, save_checkpoint
from rl.cold_start import make_rl_optimizer

FILES = (
    "manifest.json",
    "config.json",
    "model.safetensors",
    "optimizer-0.safetensors",
    "buffer.safetensors",
)


@pytest.fixture(scope="module")
def model() -> WorldsmithForCausalLM:
    torch.manual_seed(0)
    return WorldsmithForCausalLM(tiny_config(40, num_hidden_layers=2, hidden_size=32, index_topk=8))


def save(directory: Path, model: WorldsmithForCausalLM, step: int) -> Path:
    optimizer = make_rl_optimizer(model, 1e-3)
    model(torch.tensor([[5, 6, 7]])).logits.sum().backward()
    optimizer.step()
    return save_checkpoint(
        directory,
        step=step,
        model=model,
        optimizers=[optimizer],
        state={"tokens": 7 * step},
        files={"buffer.safetensors": b"groups"},
    )


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def tear(path: Path) -> None:
    """As after a power cut: the size is right, the end was never written."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 0x01
    path.write_bytes(content)


def test_what_was_saved_comes_back_and_the_newest_few_are_kept(
    tmp_path: Path, model: WorldsmithForCausalLM
) -> None:
    for step in (2, 4, 6):
        save(tmp_path, model, step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-4", "step-6"]
    assert KEPT == 2
    assert (tmp_path / "latest").read_text().strip() == "step-6"
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert (found.step, found.state, found.read("buffer.safetensors")) == (6, {"tokens": 42}, b"groups")
    loaded = load_checkpoint_model(found)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))
    optimizer = make_rl_optimizer(loaded, 1e-3)
    load_optimizers(found, [optimizer])
    assert {float(state["step"]) for state in optimizer.state.values()} == {1.0}


@pytest.mark.parametrize("harm", [truncate, tear, flip_a_bit, Path.unlink])
@pytest.mark.parametrize(
    "name",
    ["manifest.json", "model.safetensors", "optimizer-0.safetensors", "buffer.safetensors", "config.json"],
)
def test_a_damaged_one_is_put_aside_aloud_and_the_one_before_is_used(
    tmp_path: Path,
    model: WorldsmithForCausalLM,
    capsys: pytest.CaptureFixture[str],
    harm: Callable[[Path], None],
    name: str,
) -> None:
    save(tmp_path, model, 1)
    damaged = save(tmp_path, model, 2)
    harm(damaged / name)
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 1
    said = capsys.readouterr().err
    assert str(damaged) in said
    assert "step-2.damaged" in said
    assert said.count("\n") == 1
    assert (tmp_path / "step-2.damaged").is_dir()
    save(tmp_path, model, 2)  # the run comes by again
    again = latest_checkpoint(tmp_path)
    assert again is not None
    assert again.step == 2


def test_every_bit_of_a_manifest_counts(tmp_path: Path, model: WorldsmithForCausalLM) -> None:
    manifest = save(tmp_path, model, 1) / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"tokens": 7', '"tokens": 8'))
    assert latest_checkpoint(tmp_path) is None


def test_nothing_is_no_checkpoint(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "absent") is None


def test_one_of_another_version_is_refused_and_left_alone(
    tmp_path: Path, model: WorldsmithForCausalLM
) -> None:
    path = save(tmp_path, model, 1)
    manifest = path / "manifest.json"
    fields = json.loads(manifest.read_text())
    del fields["version"], fields["digest"]
    manifest.write_text(json.dumps(fields))
    with pytest.raises(ValueError, match="an older Worldsmith wrote it"):
        latest_checkpoint(tmp_path)
    assert path.exists()

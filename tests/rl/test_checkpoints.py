"""A checkpoint is taken whole or put aside, whatever happened to its bytes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from envs.task import canonical_json, digest
from policies.model.config import tiny_config
from policies.model.decoder import WorldsmithForCausalLM
from rl.checkpoints import (
    KEPT,
    CheckpointVersionError,
    checkpoint_at,
    checkpoint_steps,
    latest_checkpoint,
    load_checkpoint_model,
    load_optimizers,
    save_checkpoint,
)
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


def test_each_optimizer_gets_its_own_moments_back(tmp_path: Path, model: WorldsmithForCausalLM) -> None:
    made = [make_rl_optimizer(model, 1e-3) for _ in range(2)]
    for optimizer, scale in zip(made, (1.0, 3.0), strict=True):
        model.zero_grad()
        (scale * model(torch.tensor([[5, 6, 7]])).logits.sum()).backward()
        for _ in range(int(scale)):
            optimizer.step()
    save_checkpoint(tmp_path, step=1, model=model, optimizers=made, state={})
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert (found.has("optimizer-1.safetensors"), found.has("optimizer-2.safetensors")) == (True, False)
    empty = [make_rl_optimizer(model, 7e-3) for _ in range(2)]
    load_optimizers(found, empty)
    for before, after in zip(made, empty, strict=True):
        assert after.param_groups[0]["lr"] == 7e-3  # rates stay as they are
        theirs, ours = before.state_dict()["state"], after.state_dict()["state"]
        assert ours.keys() == theirs.keys()
        for index, fields in theirs.items():
            assert all(torch.equal(ours[index][name], value) for name, value in fields.items())


def test_the_newest_is_by_number_and_other_names_are_none(
    tmp_path: Path, model: WorldsmithForCausalLM
) -> None:
    for step in (9, 10):
        save(tmp_path, model, step)
    (tmp_path / "step-11").write_text("a file")
    (tmp_path / "step-12.damaged").mkdir()
    (tmp_path / "step-").mkdir()
    assert checkpoint_steps(tmp_path) == [9, 10]
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 10


def test_what_a_kill_left_of_a_checkpoint_is_no_part_of_the_next(
    tmp_path: Path, model: WorldsmithForCausalLM
) -> None:
    left = tmp_path / ".step-3.tmp"
    left.mkdir(parents=True)
    (left / "model-00007-of-00009.safetensors").write_bytes(b"torn")
    assert not (save(tmp_path, model, 3) / "model-00007-of-00009.safetensors").exists()


def test_one_that_is_damaged_again_and_again_is_kept_each_time(
    tmp_path: Path, model: WorldsmithForCausalLM
) -> None:
    for name in ("step-1.damaged", "step-1.damaged-1", "step-1.damaged-2"):
        truncate(save(tmp_path, model, 1) / "model.safetensors")
        assert latest_checkpoint(tmp_path) is None
        assert (tmp_path / name).is_dir()


def test_an_older_one_is_removed_under_another_name(
    tmp_path: Path, model: WorldsmithForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2):
        save(tmp_path, model, step)
    remove = shutil.rmtree

    def killed(path: Path, **rest: Any) -> None:
        if path.name.endswith(".gone") and path.exists():
            raise KeyboardInterrupt
        remove(path, **rest)

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, model, 3)
    assert checkpoint_steps(tmp_path) == [2, 3]  # what is left of the first looks like none
    monkeypatch.undo()
    save(tmp_path, model, 4)
    assert checkpoint_steps(tmp_path) == [3, 4]


def test_one_that_is_asked_for_by_its_step_is_verified_and_left_as_it_is(
    tmp_path: Path, model: WorldsmithForCausalLM
) -> None:
    path = save(tmp_path, model, 1)
    assert checkpoint_at(tmp_path, 1).state == {"tokens": 7}
    flip_a_bit(path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors is not what was written"):
        checkpoint_at(tmp_path, 1)
    assert path.is_dir()
    with pytest.raises(OSError, match="step-2"):
        checkpoint_at(tmp_path, 2)


def test_what_is_wrong_with_a_file_is_said(
    tmp_path: Path, model: WorldsmithForCausalLM, capsys: pytest.CaptureFixture[str]
) -> None:
    for harm, said in ((truncate, "model.safetensors has "), (tear, "model.safetensors is not what was")):
        harm(save(tmp_path, model, 1) / "model.safetensors")
        assert latest_checkpoint(tmp_path) is None
        assert said in capsys.readouterr().err


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
    newer = {name: value for name, value in fields.items() if name != "digest"} | {"version": 99}
    manifest.write_text(json.dumps(newer | {"digest": digest(canonical_json(newer))}))
    with pytest.raises(CheckpointVersionError, match="version 99, this Worldsmith reads 2"):
        latest_checkpoint(tmp_path)
    del fields["version"], fields["digest"]
    manifest.write_text(json.dumps(fields))
    with pytest.raises(CheckpointVersionError, match="an older Worldsmith wrote it"):
        latest_checkpoint(tmp_path)
    assert path.exists()

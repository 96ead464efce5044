"""What each cause of a mismatch is said to be worth, where we put the causes there ourselves."""

import copy
from pathlib import Path

import pytest
import torch

from policies.model.decoder import WorldsmithForCausalLM
from rl.attribution import CAUSES, Attribution, attribute, keep_for_attribution, kept_versions, read_kept
from tests.rl.test_recorded import make_model, played, with_moved_choices


def explained(now: WorldsmithForCausalLM, *, record_selected: bool = True) -> Attribution:
    return attribute(
        played(make_model(), record_selected=record_selected), make_model(), now, temperature=1.0
    )


def test_the_parts_make_up_the_whole_and_equal_weights_leave_the_sampling_mask_alone() -> None:
    found = explained(make_model())
    assert found.numerics < 1e-5
    assert found.numerics + sum(found.parts.values()) == pytest.approx(found.total, abs=1e-6)
    # Sampled at top-p 0.8: what was cut off has its probability back, and nothing else differs.
    assert found.parts["sampling mask"] > 0.05
    assert all(abs(found.parts[cause]) < 1e-5 for cause in CAUSES if cause != "sampling mask")
    assert found.tokens == sum(t.num_sampled for t in played(make_model()))


def test_moved_choices_are_told_from_moved_weights() -> None:
    """Only router biases and indexers moved: held to the records, the newer weights compute the same."""
    found = explained(with_moved_choices(make_model()))
    assert found.alone["staleness"] < 1e-5
    assert found.parts["routing"] > 0.01
    assert found.parts["selection"] > 0.01
    assert found.numerics + sum(found.parts.values()) == pytest.approx(found.total, abs=1e-6)


def test_moved_weights_are_staleness() -> None:
    now = copy.deepcopy(make_model())
    torch.manual_seed(5)
    now.lm_head.weight.data += 0.02 * torch.randn_like(now.lm_head.weight)
    found = explained(now)
    assert found.alone["staleness"] > 0.01
    assert abs(found.parts["routing"]) < 1e-5
    assert found.ess < 1.0


def test_a_replica_that_recorded_no_positions_is_explained_by_what_the_same_weights_select() -> None:
    told, derived = (
        explained(with_moved_choices(make_model())),
        explained(with_moved_choices(make_model()), record_selected=False),
    )
    assert derived.parts == pytest.approx(told.parts, abs=1e-5)


def test_episodes_of_one_version_are_kept_while_its_checkpoint_is(tmp_path: Path) -> None:
    batch = played(make_model())  # version 0
    keep_for_attribution(tmp_path, batch, 1)
    assert kept_versions(tmp_path) == []
    keep_for_attribution(tmp_path, batch, 0)
    assert kept_versions(tmp_path) == [0]
    assert read_kept(tmp_path, 0)[3].token_ids == batch[3].token_ids
    gone = tmp_path / "trajectories" / "tokens" / "version-4.safetensors"
    gone.write_bytes(b"its checkpoint was removed")
    (tmp_path / "checkpoints" / "step-6").mkdir(parents=True)
    keep_for_attribution(tmp_path, batch, 0)
    assert kept_versions(tmp_path) == [0]

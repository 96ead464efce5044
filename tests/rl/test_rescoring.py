"""Rollouts scored again: everything kept gives what the engine said, to the precision that it played in."""

import pytest
import torch

from policies.model.decoder import WorldsmithForCausalLM
from rl.recorded import Keep, Recorded
from rl.rescoring import Rows, held_to, lay_out, score, score_all
from rl.trajectory import Trajectory
from tests.rl.test_recorded import make_model, played, with_moved_choices


def drift(model: WorldsmithForCausalLM, batch: list[Trajectory], keep: Keep) -> torch.Tensor:
    """log p(model) - log p(engine), nats, of every sampled token."""
    rows = lay_out(batch)
    with torch.no_grad():
        logps = score(model, rows, held_to(rows.records, keep), temperature=1.0)
    return (logps - rows.told_BT)[rows.sampled_BT]


def test_everything_kept_the_same_weights_give_what_the_engine_said() -> None:
    found = drift(make_model(), played(make_model()), Keep())
    assert found.abs().max() < 1e-4
    assert found.double().exp().mean().item() == pytest.approx(1.0, abs=1e-5)
    assert len(found) == 8 * 24


def test_choices_that_have_moved_are_undone_by_keeping_them() -> None:
    batch, moved = played(make_model()), with_moved_choices(make_model())
    assert drift(moved, batch, Keep()).abs().max() < 1e-4
    for keep in (Keep(routing=False), Keep(selection=False)):
        assert drift(moved, batch, keep).abs().mean() > 0.01


def test_without_its_mask_a_cut_policy_looks_less_likely_than_it_was() -> None:
    """The bias of top-p 0.8: what was cut off has its probability back, in every token."""
    found = drift(make_model(), played(make_model()), Keep(sampling_mask=False))
    assert found.max() < 1e-4
    assert found.double().exp().mean() < 0.95


def test_a_rounded_engine_is_nearest_to_a_learner_that_keeps_its_choices() -> None:
    batch = played(make_model(), dtype=torch.bfloat16)
    kept = drift(make_model(), batch, Keep()).abs()
    live = drift(make_model(), batch, Keep(routing=False, selection=False)).abs()
    assert 1e-4 < kept.mean() < live.mean()


def laid() -> Rows:
    return lay_out(played(make_model()))


def test_columns_begin_where_the_prompts_end() -> None:
    batch = played(make_model())
    rows = laid()
    for row, trajectory in enumerate(batch):
        ids = rows.ids[row][rows.mask[row] == 1].tolist()
        assert ids == list(trajectory.token_ids)
        told = [logp for logp, wrote in zip(trajectory.logps, trajectory.sampled, strict=True) if wrote]
        assert rows.told_BT[row][rows.sampled_BT[row]].tolist() == pytest.approx(told)


def test_what_is_not_sampled_scores_nothing_and_what_was_cut_off_cannot_be() -> None:
    rows = laid()
    with torch.no_grad():
        every = score_all(make_model(), rows, rows.records, temperature=1.0)
        logps = score(make_model(), rows, rows.records, temperature=1.0)
    assert (logps[~rows.sampled_BT] == 0).all()
    assert torch.allclose(every.exp().sum(-1), torch.ones_like(logps), atol=1e-5)
    assert (every == float("-inf")).any()
    assert (every[rows.sampled_BT].exp() > 0).sum(-1).max() < every.shape[-1]


def test_nothing_is_kept_that_is_switched_off() -> None:
    rows = laid()
    assert held_to(rows.records, Keep(routing=False, selection=False, sampling_mask=False)) == Recorded()
    assert set(held_to(rows.records, Keep(routing=False)).tensors()) == {"selected", "kept"}

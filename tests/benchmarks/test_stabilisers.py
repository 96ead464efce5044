"""The ablation of the stabilisers in miniature: what it finds where we put it there ourselves."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import stabilisers
from benchmarks.mismatch import (
    EVERYTHING,
    VARIANTS,
    ablate,
    ess,
    freeze_indexer,
    kl_gradients,
    laid_out,
    policy_gradient,
)
from benchmarks.settings import check_settings
from benchmarks.stabiliser_tables import curve_table
from benchmarks.stale_training import StaleWorker, changed, read_start, replica
from policies.engine import Sampling
from policies.model.checkpoint import save_model
from policies.model.decoder import WorldsmithForCausalLM
from policies.tokenizer import TextCodec
from policies.weights import publish
from rl.advantage import group_advantages, rewards_of
from rl.losses import LossConfig
from rl.observer import Silent
from rl.rescoring import lay_out, score_all
from rl.run import TIER, Data, Run
from rl.run_files import RunLog
from rl.train import cold_start, learn_tokenizer
from rl.trajectory import PlayRequest, Trajectory
from tests.rl.small_run import make_config, make_data
from tests.rl.test_recorded import GROUP, make_model, played, with_moved_choices

LOSS = LossConfig(off_policy_delta=0.5)


def gradient(model: WorldsmithForCausalLM) -> torch.Tensor:
    batch = played(make_model())
    advantages = group_advantages(rewards_of(batch), GROUP)
    return policy_gradient(model, laid_out(batch), advantages, EVERYTHING, LOSS, temperature=1.0).gradient


def test_a_gradient_is_the_same_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    model = freeze_indexer(make_model())
    whole = gradient(model)
    monkeypatch.setattr("benchmarks.mismatch.ROWS", 3)
    assert torch.allclose(gradient(model), whole, atol=1e-6)
    assert whole.abs().max() > 1e-3
    assert len(whole) == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_each_variant_shows_the_choice_that_it_lets_go() -> None:
    """Routers and indexers have moved and nothing else: held to everything, the learner is the engine."""
    batch, moved = played(make_model()), freeze_indexer(with_moved_choices(make_model()))
    right = gradient(freeze_indexer(with_moved_choices(make_model())))
    cells = {c["variant"]: c for c in ablate(moved, batch, right, LOSS, group_size=GROUP, temperature=1.0)}
    assert list(cells) == [variant.name for variant in VARIANTS]
    kept = cells["everything on"]
    assert kept["drift_max"] < 1e-4
    assert kept["ratio_mean"] == pytest.approx(1.0, abs=1e-4)
    assert kept["ess"] == pytest.approx(1.0, abs=1e-4)
    assert kept["gradient_error"] < 1e-4
    assert kept["gradient_moved"] == 0.0
    for name in ("keep routing off", "keep selection off", "keep sampling mask off", "everything off"):
        assert cells[name]["drift_mean"] > 0.01
        assert cells[name]["gradient_error"] > 0.01
    assert cells["keep routing off"]["ess"] < 0.999
    assert cells["keep selection off"]["ess"] < 0.999
    assert cells["keep sampling mask off"]["ratio_mean"] < 0.95
    assert cells["off-policy masking off"]["gradient_error"] < 1e-4


def test_the_share_that_off_policy_masking_leaves_out_is_seen() -> None:
    model = freeze_indexer(make_model())
    torch.manual_seed(5)
    model.lm_head.weight.data += 0.05 * torch.randn_like(model.lm_head.weight)
    cells = ablate(
        model,
        played(make_model()),
        gradient(model),
        LossConfig(off_policy_delta=0.01),
        group_size=GROUP,
        temperature=1.0,
    )
    masked = {one["variant"]: one["masked"] for one in cells}
    assert 0 < masked["everything on"] <= 0.5  # half of the rows have a negative advantage
    assert masked["off-policy masking off"] == masked["everything off"] == 0.0


def test_effective_sample_size_of_equal_and_of_one_sided_ratios() -> None:
    assert ess(torch.zeros(4)) == pytest.approx(1.0)
    assert ess(torch.tensor([0.0, -40.0, -40.0, -40.0])) == pytest.approx(0.25)
    assert ess(torch.tensor([800.0, 800.0])) == pytest.approx(1.0)  # no overflow


def test_the_kl_estimators_agree_on_policy_and_part_where_the_weights_have_moved() -> None:
    batch = [t for seed in range(0, 48, 8) for t in played(make_model(), first_seed=seed)]
    torch.manual_seed(6)
    other = make_model()
    other.lm_head.weight.data += 0.05 * torch.randn_like(other.lm_head.weight)
    fresh = kl_gradients(freeze_indexer(make_model()), other, batch, temperature=1.0)
    exact = fresh["exact"]["value"]
    assert exact == pytest.approx(exact_kl(make_model(), other, batch), rel=1e-4)
    assert fresh["exact"]["gradient_error"] == 0.0
    for name in ("unbiased", "ratio detached", "plain K3"):
        assert fresh[name]["value"] == pytest.approx(exact, rel=0.2)  # 1,152 tokens
    detached, plain = fresh["ratio detached"], fresh["plain K3"]
    assert detached["gradient_error"] == pytest.approx(plain["gradient_error"], rel=1e-3)
    assert fresh["unbiased"]["gradient_error"] != pytest.approx(plain["gradient_error"], rel=1e-2)
    stale = kl_gradients(freeze_indexer(other), make_model(), batch, temperature=1.0)
    assert stale["unbiased"]["value"] == pytest.approx(stale["ratio detached"]["value"])
    assert stale["plain K3"]["value"] != pytest.approx(stale["unbiased"]["value"], rel=1e-2)


def exact_kl(
    model: WorldsmithForCausalLM, reference: WorldsmithForCausalLM, batch: list[Trajectory]
) -> float:
    """Of the sampled tokens' distributions over their kept ids, one by one."""
    rows = lay_out(batch)
    with torch.no_grad():
        free = replace(rows.records, routes=None, selected=None)
        logps = score_all(model, rows, rows.records, temperature=1.0)[rows.sampled_BT]
        references = score_all(reference, rows, free, temperature=1.0)[rows.sampled_BT]
    terms = [(p.exp() * (p - q))[p > float("-inf")].sum() for p, q in zip(logps, references, strict=True)]
    return torch.stack(terms).mean().item()


def test_nested_fields_are_laid_over_a_configuration() -> None:
    fields = {"rl": {"steps": 9, "loss": {"clip_low": 0.2}}, "seed": 1}
    assert changed(fields, {"rl": {"loss": {"kl_weight": 0.1}}, "seed": 2}) == {
        "rl": {"steps": 9, "loss": {"clip_low": 0.2, "kl_weight": 0.1}},
        "seed": 2,
    }
    assert fields["seed"] == 1


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Data]:
    """A run's directory after its cold start, and the data."""
    out, data = tmp_path_factory.mktemp("run"), make_data()
    config = make_config()
    log = RunLog(out, command="train", config=config.model_dump(mode="json"), tier=TIER, seed=0)
    run = Run(config=config, data=data, out=out, log=log, observer=Silent())
    codec: TextCodec = learn_tokenizer(run)
    save_model(cold_start(run, codec), out / "policy")
    return out, data


def test_a_stale_worker_plays_training_tasks_with_old_weights_and_the_others_with_the_newest(
    started: tuple[Path, Data],
) -> None:
    run, data = started
    start = read_start(run, data.tasks, data.heldout, rollout={"workers": 0})
    tasks = [*data.tasks, *data.heldout]
    worker = StaleWorker(replica(start), tasks, num_tasks=len(data.tasks), lag=2)
    model, served = start.load(), []
    for version in range(4):
        model.lm_head.weight.data += 0.01
        worker.load(publish(model, version=version))
        request = PlayRequest(task_index=0, group=0, sample=0, attempt=0, seed=version)
        (trajectory,) = worker.play([request], Sampling(max_new_tokens=4))
        served.append({v for v, wrote in zip(trajectory.versions, trajectory.sampled, strict=True) if wrote})
    assert served == [{0}, {0}, {0}, {1}]
    request = PlayRequest(task_index=len(data.tasks), group=0, sample=0, attempt=0, seed=1)
    (trajectory,) = worker.play([request], Sampling(max_new_tokens=4))
    assert set(trajectory.versions) - {-1} == {3}


def test_a_run_without_a_cold_start_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no cold start to begin from"):
        read_start(tmp_path, [], [])


SMALL = {
    "tasks": 2, "samples": 8, "rounds": 2, "staleness": "0 1", "lag": 1, "steps": 2, "played": 2,
    "trained": 2, "evaluate-every": 1, "heldout": 2, "seeds": 1, "levels": 1, "domain": "retail",
}  # fmt: skip


@pytest.mark.slow
def test_the_whole_of_it_goes_on_where_it_was(
    started: tuple[Path, Data],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, data = started
    sides = {"corpus": data.tasks, "heldout": data.heldout}
    monkeypatch.setattr(stabilisers, "playable_tasks", lambda folder: list(sides[folder.name]))
    plot = tmp_path / "plot.png"
    options = " ".join(f"--{name} {value}" for name, value in SMALL.items())
    arguments = ["--run", str(run), "--out", str(tmp_path / "out"), *options.split()]
    assert stabilisers.main([*arguments, "--plot", str(plot)]) == 0
    first = capsys.readouterr().out
    mismatch = json.loads((tmp_path / "out" / "mismatch.json").read_text())
    cells: list[dict[str, Any]] = mismatch["cells"]
    assert len(cells) == 2 * 2 * len(VARIANTS)
    fresh = next(c for c in cells if (c["dtype"], c["stale"]) == ("float32", 0))
    assert fresh["variant"] == "everything on"
    assert fresh["drift_max"] < 1e-4
    assert list(mismatch["kl"]) == ["0", "1"]
    estimators = {"exact", "unbiased", "ratio detached", "plain K3"}
    assert all(set(one) == estimators for one in mismatch["kl"].values())
    curves = sorted((tmp_path / "out" / "curves").glob("*.json"))
    assert len(curves) == len(VARIANTS)
    assert json.loads(curves[0].read_text())["steps"] == [0, 1, 2]
    assert plot.stat().st_size > 10_000

    monkeypatch.setattr(stabilisers, "train_stale", None)  # nothing is trained or played again
    monkeypatch.setattr(stabilisers, "ablate", None)
    monkeypatch.setattr(stabilisers, "kl_gradients", None)
    assert stabilisers.main(arguments) == 0
    assert capsys.readouterr().out == first
    with pytest.raises(SystemExit, match="figures of other settings"):
        stabilisers.main([*arguments, "--delta", "0.3"])


def test_settings_that_there_were_not_yet_count_as_their_defaults(tmp_path: Path) -> None:
    path, settings = tmp_path / "settings.json", asdict(stabilisers.Settings())
    path.write_text(json.dumps({name: value for name, value in settings.items() if name != "lag"}))
    with pytest.raises(SystemExit, match="figures of other settings"):
        check_settings(path, settings | {"lag": 5}, settings)
    check_settings(path, settings, settings)


def test_the_table_of_curves_compares_each_seed_with_its_own() -> None:
    curves = [
        {
            "variant": name,
            "seed": seed,
            "steps": [0, 4],
            "heldout": [0.2, last],
            "training masked_share": [0.0, 0.1],
            "training clip_share": [0.02],
        }
        for seed, rates in enumerate([(0.5, 0.4), (0.6, 0.7)])
        for name, last in zip(("everything on", "keep routing off"), rates, strict=True)
    ]
    lines = curve_table(curves).splitlines()
    assert lines[2] == "| everything on | 0.200 | 0.550 | 0.50, 0.60 | +0.00, +0.00 | 5.0% | 2.0% |"
    assert lines[3] == "| keep routing off | 0.200 | 0.550 | 0.40, 0.70 | -0.10, +0.10 | 5.0% | 2.0% |"

"""A run with two learners under Ray Train, to its end and in pieces: what it leaves is that of one run."""

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file

from rl.config import TrainConfig
from rl.learners import LearnerLostError, Learners
from rl.measure import read_metrics
from rl.rollouts import SynchronousRollouts
from rl.run import Data
from rl.stopping import Terminated
from rl.train import train
from tests.rl.small_run import make_config, make_data
from tests.rl.test_resume import figures
from worldsmith.cli import INFRASTRUCTURE, exit_code_of, one_line

pytestmark = [pytest.mark.slow, pytest.mark.integration, pytest.mark.timeout(900)]


def config_with(learners: int, *, checkpoint_every: int) -> TrainConfig:
    rl: dict[str, Any] = {
        "learners": learners,
        "rows_per_micro_batch": 2,
        "balance_step": 0.01,
        "checkpoint_every": checkpoint_every,
    }
    return make_config(rollout={"workers": 0}, rl=rl)


@pytest.fixture(scope="module")
def data() -> Data:
    return make_data()


@pytest.fixture(scope="module")
def undisturbed(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    train(config_with(2, checkpoint_every=2), data, out)
    return out


def weights_of(out: Path) -> bytes:
    return (out / "policy" / "model.safetensors").read_bytes()


def learner_processes() -> list[psutil.Process]:
    """Ray Train's, in the order of their start, which is that of their ranks."""
    mine = psutil.Process().children(recursive=True)
    found = [process for process in mine if "RayTrainWorker" in " ".join(process.cmdline())]
    assert len(found) == 2
    return sorted(found, key=lambda process: process.pid)


def test_a_run_with_two_learners_is_one_run(data: Data, undisturbed: Path, tmp_path: Path) -> None:
    steps = [record for record in read_metrics(undisturbed) if record["kind"] == "rl"]
    assert [record["step"] for record in steps] == [0, 1, 2]
    assert [record["ledger"]["dispatched"] for record in steps] == [8, 16, 24]
    assert all(record["ratio_mean"] == pytest.approx(1.0, abs=1e-3) for record in steps)
    assert sorted(path.name for path in (undisturbed / "checkpoints").glob("step-*")) == ["step-2", "step-3"]
    assert json.loads((undisturbed / "run.json").read_text())["finished"]
    assert not (undisturbed / ".trl" / "learners").exists()

    alone = tmp_path / "alone"
    train(config_with(1, checkpoint_every=1), data, alone)
    first = next(record for record in read_metrics(alone) if record["kind"] == "rl")
    for name in ("loss", "kl", "ratio_mean", "entropy", "logp_drift_mean", "expert_load_max"):
        assert steps[0][name] == pytest.approx(first[name], rel=1e-4, abs=1e-6), name
    ours, theirs = (load_file(out / "policy" / "model.safetensors") for out in (undisturbed, alone))
    # Rounding of the first steps may sample another token in a later one; it has not, with these seeds.
    assert max((ours[name] - theirs[name]).abs().max().item() for name in ours) < 1e-4


def test_a_run_whose_learner_is_killed_in_a_step_goes_on_to_the_same_end_to_the_bit(
    data: Data, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, config = tmp_path / "run", config_with(2, checkpoint_every=2)
    step, steps, killed = Learners.step, [], []

    def step_and_kill(self: Learners, *args: Any, **named: Any) -> Any:
        steps.append(1)
        if len(steps) == 3:
            victim = learner_processes()[1]
            killed.append(victim.pid)
            threading.Timer(0.02, os.kill, (victim.pid, signal.SIGKILL)).start()
        return step(self, *args, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Learners, "step", step_and_kill)
        with pytest.raises(LearnerLostError, match="run the same command again") as caught:
            train(config, data, out)
    assert killed
    assert not psutil.pid_exists(killed[0])
    assert exit_code_of(caught.value) == INFRASTRUCTURE
    assert one_line(caught.value) == str(caught.value)
    assert sorted(path.name for path in (out / "checkpoints").glob("step-*")) == ["step-2"]

    train(config, data, out)
    assert figures(str(out)) == figures(str(undisturbed))
    assert weights_of(out) == weights_of(undisturbed)


def test_a_run_that_is_ended_between_steps_saves_what_its_learners_hold(
    data: Data, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, config = tmp_path / "run", config_with(2, checkpoint_every=10)
    play, plays = SynchronousRollouts.next_batch, []

    def play_or_end(self: SynchronousRollouts) -> Any:
        plays.append(1)
        if len(plays) == 2:
            raise Terminated
        return play(self)

    with monkeypatch.context() as patch:
        patch.setattr(SynchronousRollouts, "next_batch", play_or_end)
        with pytest.raises(Terminated):
            train(config, data, out)
    assert sorted(path.name for path in (out / "checkpoints").glob("step-*")) == ["step-1"]
    train(config, data, out)
    assert figures(str(out)) == figures(str(undisturbed))
    assert weights_of(out) == weights_of(undisturbed)

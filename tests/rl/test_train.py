"""A whole run in miniature, on Ray: every stage, its files, and going on after a stop."""

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

import rl.reinforce
import rl.train
from policies.model.checkpoint import load_model
from policies.tokenizer import build_tokenizer
from rl.config import ModelSection, TrainConfig
from rl.measure import read_metrics
from rl.run import Data
from rl.train import train
from tests.rl.small_run import make_config, make_data


class StopHereError(Exception):
    """Stands in for a kill: nothing after it runs."""


@pytest.fixture(scope="module")
def data() -> Data:
    return make_data()


@pytest.fixture
def config() -> TrainConfig:
    return make_config()


def steps_of(out: Path, kind: str) -> list[int]:
    return [record["step"] for record in read_metrics(out) if record["kind"] == kind]


def check_ledgers(out: Path) -> None:
    """Eight episodes a step: none is counted twice after a stop, none is left out."""
    ledgers = [record["ledger"] for record in read_metrics(out) if record["kind"] == "rl"]
    assert [ledger["dispatched"] for ledger in ledgers] == [8, 16, 24]
    for ledger in ledgers:
        assert ledger["in_flight"] == 0
        assert sum(ledger.values()) == 2 * ledger["dispatched"]


def test_a_run_that_stops_twice_goes_on_and_its_steps_are_unbroken(
    data: Data, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    save, record = rl.train.save_checkpoint, rl.reinforce.record_step

    def stop_in_cold_start(directory: Path, *, step: int, **rest: Any) -> Path:
        if step > 3:
            raise StopHereError
        return save(directory, step=step, **rest)

    def stop_in_rl(run: Any, step: int, *rest: Any, **named: Any) -> None:
        record(run, step, *rest, **named)
        if step == 1:
            raise StopHereError

    with monkeypatch.context() as patch:
        patch.setattr(rl.train, "save_checkpoint", stop_in_cold_start)
        with pytest.raises(StopHereError):
            train(config, data, out)
    assert steps_of(out, "cold_start") == [0, 1, 2, 3, 4, 5]

    with monkeypatch.context() as patch:
        patch.setattr(rl.reinforce, "record_step", stop_in_rl)
        with pytest.raises(StopHereError):
            train(config, data, out)
    assert steps_of(out, "cold_start") == list(range(8))
    assert steps_of(out, "rl") == [0, 1]
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "rl", "st')  # what a kill may leave

    summary = train(config, data, out)
    assert steps_of(out, "cold_start") == list(range(8))
    assert steps_of(out, "rl") == [0, 1, 2]
    check_ledgers(out)
    assert summary["episodes"] == 6
    assert set(summary["by_level"]) == {"retail/1", "retail/4"}
    assert summary["by_level"]["retail/4"]["unseen"]

    scripted = {m["policy"]: m["pass_rate"] for m in read_metrics(out) if m["kind"] == "eval"}
    assert (scripted["oracle"], scripted["null"]) == (1.0, 0.0)
    run = json.loads((out / "run.json").read_text())
    assert run["finished"]
    assert load_model(out / "policy").config.token_selector == "lightning"
    before = (out / "metrics.jsonl").read_bytes()
    train(config, data, out)  # a finished run does nothing again
    assert (out / "metrics.jsonl").read_bytes() == before

    other = config.model_copy(update={"seed": 7})
    with pytest.raises(ValueError, match="seed = 0"):
        train(other, data, out)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"hiden_size": 64}, "hiden_size is no size that can be set; did you mean hidden_size?"),
        ({"vocab_size": 64}, "vocab_size is no size that can be set"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be at least 1, got 0"),
        ({"hidden_size": "wide"}, "expected int, got str"),
        ({"index_topk": 10**12}, "index_topk must be at most"),
    ],
)
def test_a_model_that_cannot_be_is_refused_before_anything_is_written(
    data: Data, config: TrainConfig, tmp_path: Path, sizes: dict[str, Any], message: str
) -> None:
    wrong = config.model_copy(update={"model": ModelSection(sizes=sizes)})
    with pytest.raises(ValueError, match=rf"^model\.sizes: .*{re.escape(message)}") as caught:
        train(wrong, data, tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_start_that_is_no_policy_is_refused_before_anything_is_written(
    data: Data, config: TrainConfig, tmp_path: Path
) -> None:
    for fault in ("no tokenizer.json there", "no config.json there"):
        with pytest.raises(ValueError, match=fault):
            train(config.model_copy(update={"start": str(tmp_path / "start")}), data, tmp_path / "run")
        build_tokenizer({"hello": 3}).save_pretrained(tmp_path / "start")
    assert not (tmp_path / "run").exists()


@pytest.mark.integration
@pytest.mark.timeout(600)
def test_steps_with_vllm_replicas_of_which_one_is_killed_at_work(
    data: Data, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    rollout = config.rollout.model_copy(update={"engine": "vllm", "workers": 2, "slots": 4})
    config = config.model_copy(update={"rollout": rollout})
    start, versions, killed = rl.train.start_players, [], []

    def start_and_kill(*args: Any) -> Any:
        workers: Any = start(*args)
        pool = workers.pool
        step, close = pool.step, workers.close

        def step_and_kill() -> Any:
            turns = step()
            if pool.version == 1 and not killed and len(pool._replicas[0].sessions) > 1:
                killed.append(pool.processes()[0])
                os.kill(killed[0], signal.SIGKILL)
            return turns

        def close_and_tell() -> None:
            versions.extend(pool.versions())
            close()

        monkeypatch.setattr(pool, "step", step_and_kill)
        monkeypatch.setattr(workers, "close", close_and_tell)
        return workers

    monkeypatch.setattr(rl.train, "start_players", start_and_kill)
    summary = train(config, data, out)
    assert killed
    assert versions == [3, 3]  # the one killed in step 1 is back, and both serve what was trained last
    check_ledgers(out)
    steps = [record for record in read_metrics(out) if record["kind"] == "rl"]
    assert [record["step"] for record in steps] == [0, 1, 2]
    assert all("replica_failed" not in record["causes"] for record in steps)
    assert all(record["ratio_mean"] == pytest.approx(1.0, abs=1e-3) for record in steps)
    assert summary["episodes"] == 6

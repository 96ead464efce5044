"""A whole run in miniature, on Ray: every stage, its files, and going on after a stop."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

import rl.reinforce
import rl.train
from envs.task import Task
from policies.model.checkpoint import load_model
from rl.config import TrainConfig
from rl.measure import read_metrics
from rl.run import Data
from rl.train import train
from rl.trajectory import PlayableTask
from rl.transcript import Demonstration
from synthesis.demonstrations import demonstrate_once
from synthesis.general import DOMAINS, make_candidate

RETAIL = DOMAINS["retail"]


class StopHereError(Exception):
    """Stands in for a kill: nothing after it runs."""


def playable(seeds: range, level: int) -> list[PlayableTask]:
    found: list[PlayableTask] = []
    for seed in seeds:
        candidate = make_candidate(RETAIL, level, seed)
        assert candidate is not None
        task: Task = candidate.task
        found.append(PlayableTask(task=task, image=candidate.image))
    return found


@pytest.fixture(scope="module")
def data() -> Data:
    shown: dict[float, list[Demonstration]] = {0.0: [], 0.5: []}
    for slip_rate, rows in shown.items():
        for seed in range(1000, 1060):
            made = demonstrate_once(RETAIL, 1, seed, slip_rate=slip_rate, toolset="retail")
            assert made is not None
            rows.append(Demonstration(messages=made.messages, tools=RETAIL.tools, reward=made.reward))
    return Data(
        tasks=playable(range(8), 1),
        heldout=[*playable(range(100, 104), 1), *playable(range(200, 202), 4)],
        clean=shown[0.0],
        mixed=shown[0.5],
        unseen_levels=frozenset({("retail", 4)}),
    )


@pytest.fixture
def config() -> TrainConfig:
    fields: dict[str, Any] = {
        "corpus": "unused",
        "heldout": "unused",
        "model": {"sizes": {"hidden_size": 32, "num_hidden_layers": 2, "index_topk": 16}},
        "cold_start": {
            "clean_steps": 4, "warm_up_steps": 2, "sparse_steps": 2,
            "tokens_per_batch": 600, "checkpoint_every": 3,
        },
        "rl": {
            "steps": 3, "groups_per_step": 2, "groups_trained": 2, "group_size": 4, "rows_per_micro_batch": 4,
            "learning_rate": 1e-3, "levels": [1], "checkpoint_every": 1,
            "loss": {"kl_weight": 0.01, "off_policy_delta": 0.5},
        },
        "rollout": {"workers": 1, "slots": 16, "max_length": 128, "max_new_tokens": 8},
        "eval": {"samples": 1},
    }  # fmt: skip
    return TrainConfig.model_validate(fields)


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
        workers = start(*args)
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

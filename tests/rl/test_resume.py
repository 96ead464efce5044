"""Runs that are killed at random moments: what they come to, against a run that nothing disturbed."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from rl.measure import read_metrics
from tests.rl.small_pipeline import STAGES

ROOT = Path(__file__).resolve().parents[2]
TIMES = ("seconds", "seconds_generation", "seconds_environment", "seconds_training", "tokens_per_s")
"""What is never twice the same."""


def run_in_pieces(out: Path, **options: Any) -> dict[str, Any]:
    defaults = {"kills": 0, "terms": 0, "seed": 0, "share": 0.3, "rl": {}, "rollout": {}, "pipeline": False}
    done = subprocess.run(
        [sys.executable, "-m", "tests.rl.run_in_pieces", str(out), json.dumps(defaults | options)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def figures(out: str) -> list[dict[str, Any]]:
    """The run's metrics without times, in the order of their writing."""
    return [{k: v for k, v in record.items() if k not in TIMES} for record in read_metrics(Path(out))]


def trained_groups(metrics: list[dict[str, Any]]) -> list[int]:
    return [group for record in metrics if record["kind"] == "rl" for group in record["groups"]]


@pytest.mark.slow
@pytest.mark.integration
@pytest.mark.timeout(600)
def test_killed_at_twenty_random_points_a_synchronous_run_is_the_same_to_the_bit(
    tmp_path: Path,
) -> None:
    options = {"steps": 6, "groups_per_step": 3, "checkpoint_every": 2}
    made = run_in_pieces(tmp_path, kills=20, terms=4, rl=options, rollout={"workers": 0})
    whole = figures(made["whole"])
    weights = (Path(made["whole"]) / "policy" / "model.safetensors").read_bytes()
    assert [record["step"] for record in whole if record["kind"] == "rl"] == list(range(6))
    for run in made["pieces"]:
        assert figures(run) == whole, run
        assert (Path(run) / "policy" / "model.safetensors").read_bytes() == weights, run
    resumed = [json.loads((Path(run) / "run.json").read_text()).get("resumed", []) for run in made["pieces"]]
    assert sum(map(len, resumed)) >= 12  # that many of the signals came after the run had begun


@pytest.mark.slow
@pytest.mark.integration
@pytest.mark.timeout(600)
def test_killed_at_random_points_an_asynchronous_run_trains_nothing_twice(
    tmp_path: Path,
) -> None:
    options = {"steps": 8, "groups_per_step": 3, "checkpoint_every": 2}
    made = run_in_pieces(
        tmp_path, kills=3, terms=1, share=0.9, seed=1, rl=options, rollout={"workers": 1, "max_staleness": 2}
    )
    for run in (made["whole"], *made["pieces"]):
        metrics = figures(run)
        steps = [record for record in metrics if record["kind"] == "rl"]
        assert [record["step"] for record in steps] == list(range(8))
        assert max(Counter(trained_groups(metrics)).values()) == 1
        assert len(trained_groups(metrics)) == 16
        for record in steps:
            ledger = record["ledger"]
            buckets = sum(n for name, n in ledger.items() if name not in ("dispatched", "in_flight"))
            assert ledger["dispatched"] == buckets + ledger["in_flight"]
            assert record["staleness_max"] <= 2
        assert steps[-1]["ledger"]["in_flight"] == 0


@pytest.mark.slow
@pytest.mark.integration
@pytest.mark.timeout(600)
def test_killed_at_random_points_a_pipeline_is_the_same_to_the_bit(tmp_path: Path) -> None:
    made = run_in_pieces(tmp_path, kills=10, terms=2, seed=3, pipeline=True)
    for run in made["pieces"]:
        for stage in STAGES:
            assert figures(f"{run}/{stage}") == figures(f"{made['whole']}/{stage}"), (run, stage)
            weights = [Path(one) / stage / "policy" / "model.safetensors" for one in (run, made["whole"])]
            assert weights[0].read_bytes() == weights[1].read_bytes(), (run, stage)
        assert figures(run) == figures(made["whole"])
    resumed = [json.loads((Path(run) / "run.json").read_text()).get("resumed", []) for run in made["pieces"]]
    assert sum(map(len, resumed)) >= 6  # that many of the signals came after it had begun

"""What a run says of its machine, from files written here with times that are known."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rl.plant import measured
from tests.rl.small_run import make_config
from worldsmith.simulate_command import main

STEP_S, TOKEN_S = 0.01, 0.002
EPISODES = [[[10], [4, 6]], [[30], [5]], [[8, 8, 8], [3]]]
"""Turns of the episodes of three steps."""


def write_run(out: Path, **rollout: Any) -> Path:
    config = make_config(rollout={"workers": 2, **rollout})
    (out / "episodes").mkdir(parents=True)
    (out / "run.json").write_text(json.dumps({"config": config.model_dump(mode="json")}))
    lines = []
    for step, turns in enumerate(EPISODES):
        tokens = [sum(counts) for counts in turns]
        seconds = STEP_S * max(tokens) + TOKEN_S * sum(tokens) / 2
        line = {"kind": "rl", "step": step, "seconds_generation": seconds, "seconds_training": 1.0 + step}
        lines.append(json.dumps(line | {"signal_share": 0.5}))
        rows = [{"turn_tokens": counts, "tool_seconds": [0.25] * len(counts)} for counts in turns]
        pq.write_table(pa.Table.from_pylist(rows), out / "episodes" / f"rl-step-{step:06d}.parquet")
    (out / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return out


def test_the_engines_times_are_recovered_from_a_run_that_took_turns(tmp_path: Path) -> None:
    known = measured(write_run(tmp_path))
    assert known.plant.step_s == pytest.approx(STEP_S)
    assert known.plant.token_s == pytest.approx(TOKEN_S)
    assert known.plant.learner_s == [2.0, 3.0]  # the first step warms up
    assert sorted(map(list, known.episodes.turns)) == sorted(turns for step in EPISODES for turns in step)
    assert set(known.episodes.tools) == {0.25}
    assert known.episodes.signal == 0.5
    assert (known.plant.replicas, known.plant.boxes) == (2, 16)


def test_a_run_with_tools_on_threads_needs_the_engines_times(tmp_path: Path) -> None:
    out = write_run(tmp_path, boxes=4)
    with pytest.raises(ValueError, match="give --step-ms and --token-ms"):
        measured(out)
    assert measured(out, step_s=0.02, token_s=0.0).plant.boxes == 4


def test_the_command_recommends_a_setting_and_says_what_it_is_worth(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = write_run(tmp_path)
    assert main([str(out), "--staleness", "0", "2", "--tool-median", "1", "--steps", "20", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    turns, beside = answer["tried"]
    assert beside["tokens_per_s"] > turns["tokens_per_s"]
    assert beside["bubble_share"] < turns["bubble_share"]
    assert answer["recommended"] == beside


@pytest.mark.parametrize("arguments", [["--steps", "0"], ["--replicas", "0"], ["--staleness", "-1"]])
def test_settings_that_cannot_be_are_refused(tmp_path: Path, arguments: list[str]) -> None:
    with pytest.raises(ValueError, match="at least"):
        main([str(tmp_path), *arguments])


def test_a_run_without_steps_is_refused(tmp_path: Path) -> None:
    out = write_run(tmp_path)
    (out / "metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match="0 steps of RL"):
        measured(out)

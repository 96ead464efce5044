"""`worldsmith train` with a pipeline: the plan that it prints, and what it says of a wrong wish."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from synthesis.pipeline import SynthConfig, synthesize
from worldsmith import cli

PIPELINE = Path(__file__).parents[2] / "configs" / "pipeline.yaml"
SYNTH = SynthConfig(
    domains=("trip", "retail"),
    count=8,
    seed=11,
    levels=(1, 2),
    demonstrations=12,
    slip_rates=(0.0, 0.5),
    shard_rows=2,
)


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Training tasks in corpus/, held-out ones in heldout/."""
    directory = tmp_path_factory.mktemp("corpora")
    synthesize(SYNTH, directory / "corpus", workers=0)
    synthesize(replace(SYNTH, seed=12, demonstrations=0), directory / "heldout", workers=0)
    return directory


def plan(corpora: Path, out: Path, *overrides: str) -> int:
    wanted = [f"corpus={corpora}/corpus", f"heldout={corpora}/heldout", *overrides]
    sets = [argument for override in wanted for argument in ("--set", override)]
    return cli.main(["train", "--config", str(PIPELINE), "--out", str(out), "--dry-run", *sets])


def test_the_plan_has_a_line_a_stage_and_nothing_is_started(
    corpora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert plan(corpora, out, "pipeline.cold_start_from=null") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [
        "cold-start", "specialist-trip", "specialist-retail", "distilled", "mixed", "into",
    ]  # fmt: skip
    assert "950 steps on 12 demonstrations; 8 held out" in lines[0]
    assert "20 steps of RL, 32 groups of 8 from 4 tasks of trip; 4 held out" in lines[1]
    assert "play 8 tasks 1 times, 60 steps" in lines[3]
    assert "40 steps of RL, or until RL's compute is 0.3 of the cold start's" in lines[4]
    assert "8 tasks of trip, retail" in lines[4]
    assert not out.exists()


def test_a_plan_tells_of_several_learners_and_where_they_are_too_many(
    corpora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wishes = ("pipeline.cold_start_from=null", "rl.learners=2", "rl.rows_per_micro_batch=32")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    assert plan(corpora, tmp_path / "run", *wishes) == 0
    told = capsys.readouterr()
    assert told.err == ""
    lines = told.out.splitlines()
    assert "2 learners" not in lines[0]
    for line in (lines[1], lines[4]):
        assert "; 2 learners under Ray Train, 64 rows a step each, each the whole" in line
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    assert plan(corpora, tmp_path / "run", *wishes, "rl.sharding=full") == 0
    told = capsys.readouterr()
    assert told.err.splitlines() == [
        "worldsmith train: rl.learners: 2 learners on the 1 core(s) of this machine take turns; unless Ray"
        " has other machines, set at most 1"
    ]
    assert "each a share of the model (FSDP2)" in told.out


def test_a_stage_that_is_finished_is_said_to_be_done(
    corpora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    (out / "cold-start").mkdir(parents=True)
    record = {"command": "train", "config": {}, "finished": "2026-01-05T10:13:20+00:00"}
    (out / "cold-start" / "run.json").write_text(json.dumps(record))
    assert plan(corpora, out) == 0  # the run that it was taken over from may be gone by now
    lines = capsys.readouterr().out.splitlines()
    assert [line.endswith("; done") for line in lines[:3]] == [True, False, False]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("pipeline.cold_start_from=nowhere", "nowhere is no run; make it first"),
        ("pipeline.groups={trip: [trip]}", "domain 'retail' of"),
        ("pipeline.groups={all: [trip, retail, clinic]}", "no task of domain 'clinic'"),
        ("rl.levels=[3]", "no task of level 3"),
        ("rl.learners=3", "rl: learners (3) must divide groups_trained (16): each has whole groups"),
        ("pipeline.specialists.step=3", "did you mean steps?"),
    ],
)
def test_a_wrong_wish_is_one_line_and_exit_code_2(
    corpora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str, message: str
) -> None:
    assert plan(corpora, tmp_path / "run", override) == cli.USAGE
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1

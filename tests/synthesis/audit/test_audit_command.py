"""`worldsmith audit`: its plan, its report, its exit codes; our own corpora need no box."""

import json
from pathlib import Path

import pytest

from envs.sandbox import namespaces
from tests.synthesis.audit import foreign_tasks as foreign
from worldsmith.cli import main


def test_a_corpus_of_ours_has_no_fault(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report.json"
    assert main(["audit", str(corpus), "--limit", "2", "--out", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told == json.loads(out.read_text())
    assert (told["format"], told["tier"], told["audited"]) == ("worldsmith", "in this process", 2)
    assert told["counts"]["null agent rewarded"]["hits"] == 0
    killed = told["counts"]["solution mutants killed"]
    assert killed["hits"] == killed["trials"] > 20
    assert [one["findings"] for one in told["per_task"]] == [[], []]


def test_a_dry_run_lists_the_tasks_and_starts_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a_t0", "b_t0", "b_t1"):
        foreign.general_agent_task(tmp_path / name)
    assert main(["audit", str(tmp_path), "--only", "b_", "--dry-run", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"format": "general-agent", "tasks": ["b_t0", "b_t1"]}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{}/missing"], "no such directory"),
        (["{}"], "no tasks of a known format"),
        (["{}", "--format", "habor"], "did you mean harbor?"),
        (["{}", "--limit", "0"], "--limit must be at least 1"),
        (["{}", "--mutants", "-1"], "--mutants must lie in 0 to 1000"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["audit", *[one.format(tmp_path) for one in arguments]]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert len(told.splitlines()) == 1


@pytest.mark.integration
@pytest.mark.skipif(namespaces.why_unavailable() is not None, reason="no namespaces on this machine")
def test_the_table_says_what_is_wrong_and_what_was_not_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign.harbor_task(tmp_path / "sum", test=foreign.LAZY_TEST)
    (foreign.harbor_task(tmp_path / "torn") / "task.toml").write_text("version = ")
    base = ["audit", str(tmp_path), "--tier", "namespaces", "--mutants", "2"]
    assert main([*base, "--ignore-image"]) == 1
    told = capsys.readouterr().out
    assert "null rewarded" in told
    assert "1 of 1 (0.207 to 1.000)" in told
    assert "not TOML" in told
    assert main(base) == 3  # without their image none of them is run, and none is a pass
    assert "not run 1: image debian:bookworm-slim (tier namespaces has no images)" in capsys.readouterr().out

"""`worldsmith synth` and `worldsmith certify` as a person runs them: exit codes, one line for a mistake,
JSON.
"""

import errno
import itertools
import json
from collections import Counter
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from synthesis import receipts
from synthesis.corpus import MANIFEST
from synthesis.general import DOMAINS
from synthesis.tally import BOUNDS
from worldsmith import synth_command
from worldsmith.cli import main
from worldsmith.progress import Progress
from worldsmith.synth_command import rejection_note

SMALL = ["--count", "2", "--domain", "retail", "--levels", "1", "--seed", "3", "--workers", "0"]


def last_json(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_made_again_and_certified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "corpus"
    for _ in range(2):
        assert main(["synth", *SMALL, "--out", str(out), "--json"]) == 0
        made = last_json(capsys)
        assert (made["tasks"], made["demonstrations"], made["rejections"]) == (2, 0, {})
    assert main(["certify", str(out), "--json"]) == 0
    assert last_json(capsys) == {"tasks": 2, "faults": []}
    path = out / "worlds" / "part-00000.parquet"
    content = path.read_bytes()
    path.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    assert main(["certify", str(out)]) == 1
    assert "its SHA-256 is" in capsys.readouterr().out


def test_what_an_earlier_run_made_says_nothing_about_the_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    times = itertools.count()  # a second passes whenever somebody looks
    ticking = partial(Progress, clock=lambda: float(next(times)))
    monkeypatch.setattr(synth_command, "Progress", ticking)
    argv = ["synth", *SMALL, "--shard-rows", "1", "--out", str(tmp_path / "corpus")]
    assert main(argv) == 0
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("synth 2/2 admitted (100%), ")
    assert "/s" in line
    assert main(argv) == 0
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == "synth 2/2 admitted (100%), took 2 s, 0 refused"  # two looks


def test_a_dry_run_makes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["synth", "--domain", "trip,retail", "--count", "80", "--seed", "1", "--dry-run"]
    assert main([*argv, "--out", str(tmp_path / "x")]) == 0
    assert "trip       level 4       10" in capsys.readouterr().out
    assert not (tmp_path / "x").exists()


def test_the_domains_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["synth", "--list-domains", "--json"]) == 0
    assert list(last_json(capsys)) == list(DOMAINS)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--domain", "trp"], "no domain 'trp', did you mean trip?"),
        (["--count", "0"], "nothing to make"),
        (["--count", "-3"], "--count"),
        (["--levels", "1,x"], "'1,x' is not whole numbers"),
        (["--levels", "9"], "level 9 does not exist"),
        (["--slip-rate", "2", "--demonstrations", "1"], "slip_rates"),
        (["--workers", "-1"], "'-1' is not a whole number"),
        (["--sede", "1"], "did you mean --seed?"),
        (["--family", "code"], "invalid choice: 'code'"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_two(
    argv: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x"
    assert main(["synth", *SMALL, "--out", str(out), *argv]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_what_is_missing_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["synth", "--count", "3"]) == 2
    assert "--seed, --out missing" in capsys.readouterr().err


def test_another_count_for_the_same_directory_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["synth", *SMALL, "--out", str(tmp_path / "x")]) == 0
    capsys.readouterr()
    assert main(["synth", *SMALL, "--count", "3", "--out", str(tmp_path / "x")]) == 2
    error = capsys.readouterr().err
    assert "count 2 there, 3 now" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("content", [None, "{", '{"version": 7}'])
def test_certify_refuses_what_is_no_corpus(
    tmp_path: Path, content: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / MANIFEST).write_text(content)
    assert main(["certify", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["certify", str(tmp_path / "nowhere")]) == 2


def test_refusals_are_told_by_reason() -> None:
    assert rejection_note(Counter()) == "0 refused"
    counts = Counter({"G4 guessing": 1200, "G13 necessity": 2, "G3 floor": 1, "G1 determinism": 1})
    assert rejection_note(counts) == "1,204 refused: G4 guessing 1,200, G13 necessity 2, G3 floor 1"


@pytest.mark.parametrize("fails_at", ["tasks/", "worlds/", ".synth/tasks", "README.md", MANIFEST])
def test_a_full_disk_is_one_line_and_tears_nothing(
    fails_at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, whole = tmp_path / "x", receipts.write_whole

    def full(path: Path, content: bytes) -> None:
        if str(path.relative_to(out)).startswith(fails_at):
            raise OSError(errno.ENOSPC, "No space left on device")
        whole(path, content)

    argv = ["synth", *SMALL, "--out", str(out)]
    monkeypatch.setattr(receipts, "write_whole", full)
    assert main(argv) == 3
    error = capsys.readouterr().err.splitlines()[-1]
    assert "No space left on device; make room and run the same command again" in error
    assert fails_at in error
    assert not (out / MANIFEST).exists()
    monkeypatch.setattr(receipts, "write_whole", whole)
    assert main(argv) == 0
    assert main(["certify", str(out)]) == 0


def test_a_corpus_of_a_newer_version_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / MANIFEST).write_text('{"version": 7}')
    for argv in (["certify", str(tmp_path)], ["synth", *SMALL, "--out", str(tmp_path)]):
        assert main(argv) == 2
        error = capsys.readouterr().err
        assert "corpus version 7" in error
        assert "update Worldsmith" in error
        assert error.count("\n") == 1
    assert (tmp_path / MANIFEST).read_text() == '{"version": 7}'


def test_a_corpus_that_fails_its_checks_is_exit_code_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(BOUNDS, "GV", ("verifier mutants", "killed", 1.1))
    assert main(["synth", *SMALL, "--out", str(tmp_path / "x")]) == 1
    assert "retail: verifier mutants does not hold" in capsys.readouterr().err
    assert main(["certify", str(tmp_path / "x")]) == 1
    assert "check verifier mutants does not hold" in capsys.readouterr().out


def write_run(root: Path, rates: dict[int, int]) -> Path:
    """A run of eval: ten tasks of each level of retail, so many of them passed."""
    rows = [
        {"task_id": f"retail-{level}-{n}", "domain": "retail", "level": level, "reward": float(n < passed)}
        for level, passed in rates.items()
        for n in range(10)
    ]
    rows.append({"task_id": "retail-1-lost", "domain": "retail", "level": 1, "reward": None})
    (root / "episodes").mkdir(parents=True)
    (root / "run.json").write_text("{}")
    pq.write_table(pa.Table.from_pylist(rows), root / "episodes" / "eval.parquet")
    return root


def test_tasks_are_aimed_at_a_pass_rate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run", {1: 10, 2: 9, 3: 5, 4: 1})
    command = ["synth", "--domain", "retail", "--count", "40", "--seed", "3", "--out", str(tmp_path / "c")]
    command += ["--target-pass-rate", "0.5", "--from-run", str(run), "--dry-run", "--json"]
    assert main(command) == 0
    out, err = capsys.readouterr()
    rows = {cell["level"]: cell["rows"] for cell in json.loads(out)["cells"]}
    assert sum(rows.values()) == 40
    assert rows[3] > 20
    assert max(rows.get(1, 0), rows.get(4, 0)) < 10
    assert "retail     level 3   predicted 0." in err
    assert "from 10 played" in err
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--target-pass-rate", "1.5", "--from-run", "RUN"], "must lie between 0 and 1, got 1.5"),
        (["--target-pass-rate", "0.5"], "needs --from-run RUN"),
        (["--from-run", "RUN"], "--from-run needs --target-pass-rate"),
        (["--target-pass-rate", "0.5", "--from-run", "nowhere"], "nowhere is no run"),
        (["--target-pass-rate", "0.5", "--from-run", "RUN", "--domain", "trip"], "was played"),
    ],
)
def test_an_aim_that_cannot_be_taken_is_one_line(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run", {1: 10})
    options = [str(run) if option == "RUN" else option for option in options]
    assert main(["synth", "--count", "4", "--seed", "1", "--out", str(tmp_path / "c"), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1

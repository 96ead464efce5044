"""`worldsmith eval` against a hostile user: one line each, and nothing half begun."""

import json
import shutil
from pathlib import Path

import pytest

from rl.run_files import locked
from worldsmith.cli import main
from worldsmith.journal import Journal


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("corpus") / "retail"
    line = ["synth", "--domain", "retail", "--levels", "1", "--count", "2", "--seed", "5", "--workers", "0"]
    assert main([*line, "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def played(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("played") / "run"
    assert run(corpus, out) == 0
    return out


def run(corpus: Path, out: Path, *more: str) -> int:
    return main(["eval", "--tasks", str(corpus), "--policy", "oracle", "--out", str(out), *more])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--limit", "0"], "--limit must be at least 1, got 0"),
        (["--limit", "-1"], "--limit must be at least 1, got -1"),
        (["--temperature", "nan"], "--temperature must be finite and at least 0, got nan"),
        (["--temperature", "inf"], "--temperature must be finite and at least 0, got inf"),
        (["--temperature", "-1"], "--temperature must be finite and at least 0, got -1"),
        (["--policy", "local:nowhere"], "nowhere: no tokenizer.json there; a policy is"),
        (["--policy", "local:"], "no tokenizer.json there"),
        (["--policy", "vllm:nowhere"], "worldsmith eval: "),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_begins_nothing(
    arguments: list[str], message: str, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert run(corpus, tmp_path / "out", *arguments) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "content", [b"", b'{"finished"', b"[]", b"null", b'{"finished": null}', b'{"config": 3}', b"\x80" * 9]
)
def test_a_damaged_record_is_named_and_left_as_it_is(
    content: bytes, played: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    shutil.copytree(played, out)
    (out / "run.json").write_bytes(content)
    capsys.readouterr()
    assert run(corpus, out) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[-1] == (
        f"worldsmith eval: {out}/run.json: damaged, not the record of a run; restore it or take another"
        " directory"
    )
    assert len(said) == 2  # the tier stands before it
    assert (out / "run.json").read_bytes() == content


@pytest.mark.parametrize(
    "line", [b'{"row": 3, "line": "x"}', b"[]", b"3", b'{"row": {"task_id": "a"}, "line": ""}', b'{"row": {}']
)  # fmt: skip
def test_a_journal_counts_up_to_what_is_damaged(line: bytes, tmp_path: Path) -> None:
    path = tmp_path / "ended.jsonl"
    sound = b'{"row": {"task_id": "a", "sample": 1}, "line": "read"}\n'
    path.write_bytes(sound + line + b"\n" + sound)
    journal = Journal(path)
    journal.close()
    assert journal.known == [({"task_id": "a", "sample": 1}, "read")]
    assert path.read_bytes() == sound


def test_a_file_in_the_place_of_a_directory_and_a_directory_in_use_are_one_line(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("x")
    capsys.readouterr()
    assert run(corpus, tmp_path / "file") == 2
    assert capsys.readouterr().err.endswith(
        f"worldsmith eval: {tmp_path}/file: is a file; give a directory\n"
    )
    with locked(tmp_path / "busy"):
        assert run(corpus, tmp_path / "busy") == 2
    assert "busy: another run works there; wait for it or choose another --out" in capsys.readouterr().err


def test_an_unfinished_evaluation_goes_on_whatever_stood_at_its_end(played: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(played, out)
    record = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps(record | {"finished": None}))
    (out / "ended.jsonl").write_bytes(b'{"row": 3}\n')
    assert run(Path(record["config"]["tasks"]), out) == 0
    assert json.loads((out / "run.json").read_text())["finished"]

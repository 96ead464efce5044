"""What may leave an agent's box: regular files that are declared, and no claim of the box believed."""

import os
from pathlib import Path
from typing import Any

import pytest

from envs.grading import collector
from envs.grading.artifacts import ArtifactSpec, collect, path_fault
from envs.grading.suite import TextFile
from envs.sandbox.contract import ExecResult
from tests.envs.grading_boxes import ScriptedBox, done


def box(reply: ExecResult) -> Any:
    return ScriptedBox({"collect": [reply]})


def collected(folder: Path, spec: ArtifactSpec) -> dict[str, Any]:
    request = {"folder": str(folder), "patterns": list(spec.paths), "baits": ["bait", "gone/bait"],
               "max_files": spec.max_files, "max_file_bytes": spec.max_file_bytes,
               "max_bytes": spec.max_bytes}  # fmt: skip
    return collector.collect(request)


def test_only_regular_files_of_one_name_are_taken(tmp_path: Path) -> None:
    outside = tmp_path / "secret.py"
    outside.write_text("secret")
    folder = tmp_path / "work"
    (folder / "lib").mkdir(parents=True)
    (folder / "lib" / "good.py").write_text("good")
    (folder / "bait").write_text("x")
    (folder / "other.txt").write_text("not declared")
    (folder / "link.py").symlink_to(outside)
    (folder / "linked").symlink_to(tmp_path)
    (folder / "hard.py").hardlink_to(outside)
    os.mkfifo(folder / "pipe.py")
    with (folder / "sparse.py").open("wb") as file:
        file.truncate(5 << 30)
    found = collected(folder, ArtifactSpec(paths=("**/*.py",)))
    assert [path for path, _ in found["files"]] == ["lib/good.py"]
    assert sorted(path for path, _ in found["refused"]) == ["hard.py", "link.py", "pipe.py", "sparse.py"]
    assert found["baits"] == {"bait": "eA==", "gone/bait": None}


def test_the_number_and_the_size_of_artifacts_are_limited(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.py").write_text("12345")
    assert not collected(tmp_path, ArtifactSpec(paths=("*.py",)))["refused"]
    for limits in ({"max_files": 2}, {"max_bytes": 14}, {"max_file_bytes": 4}):
        assert collected(tmp_path, ArtifactSpec(paths=("*.py",), **limits))["refused"]


@pytest.mark.parametrize(
    ("pattern", "path", "fits"),
    [("a.py", "a.py", True), ("a.py", "b/a.py", False), ("*.py", "b/a.py", False), ("**/*.py", "a.py", True),
     ("**/*.py", "b/c/a.py", True), ("src/**", "src/a/b", True), ("src/**", "srcs/a", False)],
)  # fmt: skip
def test_patterns_stay_within_a_folder_unless_they_say_so(pattern: str, path: str, fits: bool) -> None:
    assert ArtifactSpec(paths=(pattern,)).allows(path) == fits


@pytest.mark.parametrize(
    "path", ["", "/etc/passwd", "../a", "a/../../b", "a//b", "./a", "a\n.py", "a\0", "a\\b", "a\ud800",
             "x" * 501, "a/" * 50 + "b"],
)  # fmt: skip
def test_a_path_that_could_lead_elsewhere_is_refused(path: str) -> None:
    assert path_fault(path) is not None
    with pytest.raises(ValueError, match="path"):
        TextFile(path=path, text="")
    with pytest.raises(ValueError, match="path"):
        ArtifactSpec(paths=(path,))


@pytest.mark.parametrize(
    "reply",
    [
        done(exit_code=1), done(b"[]"), done(b"{}"), done(b"[" * 100_000), done(b"null"),
        done(b'{"files": [], "refused": [], "baits": {}}'),
        done(b'{"files": [["../a.py", ""]], "refused": [], "baits": {}}'),
        done(b'{"files": [["b.txt", ""]], "refused": [], "baits": {}}'),
        done(b'{"files": [["a.py", "###"]], "refused": [], "baits": {}}'),
        done(b'{"files": [["a.py", ""], ["a.py", ""]], "refused": [], "baits": {}}'),
        done(b'{"files": [["a.py", ""]], "refused": [["b.py", "a hard link"]], "baits": {}}'),
        done(b'{"files": [["a.py", "MTIzNDU="]], "refused": [], "baits": {}}'),
    ],
)  # fmt: skip
def test_a_box_that_lies_about_its_files_has_no_artifacts(reply: ExecResult) -> None:
    spec = ArtifactSpec(paths=("*.py",), max_file_bytes=4)
    assert collect(box(reply), spec).fault is not None


def test_a_box_that_tells_the_truth_has_them() -> None:
    reply = done(b'{"files": [["a.py", "MTIzNA=="]], "refused": [], "baits": {"b": null}}')
    found = collect(box(reply), ArtifactSpec(paths=("*.py",)), baits=["b"])
    assert (found.files, found.fault, found.baits) == ({"a.py": b"1234"}, None, {"b": None})

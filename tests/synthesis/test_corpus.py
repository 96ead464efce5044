"""A corpus on disk: files that appear whole, and every damage said in one line."""

from collections.abc import Callable
from pathlib import Path

import pytest

from synthesis import corpus as corpus_module
from synthesis.corpus import MANIFEST, read_corpus, read_manifest, read_toolsets
from synthesis.demonstrations import read_demonstrations


def test_reading_can_be_limited(made_once: Path) -> None:
    assert len(read_corpus(made_once)) == 8
    assert {entry.task.domain for entry in read_corpus(made_once, domain="retail")} == {"retail"}
    assert {entry.task.level for entry in read_corpus(made_once, level=3)} == {3}
    assert len(read_corpus(made_once, limit=3)) == 3
    assert read_corpus(made_once, limit=3) == read_corpus(made_once)[:3]


def test_each_demonstration_names_a_tool_list(made_once: Path) -> None:
    toolsets = read_toolsets(made_once)
    for shown in read_demonstrations(made_once):
        names = {tool.name for tool in toolsets[shown.tools]}
        assert {call.tool for message in shown.messages for call in message.tool_calls} <= names


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / MANIFEST).unlink(), "no finished corpus"),
        (lambda root: (root / MANIFEST).write_text("{"), "not a JSON object"),
        (lambda root: (root / MANIFEST).write_text("[]"), "not a JSON object"),
        (
            lambda root: (root / MANIFEST).write_text('{"version": 2}'),
            "corpus version 2, this program reads version 1",
        ),
        (lambda root: (root / MANIFEST).write_text('{"version": 1}'), "damaged"),
        (lambda root: flip(root / "tasks" / "part-00001.parquet"), "its SHA-256 is"),
        (lambda root: flip(root / "worlds" / "part-00001.parquet"), "its SHA-256 is"),
        (lambda root: (root / "tasks" / "part-00001.parquet").unlink(), "missing"),
    ],
)
def test_damage_is_one_line(corpus: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(corpus)
    with pytest.raises(ValueError, match=message) as caught:
        read_corpus(corpus)
    assert "\n" not in str(caught.value)
    assert str(corpus) in str(caught.value)


def test_every_byte_of_the_manifest_counts(corpus: Path) -> None:
    path = corpus / MANIFEST
    content = path.read_bytes()
    for offset in range(0, len(content), 37):
        path.write_bytes(content[:offset] + bytes([content[offset] ^ 1]) + content[offset + 1 :])
        if content[offset : offset + 1].isspace():
            continue  # a space more or less is the same JSON
        with pytest.raises(ValueError, match=MANIFEST):
            read_manifest(corpus)


def test_what_is_not_there_is_named(made_once: Path) -> None:
    with pytest.raises(ValueError, match="no such directory"):
        read_corpus(made_once / "nowhere")
    with pytest.raises(ValueError, match="no tasks of domain 'code'; it holds retail, trip"):
        read_corpus(made_once, domain="code")
    with pytest.raises(ValueError, match="no tasks of level 4; it holds 1, 3"):
        read_corpus(made_once, level=4)


def test_a_damaged_demonstration_file_is_refused(corpus: Path) -> None:
    flip(corpus / "demonstrations" / "part-00000.jsonl")
    with pytest.raises(ValueError, match="its SHA-256 is"):
        list(read_demonstrations(corpus))


def test_a_manifest_cannot_name_files_outside(corpus: Path) -> None:
    with pytest.raises(ValueError, match="lies outside the corpus"):
        corpus_module.read_checked(corpus, "../../etc/passwd", "0" * 64)

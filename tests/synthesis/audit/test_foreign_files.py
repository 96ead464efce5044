"""Foreign files are hostile: links, sizes, paths and broken content are one line and no more."""

import os
from pathlib import Path

import pytest

from synthesis.audit.files import Folder, ForeignFileError


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    (tmp_path / "in").mkdir()
    (tmp_path / "secret.txt").write_text("secret")
    return Folder(tmp_path / "in")


@pytest.mark.parametrize("name", ["../secret.txt", "/etc/passwd", "a/../../secret.txt", "a\0b"])
def test_a_path_that_leads_out_is_refused(folder: Folder, name: str) -> None:
    with pytest.raises(ForeignFileError, match="leads out of the folder"):
        folder.read(name)


def test_a_link_is_not_followed_as_a_file_or_as_a_folder(folder: Folder) -> None:
    (folder.root / "link").symlink_to("../secret.txt")
    (folder.root / "up").symlink_to("..")
    for name in ("link", "up/secret.txt"):
        with pytest.raises(ForeignFileError, match="is a link, or lies behind one"):
            folder.read(name)
    assert not folder.has("link")
    assert folder.children() == []
    with pytest.raises(ForeignFileError, match="a link; audit reads regular files alone"):
        folder.files()


def test_a_pipe_does_not_block_and_is_refused(folder: Folder) -> None:
    os.mkfifo(folder.root / "pipe")
    with pytest.raises(ForeignFileError, match="not a regular file"):
        folder.read("pipe")


def test_a_long_file_is_refused_and_one_that_just_fits_is_not(folder: Folder) -> None:
    (folder.root / "file").write_bytes(b"x" * 10)
    assert folder.read("file", max_bytes=10) == b"x" * 10
    with pytest.raises(ForeignFileError, match="longer than 9 bytes"):
        folder.read("file", max_bytes=9)


@pytest.mark.parametrize("text", ["{", "[" * 100_000, '{"a": ' + "9" * 5000 + "}"])
def test_broken_json_is_one_line(folder: Folder, text: str) -> None:
    (folder.root / "x.json").write_text(text)
    with pytest.raises(ForeignFileError, match="not JSON") as caught:
        folder.json("x.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["a = ", "a = " + "[" * 50_000, "a = 1\na = 2"])
def test_broken_toml_is_one_line(folder: Folder, text: str) -> None:
    (folder.root / "x.toml").write_text(text)
    with pytest.raises(ForeignFileError, match="not TOML") as caught:
        folder.toml("x.toml")
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text_are_refused(folder: Folder) -> None:
    (folder.root / "x.md").write_bytes(b"ab\xff")
    with pytest.raises(ForeignFileError, match="not UTF-8 at byte 2"):
        folder.text("x.md")

import pytest

from envs.sandbox.contract import Capabilities, Limits, check_folders, model_view


def test_a_short_output_is_shown_whole_with_replacements_for_what_is_not_utf8() -> None:
    assert model_view("größe\n".encode()) == "größe\n"
    assert model_view(b"a\xffb") == "a\ufffdb"


def test_a_long_output_keeps_head_and_tail_and_counts_what_was_cut() -> None:
    assert model_view(b"abcdefghij", limit_bytes=4) == "ab\n[... 6 bytes cut ...]\nij"


def test_what_the_box_cut_already_is_counted_and_marked_in_the_middle() -> None:
    assert model_view(b"abcd", cut_bytes=100) == "ab\n[... 100 bytes cut ...]\ncd"
    assert model_view(b"abcdefgh", cut_bytes=100, limit_bytes=2) == "a\n[... 106 bytes cut ...]\nh"


def test_a_digest_names_the_guarantees_and_not_the_evidence() -> None:
    first = Capabilities(tier="docker", engine="1", held={"a": True, "b": False}, evidence={"a": "x"})
    same = Capabilities(tier="docker", engine="1", held={"b": False, "a": True}, evidence={"a": "y"})
    other = Capabilities(tier="docker", engine="1", held={"a": True, "b": True})
    assert first.digest == same.digest != other.digest
    assert first.missing == ("b",)
    assert not first.holds("never probed")


@pytest.mark.parametrize(
    "field", ["memory_mb", "pids", "cpu", "tmp_mb", "inodes", "nofile", "output_cap_bytes", "flood_bytes"]
)
def test_a_limit_that_is_not_positive_is_refused_by_name(field: str) -> None:
    with pytest.raises(ValueError, match=f"limits.{field} must be positive"):
        Limits(**{field: 0})


@pytest.mark.parametrize("folder", ["/usr", "/etc", "/work", "app", "/app/src", "/", "/..", "/a b", ""])
def test_a_folder_of_the_system_or_below_another_cannot_be_made_writable(folder: str) -> None:
    with pytest.raises(ValueError, match="cannot be a writable folder of a box"):
        check_folders(["/app", folder])


def test_writable_folders_are_named_once() -> None:
    assert check_folders(["/app", "/logs", "/app"]) == ("/app", "/logs")

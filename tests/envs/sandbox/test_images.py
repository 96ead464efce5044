from pathlib import Path

import pytest

from envs.sandbox import images
from envs.sandbox.contract import SandboxUnavailableError


def test_the_machines_own_debian_mirror_is_found_in_both_forms_of_sources(tmp_path: Path) -> None:
    assert images.debian_mirror(tmp_path) == "http://deb.debian.org/debian"
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list.d" / "debian.sources").write_text(
        "Types: deb\nURIs: http://mirror.example/debian/\nSuites: bookworm\n"
    )
    assert images.debian_mirror(tmp_path) == "http://mirror.example/debian"
    (tmp_path / "sources.list").write_text("deb https://other.example/debian bookworm main\n")
    assert images.debian_mirror(tmp_path) == "https://other.example/debian"


def test_an_engine_that_does_not_answer_is_unavailable_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent/docker.sock")
    with pytest.raises(SandboxUnavailableError, match=r"sudo \.ci/docker\.sh"):
        images.connect()


@pytest.mark.docker
def test_preflight_names_every_missing_image_at_once() -> None:
    client = images.connect()
    try:
        with pytest.raises(
            SandboxUnavailableError, match="missing images: no/one:1, no/two:1; run: worldsmith"
        ):
            images.preflight(client, ["no/one:1", images.BASE_IMAGE, "no/two:1", "no/one:1"])
    finally:
        client.close()


@pytest.mark.docker
def test_building_what_is_there_changes_nothing(tmp_path: Path) -> None:
    built = images.build_base_image(tmp_path / "cache", log=lambda _: None)
    assert (built.name, built.source) == (images.BASE_IMAGE, "present")
    assert not (tmp_path / "cache").exists()

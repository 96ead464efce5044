import hashlib
import io
import json
import secrets
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import docker
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


def test_the_image_of_the_registry_is_named_by_its_digest_and_not_by_a_tag() -> None:
    name, _, digest = str(images.RECIPE["registry"]).partition("@sha256:")
    assert name == "python"
    assert len(bytes.fromhex(digest)) == 32


def test_an_archive_is_used_only_as_it_was_made(tmp_path: Path) -> None:
    said: list[str] = []
    archive = tmp_path / "image.tar"
    assert not images._is_whole(archive, said.append)
    archive.write_bytes(b"as made")
    digest = tmp_path / "image.tar.sha256"
    digest.write_text(hashlib.sha256(b"as made").hexdigest() + "\n")
    assert images._is_whole(archive, said.append)
    assert said == []
    archive.write_bytes(b"as made.")
    assert not images._is_whole(archive, said.append)
    assert not archive.exists()
    archive.write_bytes(b"as made")
    digest.unlink()
    assert not images._is_whole(archive, said.append)
    assert [line.startswith(f"{archive} is not as it was made") for line in said] == [True, True]


@pytest.fixture
def test_image(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A name that stands for the base image in this test alone; what the test leaves under it is removed."""
    name = f"worldsmith/test:{secrets.token_hex(6)}"
    monkeypatch.setattr(images, "BASE_IMAGE", name)
    yield name
    client = images.connect()
    try:
        if not images.missing_images(client, [name]):
            client.images.remove(name, force=True)
    finally:
        client.close()


def tar_of(name: str, data: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        member = tarfile.TarInfo(name)
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def keep_archive(cache: Path, data: bytes) -> Path:
    archive = cache / f"{images.BASE_IMAGE.partition(':')[2]}.tar"
    archive.write_bytes(data)
    archive.with_name(f"{archive.name}.sha256").write_text(hashlib.sha256(data).hexdigest())
    return archive


@pytest.mark.docker
def test_an_archive_that_is_no_file_system_is_one_line(test_image: str, tmp_path: Path) -> None:
    archive = keep_archive(tmp_path, b"this is not a tar archive" * 1000)
    with pytest.raises(SandboxUnavailableError, match=f"cannot import {archive}") as refusal:
        images.build_base_image(tmp_path, log=lambda _: None, use_registry=False)
    assert "\n" not in str(refusal.value)


@pytest.mark.docker
def test_an_image_that_is_there_but_does_not_run_is_removed_and_made_anew(
    test_image: str, tmp_path: Path
) -> None:
    client: docker.DockerClient = images.connect()
    repository, _, tag = test_image.partition(":")
    try:
        client.api.import_image_from_data(tar_of("etc/no-python-here", b""), repository=repository, tag=tag)
        keep_archive(tmp_path, tar_of("etc/none-here-either", b""))
        said: list[str] = []
        with pytest.raises(SandboxUnavailableError, match=f"image {test_image} does not run: ") as refusal:
            images.build_base_image(tmp_path, log=said.append, use_registry=False)
        assert "\n" not in str(refusal.value)
        assert any(line.startswith(f"making it anew: image {test_image} does not run") for line in said)
        assert any(line.startswith("importing ") for line in said)
        assert images.missing_images(client, [test_image]) == [test_image]
    finally:
        client.close()


class Registry(ThreadingHTTPServer):
    """A registry with one image of one file, which answers with `status` where that is not 200."""

    def __init__(self) -> None:
        layer = tar_of("marker", secrets.token_bytes(16))
        digest_of = lambda data: f"sha256:{hashlib.sha256(data).hexdigest()}"  # noqa: E731
        config = {"architecture": "amd64", "os": "linux", "config": {}}
        config["rootfs"] = {"type": "layers", "diff_ids": [digest_of(layer)]}
        blobs = [json.dumps(config).encode(), layer]
        media = "application/vnd.docker"
        kinds = (f"{media}.container.image.v1+json", f"{media}.image.rootfs.diff.tar")
        parts: list[dict[str, Any]] = [
            {"mediaType": kind, "size": len(blob), "digest": digest_of(blob)}
            for kind, blob in zip(kinds, blobs, strict=True)
        ]
        self.media = f"{media}.distribution.manifest.v2+json"
        fields = {"schemaVersion": 2, "mediaType": self.media, "config": parts[0], "layers": parts[1:]}
        self.manifest = json.dumps(fields).encode()
        self.blobs = {part["digest"]: blob for part, blob in zip(parts, blobs, strict=True)}
        self.status = 200
        super().__init__(("127.0.0.1", 0), RegistryAnswers)
        self.image = f"127.0.0.1:{self.server_port}/tiny@{digest_of(self.manifest)}"


class RegistryAnswers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        registry = self.server
        assert isinstance(registry, Registry)
        what, _, reference = self.path.rpartition("/")
        body = registry.blobs.get(reference, b"{}")
        if what.endswith("manifests"):
            body = registry.manifest
        self.send_response(registry.status)
        self.send_header("Content-Type", registry.media if what.endswith("manifests") else "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        return None


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    with Registry() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(images, "RECIPE", {**images.RECIPE, "registry": server.image})
        yield server
        server.shutdown()


def pull() -> str | None:
    """What went wrong; None where the image came."""
    client = images.connect()
    try:
        return images._pull(client, 20.0, lambda _: None)
    finally:
        client.close()


def is_there(image: str) -> bool:
    client = images.connect()
    try:
        return not images.missing_images(client, [image])
    finally:
        client.close()


@pytest.mark.docker
def test_an_image_is_pulled_by_its_digest(test_image: str, registry: Registry) -> None:
    assert pull() is None
    assert is_there(test_image)


@pytest.mark.docker
def test_an_image_other_than_the_pinned_one_is_refused(test_image: str, registry: Registry) -> None:
    registry.manifest += b" "
    fault = pull()
    assert fault is not None
    assert "digest" in fault
    assert not is_there(test_image)


@pytest.mark.docker
@pytest.mark.parametrize("status", [429, 503])
def test_a_registry_that_refuses_is_one_line_and_no_image(
    test_image: str, registry: Registry, status: int
) -> None:
    registry.status = status
    fault = pull()
    assert fault is not None
    assert fault == " ".join(fault.split())
    assert not is_there(test_image)

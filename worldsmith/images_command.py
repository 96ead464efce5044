"""Make or pull the base image of Docker boxes.

Asks the registry that the engine knows, by digest; where none answers, builds an image from Debian's packages
with debootstrap (as root) and keeps it outside the tree, so that a second build takes seconds. An image that
is there already is tried, and made anew where it does not run. Exits with 0 when the image runs Python, 2 on
bad usage, 3 when no image could be had.
"""

import json
import os
import sys
from pathlib import Path

from envs.sandbox.contract import SandboxUnavailableError
from envs.sandbox.images import build_base_image
from worldsmith.arguments import CommandParser

COMMAND = "worldsmith images"


def main(argv: list[str]) -> int:
    parser = CommandParser("images", __doc__)
    parser.add_argument("action", choices=["build"], help="build: make the image exist in the engine")
    parser.add_argument("--no-registry", action="store_true", help="build without asking a registry")
    parser.add_argument("--cache", type=Path, default=None, metavar="DIR", help="where built images are kept")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line of stdout")
    try:
        options = parser.parse_args(argv)
    except SystemExit as error:
        return int(error.code or 0)
    cache = options.cache or _default_cache()
    try:
        built = build_base_image(
            cache, log=lambda line: print(line, file=sys.stderr), use_registry=not options.no_registry
        )
    except (SandboxUnavailableError, OSError) as error:
        print(f"{COMMAND}: {' '.join(str(error).split())}", file=sys.stderr)
        return 3
    if options.json:
        print(
            json.dumps({"image": built.name, "source": built.source, "seconds": round(built.duration_s, 2)})
        )
    else:
        print(f"{built.name} ({built.source}, {built.duration_s:.1f} s)")
    return 0


def _default_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "worldsmith" / "images"

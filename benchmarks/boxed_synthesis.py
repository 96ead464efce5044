"""Synthesis in boxes beside the same in this process: the bytes must be equal, and both rates are told.

python benchmarks/boxed_synthesis.py --tier namespaces --count 100

One worker each, the same config; a box's first start and the packing of the packages count, as they do in a
run. Exit code 1 where a byte differs.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

from envs.sandbox.choose import choose_sandbox
from synthesis.pipeline import synthesize
from synthesis.shard_plan import SynthConfig


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tier", choices=("docker", "namespaces"), default="namespaces")
    parser.add_argument("--domains", default="retail,trip,library", help="joined by commas")
    parser.add_argument("--count", type=int, default=75)
    parser.add_argument("--shard-rows", type=int, default=25)
    args = parser.parse_args()
    choose_sandbox(args.tier)
    config = SynthConfig(
        domains=tuple(args.domains.split(",")),
        count=args.count,
        seed=1,
        levels=(1,),
        shard_rows=args.shard_rows,
    )
    folder = Path(tempfile.mkdtemp(prefix="boxed-synthesis-"))
    try:
        seconds = {}
        for name, tier in (("in process", None), ("boxes", args.tier)):
            started = time.monotonic()
            synthesize(config, folder / name, workers=0, sandbox=tier)
            seconds[name] = time.monotonic() - started
        same = files_of(folder / "in process") == files_of(folder / "boxes")
    finally:
        shutil.rmtree(folder)
    rates = {name: round(config.count / taken, 2) for name, taken in seconds.items()}
    print(
        json.dumps({"tier": args.tier, "tasks": config.count, "admitted a second": rates, "same bytes": same})
    )
    return 0 if same else 1


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


if __name__ == "__main__":
    sys.exit(main())

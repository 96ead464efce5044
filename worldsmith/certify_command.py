"""Re-checks every certificate of a corpus, offline, from its files alone.

Example: worldsmith certify corpora/train

Each task's hashes are computed again, its world and the task itself are built again from the seed, and every
gate runs again; each number must come out as recorded, and so must the corpus' card and its checks. Exit code
1, with a table, when anything does not.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from synthesis.certificate import Fault, check_manifest, check_shard_item
from synthesis.corpus import Manifest, read_manifest
from worldsmith.arguments import CommandParser
from worldsmith.progress import Progress
from worldsmith.synth_command import FEW_SHARDS

MAX_SHOWN = 20


def main(argv: list[str]) -> int:
    parser = CommandParser("certify", __doc__)
    parser.add_argument(
        "directory", type=Path, metavar="DIR", help="a corpus, as `worldsmith synth` wrote it"
    )
    parser.add_argument(
        "--workers", type=int, help="Ray workers (default: one a core; 0: none, in this process)"
    )
    parser.add_argument(
        "--json", action="store_true", help="one JSON object on the last line of standard output"
    )
    args = parser.parse_args(argv)
    if args.workers is not None and args.workers < 0:
        parser.error(f"--workers must be 0 or more, got {args.workers}")
    manifest = read_manifest(args.directory)
    faults = check_manifest(args.directory, manifest)
    with Progress("certify", total=len(manifest.shards), unit="shards") as progress:
        for found in _check(args.directory, manifest, args.workers):
            faults += found
            progress.advance(note=f"{len(faults)} faults")
    faults.sort(key=lambda fault: (fault.where, fault.what))
    if args.json:
        result = {"tasks": manifest.num_tasks, "faults": [asdict(fault) for fault in faults]}
        print(json.dumps(result))
    else:
        _show(manifest, faults)
    return 1 if faults else 0


def _check(directory: Path, manifest: Manifest, workers: int | None) -> Iterator[list[Fault]]:
    items = [(str(directory.resolve()), asdict(shard)) for shard in manifest.shards]
    if workers is None:
        workers = 0 if len(items) <= FEW_SHARDS else len(os.sched_getaffinity(0))
    if workers == 0 or not items:
        return map(check_shard_item, items)
    from synthesis.ray_shards import map_on_ray  # Ray takes seconds to import

    return map_on_ray(check_shard_item, items, workers)


def _show(manifest: Manifest, faults: list[Fault]) -> None:
    for fault in faults[:MAX_SHOWN]:
        print(f"{fault.where:<28} {fault.what}")
    if len(faults) > MAX_SHOWN:
        print(f"and {len(faults) - MAX_SHOWN} more (--json lists all)")
    if not faults:
        print(f"{manifest.num_tasks:,} tasks proved again: hashes, worlds, golds and gates, as recorded")

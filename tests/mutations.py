"""Breaks the code on purpose, one line at a time, and shows that a test fails each time: `make mutations`.

The mutants of mutations.yaml turn a sign, drop a mask or move a gather in the losses, the advantages, the
router, the indexer, the attention, the selectors and the records that the learner is held to. A mutant that
no test kills is a missing test. All of it happens in a copy of the tracked files.

python -m tests.mutations --list
python -m tests.mutations --only router indexer
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
LIMIT_S = 600


@dataclass(frozen=True, kw_only=True, slots=True)
class Mutant:
    """`old`, which the file at `path` holds once, becomes `new`; one of `tests` must fail."""

    area: str
    path: str
    what: str
    old: str
    new: str
    tests: tuple[str, ...]

    def applied(self, text: str) -> str:
        """Raises ValueError unless `old` is in the text exactly once."""
        if text.count(self.old) != 1:
            raise ValueError(
                f"{self.area}, {self.what}: {self.path} holds {self.old!r} {text.count(self.old)} times, not"
                " once; mend tests/mutations.yaml"
            )
        return text.replace(self.old, self.new)


def read_mutants() -> list[Mutant]:
    areas = yaml.safe_load((ROOT / "tests" / "mutations.yaml").read_text())
    return [
        Mutant(area=name, path=area["path"], tests=tuple(area["tests"]), **mutant)
        for name, area in areas.items()
        for mutant in area["mutants"]
    ]


def copy_tracked(folder: Path) -> None:
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, names.stdout.split("\0")):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target)


def fails(folder: Path, tests: Sequence[str]) -> tuple[bool, str]:
    """Whether one of the tests fails there, and what pytest said last.

    Raises RuntimeError where pytest ran no test.
    """
    line = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-n", "0", *tests]
    settings = {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    try:
        run = subprocess.run(
            line, cwd=folder, env=os.environ | settings, capture_output=True, text=True, timeout=LIMIT_S
        )
    except subprocess.TimeoutExpired:
        return True, f"no end within {LIMIT_S} s"
    said = run.stdout.strip() or run.stderr.strip() or "nothing"
    if run.returncode not in (0, 1, 2):
        raise RuntimeError(f"pytest ended with {run.returncode}: {said[-500:]}")
    return run.returncode != 0, said.splitlines()[-1]


def try_mutant(folder: Path, mutant: Mutant) -> tuple[bool, str]:
    """As `fails`, with the mutant in the folder; afterwards the file is as before."""
    path = folder / mutant.path
    whole = path.read_text()
    path.write_text(mutant.applied(whole))
    try:
        return fails(folder, mutant.tests)
    finally:
        path.write_text(whole)


def main(argv: list[str] | None = None) -> int:
    mutants = read_mutants()
    areas = list(dict.fromkeys(mutant.area for mutant in mutants))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=areas, default=areas, metavar="AREA")
    parser.add_argument("--list", action="store_true", help="print the mutants and run nothing")
    args = parser.parse_args(argv)
    mutants = [mutant for mutant in mutants if mutant.area in args.only]
    if args.list:
        print("\n".join(f"{mutant.area}: {mutant.what}" for mutant in mutants))
        return 0
    survivors = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        copy_tracked(folder)
        for tests in dict.fromkeys(mutant.tests for mutant in mutants):
            failed, said = fails(folder, tests)
            if failed:
                print(f"{' '.join(tests)}: fail before anything is broken: {said}", file=sys.stderr)
                return 1
        for number, mutant in enumerate(mutants, 1):
            start = time.monotonic()
            dead, said = try_mutant(folder, mutant)
            survivors += not dead
            print(
                f"{number}/{len(mutants)} {'killed' if dead else 'SURVIVED'}, {mutant.area}: {mutant.what}"
                f" ({time.monotonic() - start:.0f} s; {said})",
                flush=True,
            )
    print(f"{len(mutants) - survivors} of {len(mutants)} mutants killed")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())

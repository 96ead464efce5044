"""Whether a text repeats one of a public benchmark: runs of thirteen words, compared by hash alone.

`fingerprints.json` names the benchmarks and holds nothing but 48-bit hashes of every run of thirteen words
of their questions, so that the check runs offline and the file leaks nothing. `python -m
synthesis.decontamination` makes it.
"""

import argparse
import base64
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from importlib.resources import files
from pathlib import Path

from envs.files import write_whole
from envs.task import Task

RUN = 13
"""Words in a run, as GPT-3 (arXiv 2005.14165, appendix C) and most after it compare."""
HASH_BYTES = 6
CANARY = "worldsmith-corpus-canary-2b7e6a4d-5f0c-4d7e-9a41-c1d1b0a6f3e8"
"""Stands in every corpus' card: a model that can complete it has been trained on one."""
FILE = "fingerprints.json"
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, kw_only=True, slots=True)
class Fingerprints:
    """sources: name and version of each benchmark, with the number of its texts."""

    sources: dict[str, int]
    hashes: frozenset[bytes]


def run_hashes(text: str) -> Iterator[bytes]:
    """The hash of every run of `RUN` words, in lower case; a shorter text is one run."""
    words = _WORD.findall(text.lower())
    for start in range(max(1, len(words) - RUN + 1)) if words else ():
        run = " ".join(words[start : start + RUN])
        yield blake2b(run.encode(), digest_size=HASH_BYTES).digest()


@lru_cache(maxsize=1)
def shipped() -> Fingerprints:
    """The fingerprints that come with the package. Raises ValueError when they are damaged."""
    return read_fingerprints(files("synthesis").joinpath(FILE).read_bytes())


def read_fingerprints(content: bytes) -> Fingerprints:
    try:
        fields = json.loads(content)
        packed = base64.b85decode(fields["hashes"])
        sources = {str(name): int(count) for name, count in fields["sources"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{FILE}: damaged; install the package again") from None
    cut = range(0, len(packed), HASH_BYTES)
    return Fingerprints(sources=sources, hashes=frozenset(packed[at : at + HASH_BYTES] for at in cut))


def fingerprint_file(texts: dict[str, Sequence[str]], *, max_runs: int) -> bytes:
    """The file for the texts of each source: the smallest hashes of all their runs, at most `max_runs`.

    The smallest are as good as any others, and which they are depends on the texts alone.
    """
    hashes = sorted({run for each in texts.values() for text in each for run in run_hashes(text)})[:max_runs]
    fields = {
        "sources": {name: len(each) for name, each in sorted(texts.items())},
        "run": RUN,
        "hash_bytes": HASH_BYTES,
        "hashes": base64.b85encode(b"".join(hashes)).decode(),
    }
    return (json.dumps(fields, indent=1) + "\n").encode()


def shared_runs(task: Task, fingerprints: Fingerprints) -> tuple[int, int]:
    """How many of the runs of the task's prompt are a benchmark's, and how many there are."""
    runs = [run for message in task.prompt for run in run_hashes(message.content)]
    return sum(run in fingerprints.hashes for run in runs), len(runs)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="NAME=FILE",
        help="a benchmark, and its questions as a JSON list of texts",
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name(FILE))
    parser.add_argument("--max-runs", type=int, default=20_000, help="hashes to keep (default: 20,000)")
    args = parser.parse_args(argv)
    texts: dict[str, Sequence[str]] = {}
    for source in args.sources:
        name, _, path = source.partition("=")
        texts[name] = [str(text) for text in json.loads(Path(path).read_bytes())]
    write_whole(args.out, fingerprint_file(texts, max_runs=args.max_runs))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

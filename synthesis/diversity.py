"""How alike the tasks of a corpus are: near-duplicates by MinHash, and the shapes of worlds, plans and
prompts.

Two tasks are near-duplicates when their *documents* share most of their shingles: runs of words of the
prompt, and the rows of the world. The prompt alone would not do: the same request over another world has
another answer.
"""

import math
import re
import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np

from envs.task import Task, canonical_json, digest
from envs.world import columns_of, open_image, tables_of
from synthesis.corpus import CorpusTask

NUM_PERMUTATIONS = 64
NUM_BANDS = 16
"""Of four rows each: a pair with similarity 0.8 shares one with probability 0.9998, one of 0.3 with 0.12."""
NEAR_DUPLICATE = 0.8
"""Share of equal MinHash values, an estimate of the Jaccard similarity, from which two tasks are one."""
MAX_DUPLICATES = 0.01
_WORD = re.compile(r"\w+")
_VARIABLE = re.compile(r"\b(?:[A-Z]\w*|\w*\d[\w.:-]*)\b")

_numbers = np.random.default_rng(13).integers(1, 1 << 32, size=(2, NUM_PERMUTATIONS), dtype=np.uint64)


def shingles(task: Task, image: bytes) -> Iterator[str]:
    """Three words of the prompt in a row; each cell of the world with its row's key."""
    for message in task.prompt:
        words = _WORD.findall(message.content.lower())
        yield from (" ".join(words[at : at + 3]) for at in range(max(1, len(words) - 2)))
    with closing(open_image(image)) as db:
        for table in tables_of(db):
            columns = columns_of(db, table)
            for row in db.execute(f'SELECT * FROM "{table}"'):
                yield from (
                    f"{row[0]}|{name}|{cell}" for name, cell in zip(columns[1:], row[1:], strict=True)
                )


def minhash(texts: Iterator[str]) -> tuple[int, ...]:
    """`NUM_PERMUTATIONS` 32-bit values; two sets agree in each with the probability of their similarity."""
    hashes = {blake2b(text.encode(), digest_size=4).digest() for text in texts}
    values = np.array([struct.unpack("<I", each)[0] for each in sorted(hashes)], dtype=np.uint64)
    # Multiply-shift on 64 bits: the upper half of a * x + b is uniform enough, and wraps as unsigned does.
    mixed = (values[:, None] * (_numbers[0] | np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)) + _numbers[1]
    return tuple(int(value) for value in (mixed >> np.uint64(32)).min(axis=0))


def similarity(a: Sequence[int], b: Sequence[int]) -> float:
    return sum(x == y for x, y in zip(a, b, strict=True)) / len(a)


@dataclass(slots=True)
class DuplicateIndex:
    """Finds near-duplicates of what was added before, by locality-sensitive hashing."""

    _bands: dict[tuple[int, ...], list[tuple[int, ...]]] = field(default_factory=dict)

    def seen(self, signature: tuple[int, ...]) -> bool:
        """Whether a near-duplicate was added before."""
        near = (other for band in _bands_of(signature) for other in self._bands.get(band, ()))
        return any(similarity(signature, other) >= NEAR_DUPLICATE for other in near)

    def add(self, signature: tuple[int, ...]) -> None:
        for band in _bands_of(signature):
            self._bands.setdefault(band, []).append(signature)


def _bands_of(signature: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    rows = NUM_PERMUTATIONS // NUM_BANDS
    for band in range(NUM_BANDS):
        yield (band, *signature[band * rows : (band + 1) * rows])


def structure(task: Task, image: bytes) -> str:
    """Hash of what the world and the tools are like: tables, columns, signatures and effects."""
    with closing(open_image(image)) as db:
        tables = [[table, columns_of(db, table)] for table in tables_of(db)]
    tools = [
        [tool.name, [[p.name, p.type, list(p.enum)] for p in tool.parameters], sorted(tool.reads),
         sorted([w.table, w.operation, *w.columns] for w in tool.writes)]
        for tool in task.tools
    ]  # fmt: skip
    return digest(canonical_json([tables, tools]))[:16]


def plan_shape(task: Task) -> str:
    """Hash of the gold without its names: which tools, in which order, repeats counted once."""
    names = [call.tool for call in task.gold.calls]
    runs = [name for at, name in enumerate(names) if at == 0 or names[at - 1] != name]
    kind = task.gold.answer if task.answer.kind == "choice" else list(task.answer.columns)
    return digest(canonical_json([runs, kind]))[:16]


def prompt_shape(task: Task) -> str:
    """Hash of the request with its names and numbers taken out."""
    return digest(_VARIABLE.sub("_", task.prompt[-1].content))[:16]


@dataclass(slots=True)
class Diversity:
    """What one domain's tasks were like, counted as they come.

    duplicates: of any domain's task before. A declared twin is none of the task that it is a twin of.
    """

    structures: Counter[str] = field(default_factory=Counter)
    plans: Counter[str] = field(default_factory=Counter)
    prompts: Counter[str] = field(default_factory=Counter)
    duplicates: int = 0
    tasks: int = 0

    def add(self, entry: CorpusTask, index: DuplicateIndex) -> None:
        task = entry.task
        self.tasks += 1
        self.structures[structure(task, entry.image)] += 1
        self.plans[plan_shape(task)] += 1
        self.prompts[prompt_shape(task)] += 1
        if task.provenance.twin_of:
            return
        signature = minhash(shingles(task, entry.image))
        self.duplicates += index.seen(signature)
        index.add(signature)


def effective_number(counts: Counter[str]) -> float:
    """exp of the entropy: so many equally frequent shapes would be as diverse (a Vendi score of kernel
    0-1).
    """
    total = counts.total()
    if not total:
        return 0.0
    return math.exp(-sum(n / total * math.log(n / total) for n in counts.values()))

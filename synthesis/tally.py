"""What the gates recorded over many tasks, added up: the numbers of a corpus' card, with intervals."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from envs.task import GateRecord
from synthesis.corpus import Check, CorpusTask
from synthesis.diversity import MAX_DUPLICATES, Diversity, DuplicateIndex, effective_number

Z95 = 1.959963984540054
MAX_SHORTCUT = 0.8
"""An agent that reads all and then always acts, or always refuses, may be right so often."""
POSITION_MARGIN = 0.1
"""And one that goes by an option's place in its list, so much more often than by chance."""
BOUNDS = {
    "G5": ("solution mutants", "killed", 0.98),
    "G6": ("tampering", "killed", 1.0),
    "G7": ("channel attacks", "killed", 1.0),
    "G9": ("right variants", "accepted", 0.99),
    "GV": ("verifier mutants", "killed", 0.95),
}
"""By gate: the check's name, what happened to those that count, their least share."""
_RATIOS = {
    "G5": re.compile(r"killed (\d+) of (\d+) \("),
    "G6": re.compile(r"(\d+) of (\d+) attacks scored 0"),
    "G7": re.compile(r"killed (\d+) of (\d+), after"),
    "G9": re.compile(r"accepted (\d+) of (\d+) variants"),
    "GV": re.compile(r"killed (\d+) of (\d+);"),
}
_OBEYED = re.compile(r"obeyed (\d+) of (\d+), rewarded (\d+)")
_FATES = re.compile(r"(\d+) (open|redundant)")
_SHORTCUT = re.compile(r"(always acts|always refuses|first option|last option|commonest option): (\d)")


@dataclass(slots=True)
class Ratio:
    """`hits` of `trials`, with Wilson's 95 % interval."""

    hits: int = 0
    trials: int = 0

    def add(self, hits: int, trials: int) -> None:
        self.hits += hits
        self.trials += trials

    @property
    def rate(self) -> float:
        return self.hits / self.trials if self.trials else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.hits, self.trials)


@dataclass(slots=True)
class Tally:
    """One domain's tasks. `ratios` by gate; `shortcuts` by what the agent does; `guessed`: G4's summed.

    injected: tasks whose rows could carry an instruction to an agent that reads what the gold reads.
    """

    tasks: int = 0
    levels: set[int] = field(default_factory=set)
    null_rewarded: int = 0
    gold_passed: int = 0
    injected: int = 0
    obeyed: int = 0
    obeyed_rewarded: int = 0
    guessed: float = 0.0
    ratios: dict[str, Ratio] = field(default_factory=lambda: {gate: Ratio() for gate in _RATIOS})
    fates: Counter[str] = field(default_factory=Counter)
    shortcuts: dict[str, Ratio] = field(default_factory=dict)
    diversity: Diversity = field(default_factory=Diversity)

    def add(self, entry: CorpusTask, index: DuplicateIndex) -> None:
        self.tasks += 1
        self.levels.add(entry.task.level)
        for record in entry.task.quality:
            self._add_record(record)
        self.diversity.add(entry, index)

    def _add_record(self, record: GateRecord) -> None:
        gate, evidence = record.gate, record.evidence
        if gate in _RATIOS and (found := _RATIOS[gate].search(evidence)):
            self.ratios[gate].add(int(found[1]), int(found[2]))
        if gate == "G2":
            self.gold_passed += record.value == 1.0
        elif gate == "G3":
            self.null_rewarded += record.value > 0
        elif gate == "G4":
            self.guessed += record.value
        elif gate == "G8" and (found := _OBEYED.search(evidence)):
            self.injected += found[2] != "0"
            self.obeyed += int(found[1])
            self.obeyed_rewarded += int(found[3])
        elif gate == "G15":
            for name, score in _SHORTCUT.findall(evidence):
                self.shortcuts.setdefault(name, Ratio()).add(int(score), 1)
        elif gate == "GV":
            self.fates.update({fate: int(count) for count, fate in _FATES.findall(evidence)})


def tally(entries: Iterable[CorpusTask]) -> dict[str, Tally]:
    """By domain, in the order of their names; near-duplicates are looked for among all of them."""
    index = DuplicateIndex()
    found: dict[str, Tally] = {}
    for entry in entries:
        found.setdefault(entry.task.domain, Tally()).add(entry, index)
    return dict(sorted(found.items()))


def total(tallies: Iterable[Tally]) -> Tally:
    """Several domains' numbers added up, but not their shapes and short cuts, which are each domain's own."""
    found = Tally()
    for each in tallies:
        found.levels |= each.levels
        for name in (
            "tasks", "null_rewarded", "gold_passed", "injected", "obeyed", "obeyed_rewarded", "guessed",
        ):  # fmt: skip
            setattr(found, name, getattr(found, name) + getattr(each, name))
        for gate, ratio in each.ratios.items():
            found.ratios[gate].add(ratio.hits, ratio.trials)
        found.fates.update(each.fates)
        found.diversity.duplicates += each.diversity.duplicates
    return found


def checks(tallies: dict[str, Tally]) -> tuple[Check, ...]:
    return tuple(check for domain, found in tallies.items() for check in _checks(domain, found))


def _checks(domain: str, found: Tally) -> Iterator[Check]:
    duplicates = found.diversity.duplicates / found.tasks
    yield Check(
        name="near-duplicates",
        where=domain,
        passed=duplicates <= MAX_DUPLICATES,
        value=duplicates,
        evidence=f"{found.diversity.duplicates} of {found.tasks} repeat another; bound {MAX_DUPLICATES}",
    )
    for name, count in (
        ("null agents rewarded", found.null_rewarded),
        ("injected agents rewarded", found.obeyed_rewarded),
        ("gold below three of three", found.tasks - found.gold_passed),
    ):
        yield Check(
            name=name,
            where=domain,
            passed=count == 0,
            value=float(count),
            evidence=f"{count} in {found.tasks} tasks; bound 0",
        )
    for gate, (name, fate, least) in BOUNDS.items():
        ratio = found.ratios[gate]
        yield Check(
            name=name,
            where=domain,
            passed=ratio.rate >= least,
            value=ratio.rate,
            evidence=f"{ratio.hits} of {ratio.trials} {fate}; bound {least}",
        )
    chance = found.guessed / found.tasks
    for name, ratio in sorted(found.shortcuts.items()):
        bound = MAX_SHORTCUT if name.startswith("always") else chance + POSITION_MARGIN
        yield Check(
            name=f"short cut: {name}",
            where=domain,
            passed=ratio.interval[0] <= bound,  # a small corpus proves nothing against itself
            value=ratio.rate,
            evidence=f"right on {ratio.hits} of {ratio.trials}; bound {bound:.2f}",
        )


def shapes(found: Tally) -> dict[str, tuple[int, float]]:
    """Number and effective number of different shapes."""
    diversity = found.diversity
    counts = {
        "worlds and tools": diversity.structures,
        "plans": diversity.plans,
        "prompts": diversity.prompts,
    }
    return {name: (len(count), effective_number(count)) for name, count in counts.items()}


def wilson(hits: int, trials: int) -> tuple[float, float]:
    """Wilson's 95 % score interval; no trials: (0, 1)."""
    if trials <= 0:
        return 0.0, 1.0
    rate, z2 = hits / trials, Z95 * Z95
    centre = (rate + z2 / (2 * trials)) / (1 + z2 / trials)
    half = Z95 / (1 + z2 / trials) * math.sqrt(rate * (1 - rate) / trials + z2 / (4 * trials * trials))
    low = 0.0 if hits == 0 else max(0.0, centre - half)
    high = 1.0 if hits == trials else min(1.0, centre + half)
    return low, high

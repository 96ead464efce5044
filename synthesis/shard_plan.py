"""What a corpus is made from, and its shards: each a fixed range of seeds of one domain and level."""

import json
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

from envs.task import TASK_VERSION, canonical_json
from synthesis.admission import ADMISSION_VERSIONS
from synthesis.gates.suite import GATE_VERSIONS
from synthesis.general import DOMAINS, FAMILY, domain_named
from synthesis.grammar import twin_levels

DEFAULT_LEVELS = (1, 2, 3, 4)
CANDIDATES_PER_ROW = 400
"""A shard gives up after so many candidates for each row that it should hold."""
DEMONSTRATION_ROWS = 500


@dataclass(frozen=True, kw_only=True, slots=True)
class SynthConfig:
    """What a corpus is made from. `count` tasks and `demonstrations` are spread evenly over domains and
    levels.
    """

    count: int
    seed: int
    family: str = FAMILY
    domains: tuple[str, ...] = tuple(DOMAINS)
    levels: tuple[int, ...] = DEFAULT_LEVELS
    demonstrations: int = 0
    demonstration_levels: tuple[int, ...] = ()
    """Empty: those of `levels` that the domain shows to a cold start."""
    slip_rates: tuple[float, ...] = (0.0,)
    """The demonstrators take turns."""
    shard_rows: int = 25
    """Tasks in one shard: what a kill can cost."""
    counts: tuple[tuple[str, int, int], ...] = ()
    """(domain, level, tasks) where the tasks are not to be spread evenly; they add up to `count`."""
    twins: bool = False
    """Tasks come in pairs, each with its counterfactual twin; `count` counts both."""

    def __post_init__(self) -> None:
        if self.family != FAMILY:
            raise ValueError(f"family must be {FAMILY}, got {self.family!r}")
        for name in ("count", "demonstrations"):
            if not 0 <= getattr(self, name) <= 10_000_000:
                raise ValueError(f"{name} must lie in 0 to 10,000,000, got {getattr(self, name)}")
        if self.count == self.demonstrations == 0:
            raise ValueError("count must be at least 1, got 0: nothing to make")
        if self.twins and self.count % 2:
            raise ValueError(f"count must be even with twins, which come in pairs, got {self.count}")
        if not 1 <= self.shard_rows <= 10_000:
            raise ValueError(f"shard_rows must lie in 1 to 10,000, got {self.shard_rows}")
        if not self.slip_rates or not all(0 <= rate <= 1 for rate in self.slip_rates):
            raise ValueError(f"slip_rates must be numbers in [0, 1], got {self.slip_rates}")
        self._check_domains_and_levels()
        self._check_counts()

    def _check_domains_and_levels(self) -> None:
        for name in ("domains", "levels"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise ValueError(f"{name} must be given, each once, got {values}")
        known = sorted({level for name in self.domains for level in domain_named(name).levels})
        for level in (*self.levels, *self.demonstration_levels):
            if level not in known:
                raise ValueError(f"level {level} does not exist; the levels are {', '.join(map(str, known))}")
        for name in self.domains if self.twins and self.count else ():
            if not any(domain == name for domain, _ in self.cells()):
                raise ValueError(f"domain {name} has no twins at the levels {self.levels}; leave it out")
        if self.demonstrations and not self.demonstration_cells():
            raise ValueError(f"none of the levels {self.levels} may be shown; give demonstration_levels")

    def _check_counts(self) -> None:
        if self.twins and any(count % 2 for *_, count in self.counts):
            raise ValueError("counts must be even with twins, which come in pairs")
        if strange := [cell for *cell, _ in self.counts if tuple(cell) not in self.cells()]:
            raise ValueError(f"counts: {strange[0]} is none of the domains' levels")
        if (found := sum(count for *_, count in self.counts)) != self.count and self.counts:
            raise ValueError(f"counts add up to {found}, count is {self.count}")

    def cells(self) -> list[tuple[str, int]]:
        return [
            (name, level)
            for name in self.domains
            for level in self.levels
            if level in (twin_levels(DOMAINS[name]) if self.twins else DOMAINS[name].levels)
        ]

    def demonstration_cells(self) -> list[tuple[str, int]]:
        chosen = self.demonstration_levels
        return [
            (name, level)
            for name in self.domains
            for level in (chosen or self.levels)
            if level in (DOMAINS[name].levels if chosen else DOMAINS[name].shown_levels)
        ]

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Of the fields that may be left out, as `as_json` has them."""
        return json.loads(
            canonical_json({one.name: one.default for one in fields(cls) if one.default is not MISSING})
        )

    def as_json(self) -> dict[str, Any]:
        """All that decides the corpus' bytes, the versions of what makes it included."""
        versions = {name: domain_named(name).version for name in self.domains}
        found = asdict(self)
        for name in (
            "counts",
            "twins",
        ):  # so that older corpora keep their hashes
            if not found[name]:
                del found[name]
        gates = GATE_VERSIONS | ADMISSION_VERSIONS
        made_by = {"domain_versions": versions, "gate_versions": gates, "task_version": TASK_VERSION}
        return json.loads(canonical_json(found | made_by))


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardSpec:
    """`start`: the first candidate's index within its domain and level."""

    name: str
    kind: str
    domain: str
    level: int
    start: int
    rows: int
    seed: int
    slip_rates: tuple[float, ...] = ()
    twins: bool = False

    @property
    def max_candidates(self) -> int:
        """Seeds that the shard may use; each gives a pair with twins."""
        return self.rows * CANDIDATES_PER_ROW // (2 if self.twins else 1)


def plan_shards(config: SynthConfig) -> tuple[ShardSpec, ...]:
    specs: list[ShardSpec] = []
    plans = (
        ("tasks", config.cells(), config.count, config.shard_rows, ()),
        (
            "demonstrations",
            config.demonstration_cells(),
            config.demonstrations,
            DEMONSTRATION_ROWS,
            config.slip_rates,
        ),
    )
    for kind, cells, count, shard_rows, slip_rates in plans:
        wanted = {(domain, level): number for domain, level, number in config.counts}
        each = 2 if config.twins and kind == "tasks" else 1
        for index, (domain, level) in enumerate(cells):
            even = count // each // len(cells) + (index < count // each % len(cells))
            left = wanted.get((domain, level), 0) // each if kind == "tasks" and wanted else even
            at_once = max(1, shard_rows // each)
            for first in range(0, left, at_once):
                specs.append(
                    ShardSpec(
                        name=f"part-{sum(spec.kind == kind for spec in specs):05d}",
                        kind=kind,
                        domain=domain,
                        level=level,
                        start=first * CANDIDATES_PER_ROW,
                        rows=min(at_once, left - first) * each,
                        seed=config.seed,
                        slip_rates=slip_rates,
                        twins=each > 1,
                    )
                )
    return tuple(specs)

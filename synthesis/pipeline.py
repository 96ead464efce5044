"""From a config to a corpus: shards made anywhere, stored by one writer, exactly once.

A shard is a fixed range of seeds of one domain and level and a pure function of its spec, so the corpus is
the same for any number of workers and after any number of kills. A stored shard leaves a receipt under
`.synth/`; a run that finds receipts goes on with the shards that have none. `corpus.json` is written last.
"""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from envs.files import write_whole
from envs.task import TASK_VERSION, canonical_json, digest, stable_seed
from synthesis.admission import ADMISSION_VERSIONS, Admission
from synthesis.candidates import certified_candidates
from synthesis.card import CARD, card_bytes
from synthesis.corpus import (
    CORPUS_VERSION,
    MANIFEST,
    TOOLSETS,
    CorpusTask,
    Manifest,
    Shard,
    manifest_bytes,
    read_manifest,
    read_shard,
    task_files,
    toolset_id,
    toolsets_bytes,
)
from synthesis.demonstrations import Demonstration, demonstrate_once, demonstration_file
from synthesis.gates.suite import GATE_VERSIONS, TITLES
from synthesis.general import DOMAINS, FAMILY, domain_named
from synthesis.grammar import toolsets_of
from synthesis.receipts import WORK, locked_directory, store_file, store_shard, stored_shard
from synthesis.tally import checks, tally

DEFAULT_LEVELS = (1, 2, 3, 4)
CANDIDATES_PER_ROW = 400
"""A shard gives up after so many candidates for each row that it should hold."""
DEMONSTRATION_ROWS = 500
GENERATOR = "worldsmith synth 1"


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

    def __post_init__(self) -> None:
        if self.family != FAMILY:
            raise ValueError(f"family must be {FAMILY}, got {self.family!r}")
        for name in ("count", "demonstrations"):
            if not 0 <= getattr(self, name) <= 10_000_000:
                raise ValueError(f"{name} must lie in 0 to 10,000,000, got {getattr(self, name)}")
        if self.count == self.demonstrations == 0:
            raise ValueError("count must be at least 1, got 0: nothing to make")
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
        if self.demonstrations and not self.demonstration_cells():
            raise ValueError(f"none of the levels {self.levels} may be shown; give demonstration_levels")

    def _check_counts(self) -> None:
        if strange := [cell for *cell, _ in self.counts if tuple(cell) not in self.cells()]:
            raise ValueError(f"counts: {strange[0]} is none of the domains' levels")
        if (found := sum(count for *_, count in self.counts)) != self.count and self.counts:
            raise ValueError(f"counts add up to {found}, count is {self.count}")

    def cells(self) -> list[tuple[str, int]]:
        return [
            (name, level) for name in self.domains for level in self.levels if level in DOMAINS[name].levels
        ]

    def demonstration_cells(self) -> list[tuple[str, int]]:
        chosen = self.demonstration_levels
        return [
            (name, level)
            for name in self.domains
            for level in (chosen or self.levels)
            if level in (DOMAINS[name].levels if chosen else DOMAINS[name].shown_levels)
        ]

    def as_json(self) -> dict[str, Any]:
        """All that decides the corpus' bytes, the versions of what makes it included."""
        versions = {name: domain_named(name).version for name in self.domains}
        fields = asdict(self)
        if not self.counts:  # as it was before there were any, so that older corpora can be resumed
            del fields["counts"]
        gates = GATE_VERSIONS | ADMISSION_VERSIONS
        made_by = {"domain_versions": versions, "gate_versions": gates, "task_version": TASK_VERSION}
        return json.loads(canonical_json(fields | made_by))


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


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardResult:
    shard: Shard
    contents: dict[str, bytes]


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
        for index, (domain, level) in enumerate(cells):
            even = count // len(cells) + (index < count % len(cells))
            left = wanted.get((domain, level), 0) if kind == "tasks" and wanted else even
            for first in range(0, left, shard_rows):
                specs.append(
                    ShardSpec(
                        name=f"part-{sum(spec.kind == kind for spec in specs):05d}",
                        kind=kind,
                        domain=domain,
                        level=level,
                        start=first * CANDIDATES_PER_ROW,
                        rows=min(shard_rows, left - first),
                        seed=config.seed,
                        slip_rates=slip_rates,
                    )
                )
    return tuple(specs)


def make_shard(spec: ShardSpec, *, sandbox: str | None = None) -> ShardResult:
    """The shard's files, a pure function of its spec.

    sandbox: the tier of the boxes in which candidates are made and tried; None: in this process.
    """
    if spec.kind == "tasks":
        contents, rows, candidates, rejections = _make_tasks(spec, sandbox)
    else:
        contents, rows, candidates, rejections = _make_demonstrations(spec)
    shard = Shard(
        name=spec.name,
        kind=spec.kind,
        domain=spec.domain,
        level=spec.level,
        rows=rows,
        candidates=candidates,
        files={name: sha256(content).hexdigest() for name, content in contents.items()},
        rejections=dict(sorted(rejections.items())),
    )
    return ShardResult(shard=shard, contents=contents)


_Made = tuple[dict[str, bytes], int, int, Counter[str]]
NO_TASK = "the world holds no task of this level"


def _make_tasks(spec: ShardSpec, sandbox: str | None) -> _Made:
    accepted: list[CorpusTask] = []
    rejections: Counter[str] = Counter()
    admission = Admission()
    index = 0
    candidates = certified_candidates(
        spec.domain, spec.level, lambda index: _seed(spec, index), tier=sandbox, batch=spec.rows
    )
    while len(accepted) < spec.rows and index < spec.rows * CANDIDATES_PER_ROW:
        certified = next(candidates)
        index += 1
        if certified is None:
            rejections[NO_TASK] += 1
        elif isinstance(certified, str):
            rejections[f"{certified} {TITLES[certified]}"] += 1
        elif (reason := admission.refuse(certified)) is not None:
            rejections[reason] += 1
        else:
            accepted.append(certified)
    return task_files(spec.name, accepted), len(accepted), index, rejections


def _make_demonstrations(spec: ShardSpec) -> _Made:
    domain = domain_named(spec.domain)
    made: list[Demonstration] = []
    rejections: Counter[str] = Counter()
    index = 0
    while len(made) < spec.rows and index < spec.rows * CANDIDATES_PER_ROW:
        slip_rate = spec.slip_rates[len(made) % len(spec.slip_rates)]
        shown = demonstrate_once(domain, spec.level, _seed(spec, index), slip_rate=slip_rate)
        index += 1
        if shown is None:
            rejections[NO_TASK] += 1
        else:
            made.append(shown)
    return demonstration_file(spec.name, made), len(made), index, rejections


def _seed(spec: ShardSpec, index: int) -> int:
    return stable_seed(spec.seed, spec.kind, spec.domain, spec.level, spec.start + index)


def synthesize(
    config: SynthConfig,
    directory: Path,
    *,
    workers: int,
    on_shard: Callable[[Shard], None] = lambda shard: None,
    sandbox: str | None = None,
) -> Manifest:
    """Makes the shards that `directory` still lacks and finishes the corpus. Raises ValueError for another's
    directory.

    workers: 0 makes them in this process, else so many Ray workers do. sandbox: as for `make_shard`.
    """
    _refuse_strangers(directory)
    with locked_directory(directory):
        if (directory / MANIFEST).exists():
            manifest = read_manifest(directory)
            refuse_other_config(config, manifest.config, directory)
            for shard in manifest.shards:
                on_shard(shard)
        else:
            _claim(config, directory)
            manifest = _finish(
                config, directory, _all_shards(config, directory, (workers, sandbox), on_shard)
            )
        shutil.rmtree(directory / WORK)
    return manifest


def _all_shards(
    config: SynthConfig, directory: Path, how: tuple[int, str | None], on_shard: Callable[[Shard], None]
) -> list[Shard]:
    specs = plan_shards(config)
    done = {
        _key(spec): shard
        for spec in specs
        if (shard := stored_shard(directory, spec.kind, spec.name)) is not None
    }
    for shard in done.values():
        on_shard(shard)
    for result in _run([spec for spec in _mixed(specs) if _key(spec) not in done], *how):
        store_shard(directory, result.shard, result.contents)
        done[_key(result.shard)] = result.shard
        on_shard(result.shard)
    return [done[_key(spec)] for spec in specs]


def _mixed(specs: Sequence[ShardSpec]) -> list[ShardSpec]:
    """Tasks and demonstrations by turns, so that the time left that a person is told is right: a task takes
    as long as thirty demonstrations.
    """
    kinds = Counter(spec.kind for spec in specs)
    seen: Counter[str] = Counter()
    places = []
    for spec in specs:
        seen[spec.kind] += 1
        places.append((seen[spec.kind] / kinds[spec.kind], spec.kind != "tasks"))
    order = sorted(range(len(specs)), key=lambda index: places[index])
    return [specs[index] for index in order]


def _run(specs: Sequence[ShardSpec], workers: int, sandbox: str | None) -> Iterator[ShardResult]:
    make = partial(make_shard, sandbox=sandbox)
    if workers == 0 or not specs:
        return map(make, specs)
    from synthesis.ray_shards import map_on_ray  # Ray takes seconds to import

    return map_on_ray(make, specs, workers)


def _key(part: ShardSpec | Shard) -> tuple[str, str]:
    return part.kind, part.name


def _refuse_strangers(directory: Path) -> None:
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"{directory}: is a file; give a directory")
    directory.mkdir(parents=True, exist_ok=True)
    names = sorted(entry.name for entry in directory.iterdir())
    if names and WORK not in names and MANIFEST not in names:
        raise ValueError(
            f"{directory}: holds {names[0]!r}, which is no part of a corpus; give an empty directory"
        )


def _claim(config: SynthConfig, directory: Path) -> None:
    """Writes down what is made here, or refuses when something else is."""
    for torn in directory.rglob(".*.tmp"):  # what a kill left behind
        torn.unlink()
    path = directory / WORK / "config.json"
    if path.exists():
        try:
            found = json.loads(path.read_bytes())
        except ValueError:
            raise ValueError(f"{path}: damaged; remove {directory} and begin again") from None
        refuse_other_config(config, found, directory)
        return
    write_whole(path, canonical_json(config.as_json()).encode())


def refuse_other_config(config: SynthConfig, found: dict[str, Any], directory: Path) -> None:
    wanted = config.as_json()
    differences = [
        f"{name} {found.get(name)!r} there, {wanted.get(name)!r} now"
        for name in sorted(set(wanted) | set(found))
        if wanted.get(name) != found.get(name)
    ]
    if differences:
        raise ValueError(
            f"{directory}: begun otherwise ({'; '.join(differences)}); give the same or another --out"
        )


def _finish(config: SynthConfig, directory: Path, shards: Sequence[Shard]) -> Manifest:
    toolsets = {
        toolset_id(name, tools): tools for name in config.domains for tools in toolsets_of(DOMAINS[name])
    }
    tallies = tally(
        entry for shard in shards if shard.kind == "tasks" for entry in read_shard(directory, shard)
    )
    found = checks(tallies)
    contents = {
        TOOLSETS: toolsets_bytes(toolsets),
        CARD: card_bytes(config.as_json(), shards, tallies, found),
    }
    for name, content in contents.items():
        store_file(directory, name, content)
    manifest = Manifest(
        version=CORPUS_VERSION,
        generator=GENERATOR,
        config=config.as_json(),
        config_hash=digest(canonical_json(config.as_json())),
        shards=tuple(shards),
        files={name: sha256(content).hexdigest() for name, content in contents.items()},
        num_tasks=sum(shard.rows for shard in shards if shard.kind == "tasks"),
        num_demonstrations=sum(shard.rows for shard in shards if shard.kind == "demonstrations"),
        checks=found,
    )
    store_file(directory, MANIFEST, manifest_bytes(manifest))
    return read_manifest(directory)

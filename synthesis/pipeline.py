"""From a config to a corpus: shards made anywhere, stored by one writer, exactly once.

A shard is a fixed range of seeds of one domain and level and a pure function of its spec, so the corpus is
the same for any number of workers and after any number of kills. A stored shard leaves a receipt under
`.synth/`; a run that finds receipts goes on with the shards that have none. `corpus.json` is written last.
"""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from envs.files import write_whole
from envs.task import canonical_json, digest, stable_seed
from synthesis.admission import Admission
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
from synthesis.gates.suite import TITLES
from synthesis.general import DOMAINS, domain_named
from synthesis.grammar import toolsets_of
from synthesis.receipts import WORK, locked_directory, store_file, store_shard, stored_shard
from synthesis.shard_plan import ShardSpec, SynthConfig, plan_shards
from synthesis.tally import checks, tally

GENERATOR = "worldsmith synth 1"
OnShard = Callable[[Shard], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardResult:
    shard: Shard
    contents: dict[str, bytes]


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
        spec.domain,
        spec.level,
        lambda index: _seed(spec, index),
        tier=sandbox,
        batch=spec.rows,
        twins=spec.twins,
    )
    while len(accepted) < spec.rows and index < spec.max_candidates:
        certified = next(candidates)
        index += 1
        if certified is None:
            rejections[NO_TASK] += 1
        elif isinstance(certified, str):
            rejections[f"{certified} {TITLES[certified]}" if certified in TITLES else certified] += 1
        elif reasons := [reason for entry in certified if (reason := admission.refuse(entry)) is not None]:
            rejections[reasons[0]] += 1
        else:
            accepted += certified
    return task_files(spec.name, accepted), len(accepted), index, rejections


def _make_demonstrations(spec: ShardSpec) -> _Made:
    domain = domain_named(spec.domain)
    made: list[Demonstration] = []
    rejections: Counter[str] = Counter()
    index = 0
    while len(made) < spec.rows and index < spec.max_candidates:
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
    on_shard: OnShard = lambda shard: None,
    on_found: OnShard = lambda shard: None,
    sandbox: str | None = None,
) -> Manifest:
    """Makes the shards that `directory` still lacks and finishes the corpus. Raises ValueError for another's
    directory.

    workers: 0 makes them in this process, else so many Ray workers do. on_shard: called after each shard that
    is made; on_found: before them, for each that an earlier run left. sandbox: as for `make_shard`.
    """
    _refuse_strangers(directory)
    with locked_directory(directory):
        if (directory / MANIFEST).exists():
            manifest = read_manifest(directory)
            refuse_other_config(config, manifest.config, directory)
            for shard in manifest.shards:
                on_found(shard)
        else:
            _claim(config, directory)
            made = _all_shards(config, directory, (workers, sandbox), on_shard, on_found)
            manifest = _finish(config, directory, made)
        shutil.rmtree(directory / WORK)
    return manifest


def _all_shards(
    config: SynthConfig, directory: Path, how: tuple[int, str | None], on_shard: OnShard, on_found: OnShard
) -> list[Shard]:
    specs = plan_shards(config)
    done = {
        _key(spec): shard
        for spec in specs
        if (shard := stored_shard(directory, spec.kind, spec.name)) is not None
    }
    for shard in done.values():
        on_found(shard)
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
    """A field that is in neither, or not yet in a corpus begun before there was one, is at its default."""
    defaults = SynthConfig.defaults()
    wanted, found = defaults | config.as_json(), defaults | found
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

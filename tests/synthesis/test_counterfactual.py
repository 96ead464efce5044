"""Counterfactual twins: one fact apart, the same request, and neither's solution is right for the other."""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import pytest

from envs.agents import gold_plan, play_plan
from envs.task import stable_seed, task_from_json, task_to_json
from synthesis import counterfactual
from synthesis.candidates import NO_TWIN, certified_candidates
from synthesis.card import CARD
from synthesis.certificate import certify_candidate, check_shard, check_task
from synthesis.corpus import CorpusTask, read_corpus, read_manifest, task_files
from synthesis.counterfactual import made_again, make_twin, num_differences
from synthesis.facts import otherwise
from synthesis.general import DOMAINS, Candidate, demonstrate, make_candidate
from synthesis.grammar import full_care, twin_levels
from synthesis.pipeline import synthesize
from synthesis.shard_plan import SynthConfig, plan_shards

CELLS = [(name, level) for name, domain in DOMAINS.items() for level in twin_levels(domain)]
PAIRS = SynthConfig(domains=("retail", "rooms"), levels=(1, 2), count=8, seed=3, twins=True)


@lru_cache(maxsize=32)
def pair(domain: str, level: int) -> tuple[Candidate, Candidate]:
    """The first that is found in a run of seeds."""
    for index in range(60):
        made = make_candidate(DOMAINS[domain], level, stable_seed("twin", domain, level, index))
        twin = make_twin(made) if made is not None else None
        if made is not None and twin is not None:
            return made, twin
    raise AssertionError(f"{domain} {level}: no twin in 60 seeds")


def score(here: Candidate, there: Candidate) -> float | None:
    return play_plan(here.task, here.image, gold_plan(there.task)).reward


@pytest.mark.parametrize(("domain", "level"), CELLS)
def test_a_pair_is_told_the_same_and_right_otherwise(domain: str, level: int) -> None:
    made, twin = pair(domain, level)
    assert (made.task.prompt, made.task.tools) == (twin.task.prompt, twin.task.tools)
    assert num_differences(made.draft, twin.draft) == 1
    assert [score(a, b) for a in (made, twin) for b in (made, twin)] == [1.0, 0.0, 0.0, 1.0]
    assert twin.task.provenance.twin_of == made.task.task_id != twin.task.task_id
    planned = demonstrate(DOMAINS[domain], made.draft, twin.image, full_care())
    assert planned == twin.task.gold  # what the request says of the one suffices for the other
    assert made_again(twin.task) == twin
    assert made_again(made.task) == made


@pytest.mark.parametrize(("domain", "level"), CELLS)
def test_a_twin_passes_every_gate_as_a_task_of_its_own(domain: str, level: int) -> None:
    for each in pair(domain, level):
        certified = certify_candidate(each)
        assert isinstance(certified, CorpusTask), certified
        assert check_task(certified) is None


def test_a_twin_of_another_task_is_no_twin() -> None:
    made, twin = pair("retail", 2)
    task = replace(twin.task, provenance=replace(twin.task.provenance, twin_of="retail-2-000000000000"))
    certified = certify_candidate(replace(twin, task=task))
    assert not isinstance(certified, CorpusTask)
    assert certified.evidence == "the seed gives another task"
    assert made_again(replace(made.task, task_id="")) == made


def test_only_a_twin_says_whose_it_is() -> None:
    """So that the tasks of older corpora keep their bytes and ids."""
    made, twin = pair("retail", 1)
    assert "twin_of" not in task_to_json(made.task)
    assert task_from_json(task_to_json(twin.task)) == twin.task
    assert task_from_json(task_to_json(made.task)) == made.task


def test_a_world_where_the_same_is_right_is_no_twins(monkeypatch: pytest.MonkeyPatch) -> None:
    made, twin = pair("retail", 1)
    real = counterfactual.play_plan

    def pays_all(*arguments: object) -> object:
        return replace(real(*arguments), reward=1.0)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(counterfactual, "play_plan", pays_all)
    assert make_twin(made) is None
    monkeypatch.setattr(counterfactual, "play_plan", real)
    assert make_twin(made) == twin
    monkeypatch.setattr(counterfactual, "num_differences", lambda *_: 2)
    assert make_twin(made) is None


def test_domains_and_levels_without_twins_have_none(candidate: Callable[..., Candidate]) -> None:
    assert make_twin(candidate("ledger", 1)) is None
    assert make_twin(candidate("warehouse", 5)) is None


@dataclass(frozen=True, kw_only=True, slots=True)
class Yard:
    bays: list[tuple[str, int]]
    doors: dict[str, dict[str, str]]


def test_each_fact_is_changed_once_and_nothing_else() -> None:
    yard = Yard(bays=[("a", 1), ("b", 2)], doors={"north": {"state": "open"}, "south": {"state": "shut"}})
    facts = {
        "bays.1": lambda bay: (bay[1], bay[1] + 10),
        "doors.state": lambda _: ("open", "shut"),
    }
    found = list(otherwise(yard, facts, random.Random(1)))
    bays = [
        Yard(bays=[("a", 11), ("b", 2)], doors=yard.doors),
        Yard(bays=[("a", 1), ("b", 12)], doors=yard.doors),
    ]
    doors = [
        replace(yard, doors=yard.doors | {"north": {"state": "shut"}}),
        replace(yard, doors=yard.doors | {"south": {"state": "open"}}),
    ]
    assert len(found) == 4
    assert all(world in found for world in (*bays, *doors))
    assert list(otherwise(yard, facts, random.Random(1))) == found


@pytest.fixture(scope="module")
def corpus_of_pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("twins") / "pairs"
    synthesize(PAIRS, directory, workers=0)
    return directory


def test_a_corpus_of_twins_holds_pairs_and_proves_them(corpus_of_pairs: Path) -> None:
    manifest = read_manifest(corpus_of_pairs)
    entries = read_corpus(corpus_of_pairs)
    assert len(entries) == manifest.num_tasks == 8
    for first, second in zip(entries[::2], entries[1::2], strict=True):
        assert (first.task.provenance.twin_of, second.task.provenance.twin_of) == ("", first.task.task_id)
    assert [check_shard(corpus_of_pairs, shard) for shard in manifest.shards] == [[]] * 4
    assert all(check.passed for check in manifest.checks if check.name == "near-duplicates")
    assert "Tasks stand in pairs" in (corpus_of_pairs / CARD).read_text()


def test_a_twin_apart_from_its_task_is_a_fault(corpus_of_pairs: Path, tmp_path: Path) -> None:
    shard = read_manifest(corpus_of_pairs).shards[0]
    first, second = read_corpus(corpus_of_pairs)[:2]
    for entries, apart in (([second], True), ([second, first], True), ([first, second], False)):
        files = task_files(shard.name, entries)
        for name, content in files.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(content)
        digests = {name: sha256(content).hexdigest() for name, content in files.items()}
        faults = check_shard(tmp_path, replace(shard, rows=len(entries), files=digests))
        found = [fault for fault in faults if fault.what.startswith("does not stand behind")]
        assert bool(found) == apart


def test_shards_of_pairs_are_even_and_share_no_seed() -> None:
    config = SynthConfig(domains=("retail",), levels=(1, 2), count=22, seed=1, twins=True, shard_rows=5)
    specs = plan_shards(config)
    assert [(spec.level, spec.rows) for spec in specs] == [(1, 4), (1, 4), (1, 4), (2, 4), (2, 4), (2, 2)]
    for level in (1, 2):
        ranges = [(s.start, s.start + s.max_candidates) for s in specs if s.level == level]
        assert all(end <= start for (_, end), (start, _) in pairwise(ranges))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"count": 3}, "count must be even"),
        ({"count": 4, "domains": ("ledger",)}, "domain ledger has no twins at the levels"),
        ({"count": 4, "domains": ("trip",), "levels": (1, 2)}, "domain trip has no twins at the levels"),
        ({"count": 4, "counts": (("retail", 1, 3), ("retail", 2, 1))}, "counts must be even"),
    ],
)
def test_what_has_no_pairs_is_refused(fields: dict[str, object], message: str) -> None:
    usual: dict[str, object] = {"domains": ("retail",), "seed": 1, "twins": True}
    with pytest.raises(ValueError, match=message):
        SynthConfig(**{**usual, **fields})  # pyright: ignore[reportArgumentType]


def test_a_corpus_without_twins_is_configured_as_before() -> None:
    assert "twins" not in SynthConfig(count=2, seed=1).as_json()
    assert SynthConfig(count=2, seed=1, twins=True, domains=("retail",)).as_json()["twins"] is True


def test_a_task_without_a_twin_is_counted_and_boxes_make_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("synthesis.candidates.make_twin", lambda _: None)
    tries = certified_candidates("retail", 1, lambda index: index, tier=None, batch=1, twins=True)
    assert next(tries) == NO_TWIN
    boxed = certified_candidates("retail", 1, lambda index: index, tier="docker", batch=1, twins=True)
    with pytest.raises(ValueError, match="boxes make no twins"):
        next(boxed)

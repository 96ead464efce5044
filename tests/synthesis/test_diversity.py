"""Near-duplicates are found among many, different tasks are told apart, benchmarks are recognised."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest

from envs.task import Message
from synthesis.admission import CONTAMINATED, DUPLICATE, Admission
from synthesis.corpus import CorpusTask
from synthesis.decontamination import (
    HASH_BYTES,
    fingerprint_file,
    read_fingerprints,
    run_hashes,
    shared_runs,
    shipped,
)
from synthesis.diversity import (
    NUM_PERMUTATIONS,
    DuplicateIndex,
    effective_number,
    minhash,
    plan_shape,
    prompt_shape,
    shingles,
    similarity,
    structure,
)
from synthesis.general import Candidate

Candidates = Callable[..., Candidate]


def entry(made: Candidate) -> CorpusTask:
    return CorpusTask(task=made.task, image=made.image)


@pytest.mark.parametrize("shared", [0, 300, 600, 900])
def test_minhash_estimates_the_jaccard_similarity(shared: int) -> None:
    """Of 1,000 texts each, `shared` are the same: their similarity is shared / (2000 - shared)."""
    ours = {f"both {n}" for n in range(shared)} | {f"ours {n}" for n in range(1000 - shared)}
    theirs = {f"both {n}" for n in range(shared)} | {f"theirs {n}" for n in range(1000 - shared)}
    found = similarity(minhash(iter(ours)), minhash(iter(theirs)))
    assert found == pytest.approx(shared / (2000 - shared), abs=2.5 * 0.5 / math.sqrt(NUM_PERMUTATIONS))


def test_minhash_goes_by_the_set_alone() -> None:
    assert minhash(iter(["a", "b", "c"])) == minhash(iter(["c", "a", "b", "a"]))
    assert minhash(iter(["a"])) == minhash(iter(["a"]))
    assert similarity(minhash(iter(["a"])), minhash(iter(["b"]))) < 0.1


def test_a_near_duplicate_is_found_among_many() -> None:
    index = DuplicateIndex()
    for number in range(300):
        index.add(minhash(f"{number} {word}" for word in range(50)))
    almost = [f"7 {word}" for word in range(48)] + ["new", "words"]
    assert index.seen(minhash(iter(almost)))  # 48 of 52: 0.92
    half = [f"7 {word}" for word in range(25)] + [f"other {word}" for word in range(25)]
    assert not index.seen(minhash(iter(half)))  # 25 of 75: 0.33


def test_what_shares_a_band_alone_is_no_duplicate() -> None:
    """Of pairs with similarity 75 / 125 = 0.6 nine in ten share a band; none is taken for a duplicate."""
    for number in range(20):
        index = DuplicateIndex()
        index.add(minhash(f"{number} {word}" for word in range(100)))
        other = [f"{number} {word}" for word in range(75)] + [f"x {number} {word}" for word in range(25)]
        assert not index.seen(minhash(iter(other)))


def test_the_same_request_over_another_world_is_another_task(candidate: Candidates) -> None:
    admission = Admission()
    for index in range(6):
        assert admission.refuse(entry(candidate("retail", 1, index))) is None
    assert admission.refuse(entry(candidate("retail", 1, 3))) == DUPLICATE
    made = candidate("retail", 1, 2)
    reworded = (
        *made.task.prompt[:-1],
        Message(role="user", content=made.task.prompt[-1].content + " Thanks!"),
    )
    again = entry(replace(made, task=replace(made.task, prompt=reworded)))
    assert admission.refuse(again) == DUPLICATE


def test_shapes_go_without_names(candidate: Candidates) -> None:
    trips = [candidate("trip", 1, index) for index in range(5)]
    assert len({structure(made.task, made.image) for made in trips}) == 1
    assert structure(trips[0].task, trips[0].image) != structure(
        candidate("retail", 1).task, candidate("retail", 1).image
    )
    task = candidate("retail", 3).task
    twice = replace(task, gold=replace(task.gold, calls=(task.gold.calls[0], *task.gold.calls)))
    assert plan_shape(twice) == plan_shape(task)
    other = replace(task, gold=replace(task.gold, calls=task.gold.calls[::-1]))
    assert plan_shape(other) != plan_shape(task)
    renamed = replace(task, prompt=(Message(role="user", content="Return order KA by 12:30."),))
    assert prompt_shape(renamed) == prompt_shape(
        replace(task, prompt=(Message(role="user", content="Return order ZP by 9:15."),))
    )


def test_the_effective_number_of_shapes() -> None:
    assert effective_number(Counter("abcd")) == pytest.approx(4)
    assert effective_number(Counter("aaaa")) == pytest.approx(1)
    assert effective_number(Counter("aaab")) == pytest.approx(4 / 27**0.25)  # exp of 0.75 ln 4/3 + 0.25 ln 4
    assert effective_number(Counter()) == 0.0


QUESTION = " ".join(f"word{n}" for n in range(20))


def test_a_benchmarks_text_is_recognised_by_hash_alone(candidate: Candidates) -> None:
    content = fingerprint_file({"some benchmark 1": [QUESTION]}, max_runs=100)
    assert b"word" not in content
    fingerprints = read_fingerprints(content)
    assert fingerprints.sources == {"some benchmark 1": 1}
    assert len(fingerprints.hashes) == 8  # 20 words hold 8 runs of 13
    task = candidate("trip", 1).task
    assert shared_runs(task, fingerprints)[0] == 0
    quoting = replace(task, prompt=(Message(role="user", content=f"Now: {QUESTION.upper()}, please."),))
    assert shared_runs(quoting, fingerprints)[0] == 8
    twelve = " ".join(QUESTION.split()[:12])
    brief = replace(task, prompt=(Message(role="user", content=f"{twelve} and then something else."),))
    assert shared_runs(brief, fingerprints)[0] == 0


def test_the_shipped_fingerprints_hold_benchmarks_and_no_text() -> None:
    fingerprints = shipped()
    assert len(fingerprints.hashes) >= 10_000
    assert sum(fingerprints.sources.values()) >= 1_000
    assert {len(each) for each in fingerprints.hashes} == {HASH_BYTES}


def test_a_contaminated_task_is_not_admitted(candidate: Candidates, monkeypatch: pytest.MonkeyPatch) -> None:
    made = candidate("retail", 1)
    content = fingerprint_file({"b": [made.task.prompt[0].content]}, max_runs=1000)
    monkeypatch.setattr("synthesis.admission.shipped", lambda: read_fingerprints(content))
    assert Admission().refuse(entry(made)) == CONTAMINATED


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"sources": {}, "hashes": "\\u00e9"}'])
def test_damaged_fingerprints_are_one_line(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"fingerprints\.json: damaged") as caught:
        read_fingerprints(content)
    assert "\n" not in str(caught.value)


def test_a_short_text_is_one_run() -> None:
    assert len(list(run_hashes("Plan a day."))) == 1
    assert list(run_hashes("plan A DAY")) == list(run_hashes("Plan a day."))
    assert list(run_hashes("...")) == []


def test_shingles_hold_the_prompt_and_the_world(candidate: Candidates) -> None:
    made = candidate("retail", 1)
    found = set(shingles(made.task, made.image))
    assert "with the tools" in found
    assert any("|status|" in each for each in found)

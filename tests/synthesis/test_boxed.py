"""Synthesis in boxes: the host believes no line from a box, and the corpus is the in-process one."""

import base64
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from envs.sandbox import docker_engine, namespaces
from envs.sandbox.contract import SandboxLostError, SandboxProtocolError
from envs.task import stable_seed, task_from_json, task_to_json
from synthesis.boxed.maker import BoxedMaker, believed, shared_maker
from synthesis.boxed.program import check_over_mcp, made
from synthesis.corpus import CorpusTask
from synthesis.general import domain_named, make_candidate
from synthesis.pipeline import synthesize
from synthesis.shard_plan import SynthConfig

SEED = next(
    seed
    for seed in (stable_seed("boxed", n) for n in range(100))
    if make_candidate(domain_named("retail"), 1, seed) is not None
)


@pytest.fixture(scope="module")
def line() -> dict[str, Any]:
    """What a box says of a good candidate; `made` is what runs in the box."""
    return made("retail", 1, SEED)


def changed(line: dict[str, Any], **fields: Any) -> dict[str, Any]:
    task = task_from_json(line["task"])
    return {**line, "task": task_to_json(replace(task, **fields))}


def test_what_an_honest_box_says_is_the_in_process_task(line: dict[str, Any]) -> None:
    from synthesis.certificate import certify_candidate

    candidate = make_candidate(domain_named("retail"), 1, SEED)
    assert candidate is not None
    assert believed("retail", 1, SEED, line) == certify_candidate(candidate)
    assert line["mcp_plays"] > 10


def test_a_refusal_and_an_empty_world_are_taken_as_they_are() -> None:
    assert believed("retail", 1, SEED, {"none": True}) is None
    assert believed("retail", 1, SEED, {"refused": "G4"}) == "G4"


@pytest.mark.parametrize(
    ("forge", "why"),
    [
        (lambda line: {"refused": "G99"}, "unknown gate"),
        (lambda line: {}, "from a box"),
        (lambda line: {**line, "task": "{"}, "from a box"),
        (lambda line: {**line, "image": "AAAA"}, "not a readable SQLite database"),
        (lambda line: changed(line, task_id="retail-1-000000000000"), "not its content's"),
        (lambda line: changed(line, level=2), "a task of"),
        (lambda line: changed(line, quality=()), "lacks a gate"),
        (lambda line: changed(line, clauses=()), "not its content's"),
    ],
)
def test_a_forged_line_is_refused(
    line: dict[str, Any], forge: Callable[[dict[str, Any]], dict[str, Any]], why: str
) -> None:
    with pytest.raises(SandboxProtocolError, match=why):
        believed("retail", 1, SEED, forge(line))


def test_a_verifier_that_pays_for_nothing_is_refused_though_its_records_say_that_it_passed(
    line: dict[str, Any],
) -> None:
    from envs.task import AnswerSpec, content_hash

    task = task_from_json(line["task"])
    lax = replace(task, clauses=(), frame=(), answer=AnswerSpec(kind="choice", choices=("",)))
    lax = replace(lax, gold=replace(task.gold, answer="", calls=()))
    forged = replace(lax, task_id=f"retail-1-{content_hash(lax)[:12]}")
    with pytest.raises(SandboxProtocolError, match="the verifier gives 1 where 0 is due"):
        believed("retail", 1, SEED, {**line, "task": task_to_json(forged)})


def test_a_fault_in_the_box_is_no_refusal() -> None:
    with pytest.raises(SandboxLostError, match="took longer"):
        believed("retail", 1, SEED, {"fault": "took longer than 120 s"})


def test_another_result_over_mcp_is_noticed(candidate: Callable[..., Any]) -> None:
    from contextlib import closing

    from synthesis.gates import gold
    from synthesis.gates.trial import Trial

    one = candidate("retail", 1)
    with closing(Trial(one)) as trial:
        gold.check(trial)
        trial.scores(one.task.gold.calls, [one.task.gold.answer])
        probes = trial.probes()
    assert check_over_mcp(one, probes) == 1
    honest = probes[0].episode
    entries = (replace(honest.journal[0], result="forged"), *honest.journal[1:])
    probes[0] = replace(probes[0], episode=replace(honest, journal=entries))
    with pytest.raises(RuntimeError, match="over MCP another journal"):
        check_over_mcp(one, probes)


def test_a_tier_that_isolates_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="isolates nothing"):
        BoxedMaker("process")


def why_not(tier: str) -> str | None:
    return namespaces.why_unavailable() if tier == "namespaces" else docker_engine.why_unavailable()


@pytest.mark.slow
@pytest.mark.integration
@pytest.mark.timeout(600)
@pytest.mark.parametrize("tier", ["namespaces", pytest.param("docker", marks=pytest.mark.docker)])
def test_the_corpus_from_boxes_is_the_in_process_one_byte_for_byte(tier: str, tmp_path: Path) -> None:
    if (why := why_not(tier)) is not None:
        pytest.skip(why)
    config = SynthConfig(domains=("retail", "library"), count=4, seed=8, levels=(1,), shard_rows=2)
    synthesize(config, tmp_path / "here", workers=0)
    synthesize(config, tmp_path / "boxed", workers=0, sandbox=tier)
    shared_maker(tier).close()
    shared_maker.cache_clear()
    names = sorted(path.relative_to(tmp_path / "here") for path in (tmp_path / "here").rglob("*.*"))
    assert names
    for name in names:
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "boxed" / name).read_bytes()


def test_an_image_is_sent_as_text(line: dict[str, Any]) -> None:
    entry = believed("retail", 1, SEED, json.loads(json.dumps(line)))
    assert isinstance(entry, CorpusTask)
    assert entry.image == base64.b64decode(line["image"])

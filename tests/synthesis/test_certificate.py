"""A certificate fails on a single changed byte, and on a changed task with hashes computed again."""

import json
import random
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from envs.task import GateRecord, Plan, Task, task_from_json, task_to_json
from envs.world import open_image
from synthesis.certificate import certificate_json, certificate_of, check_manifest, check_shard, check_task
from synthesis.corpus import CorpusTask, Shard, read_corpus, read_manifest, task_files
from synthesis.gates.suite import GATES


def faults(root: Path) -> list[str]:
    manifest = read_manifest(root)
    found = check_manifest(root, manifest)
    for shard in manifest.shards:
        found += check_shard(root, shard)
    return [fault.what for fault in found]


@pytest.fixture(scope="module")
def entry(made_once: Path) -> CorpusTask:
    """A retail task whose gold returns an order."""
    return next(e for e in read_corpus(made_once, domain="retail") if e.task.frame)


def certified_anew(task: Task, image: bytes) -> CorpusTask:
    """As by somebody who computes every hash again."""
    return CorpusTask(task=task, image=image, certificate=certificate_json(certificate_of(task, image)))


def test_an_untouched_corpus_is_proved_again(made_once: Path) -> None:
    assert faults(made_once) == []


@pytest.mark.parametrize("folder", ["tasks", "worlds", "demonstrations"])
def test_a_flipped_byte_in_any_file_is_found(corpus: Path, folder: str) -> None:
    rng = random.Random(folder)
    shards = read_manifest(corpus).shards
    for path in sorted((corpus / folder).iterdir())[:3]:
        content = path.read_bytes()
        shard = next(s for s in shards if f"{folder}/{path.name}" in s.files)
        for offset in rng.sample(range(len(content)), 5):
            path.write_bytes(
                content[:offset] + bytes([content[offset] ^ (1 << rng.randrange(8))]) + content[offset + 1 :]
            )
            assert len(check_shard(corpus, shard)) == 1
        path.write_bytes(content)


def edit(path: tuple[str | int, ...], value: Callable[[Any], Any]) -> Callable[[Task], Task]:
    def apply(task: Task) -> Task:
        fields = json.loads(task_to_json(task))
        inner = fields
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value(inner[path[-1]])
        return task_from_json(json.dumps(fields))

    return apply


EDITS = {
    "gold call": edit(("gold", "calls", 0, "tool"), lambda text: text + "x"),
    "gold answer": edit(("gold", "answer"), lambda text: text + " "),
    "clause": edit(("clauses", 0, "sql"), lambda text: text + " "),
    "clause dropped": edit(("clauses",), lambda clauses: clauses[1:]),
    "frame": edit(("frame", 0, "columns"), lambda columns: [*columns, "item"]),
    "tool": edit(("tools", 0, "query"), lambda text: text + " "),
    "tool's statement": edit(("tools", 4, "statements", 0), lambda text: text + " "),
    "prompt": edit(("prompt", 1, "content"), lambda text: text + " "),
    "guess space": edit(("guess", "plans"), lambda plans: plans[1:]),
    "turns": edit(("max_turns",), lambda number: number + 1),
    "seed": edit(("world", "seed"), lambda number: number + 1),
    "generator's version": edit(("world", "generator_version"), lambda number: number + 1),
    "id": edit(("task_id",), lambda text: text + "0"),
    "a gate's value": edit(("quality", 4, "value"), lambda number: number / 2),
    "a gate's evidence": edit(("quality", 5, "evidence"), lambda text: text + " "),
    "a gate's verdict": edit(("quality", 5, "passed"), lambda passed: not passed),
    "a gate dropped": edit(("quality",), lambda records: records[:-1]),
    "a gate's version": edit(("quality", 0, "version"), lambda number: number + 1),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_task_is_found_by_its_hashes_and_without_them(entry: CorpusTask, name: str) -> None:
    task = EDITS[name](entry.task)
    assert task != entry.task
    assert check_task(replace(entry, task=task)) is not None
    assert check_task(certified_anew(task, entry.image)) is not None


def test_an_edited_world_is_found_by_its_hashes_and_without_them(entry: CorpusTask) -> None:
    db = open_image(entry.image)
    db.execute("UPDATE orders SET paid = 'gold' WHERE order_id = (SELECT max(order_id) FROM orders)")
    image = db.serialize()
    db.close()
    assert "world" in (check_task(replace(entry, image=image)) or "")
    task = replace(
        entry.task, world=replace(entry.task.world, content_hash=certificate_of(entry.task, image).world_hash)
    )
    assert check_task(certified_anew(task, image)) == f"seed {task.world.seed} gives another world"


def test_a_single_flipped_byte_of_the_world_is_found(entry: CorpusTask) -> None:
    for offset in random.Random(2).sample(range(len(entry.image)), 12):
        image = entry.image[:offset] + bytes([entry.image[offset] ^ 1]) + entry.image[offset + 1 :]
        assert check_task(replace(entry, image=image)) is not None


def test_a_certificate_that_claims_more_than_the_gates_find_is_found(entry: CorpusTask) -> None:
    boast = tuple(
        replace(record, value=record.value / 2) if record.gate == "G4" else record
        for record in entry.task.quality
    )
    what = check_task(certified_anew(replace(entry.task, quality=boast), entry.image))
    assert what is not None
    assert what.startswith("gate G4 finds")
    extra = (*entry.task.quality, GateRecord(gate="G99", passed=True, value=1.0, evidence="trust me"))
    assert "quality" in (check_task(certified_anew(replace(entry.task, quality=extra), entry.image)) or "")


@pytest.mark.parametrize("text", ["", "{}", "null", '{"version": 1}'])
def test_a_certificate_that_cannot_be_read_is_a_fault(entry: CorpusTask, text: str) -> None:
    assert (check_task(replace(entry, certificate=text)) or "").startswith(
        "certificate or world cannot be read"
    )


def test_an_edit_with_every_digest_made_to_match_is_still_found(corpus: Path) -> None:
    """Task, certificate, shard digest and manifest computed anew: what is left is to prove the task again."""
    shard = next(s for s in read_manifest(corpus).shards if s.kind == "tasks" and s.domain == "retail")
    entries = [e for e in read_corpus(corpus) if (e.task.domain, e.task.level) == (shard.domain, shard.level)]
    forged = [
        certified_anew(replace(e.task, gold=Plan(calls=(), answer="refused")), e.image) for e in entries
    ]
    files = task_files(shard.name, forged)
    for name, content in files.items():
        (corpus / name).write_bytes(content)
    matching = Shard(**{
        name: getattr(shard, name) for name in ("name", "kind", "domain", "level", "rows", "candidates")
    }, files={name: sha256(content).hexdigest() for name, content in files.items()})  # fmt: skip
    found = check_shard(corpus, matching)
    assert [fault.what.split(" gives ")[1] for fault in found] == ["another gold"] * len(entries)


def test_every_gate_is_in_every_tasks_quality(made_once: Path) -> None:
    for each in read_corpus(made_once):
        assert [record.gate for record in each.task.quality] == list(GATES)
        assert all(record.passed for record in each.task.quality)

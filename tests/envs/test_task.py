"""The records: their file form, their hashes, and seeds that no process changes."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from envs.task import Plan, Task, content_hash, stable_seed, task_from_json, task_to_json, verifier_hash
from envs.world import Table, build_image, image_hash

ROOT = Path(__file__).resolve().parents[2]


def test_a_task_survives_its_file_form(task: Task) -> None:
    assert task_from_json(task_to_json(task)) == task


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("surprise",), 1, "surprise"),
        (("level",), "one", "level"),
        (("clauses", 0, "part"), "mood", "clauses.0.part"),
        (("version",), 99, "task version 99, this program reads version 1"),
        (("gold",), None, "gold"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(
    task: Task, path: tuple[str | int, ...], value: object, message: str
) -> None:
    fields = json.loads(task_to_json(task))
    inner = fields
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(ValueError, match=message) as caught:
        task_from_json(json.dumps(fields), where="tasks.parquet row 3")
    assert str(caught.value).startswith("tasks.parquet row 3: ")
    assert "\n" not in str(caught.value)


def test_the_content_hash_covers_all_but_id_and_quality(task: Task) -> None:
    assert content_hash(replace(task, task_id="other")) == content_hash(task)
    for change in ({"gold": Plan(calls=(), answer="x")}, {"frame": ()}, {"max_turns": 6}, {"prompt": ()}):
        assert content_hash(replace(task, **change)) != content_hash(task)
    assert verifier_hash(replace(task, frame=())) != verifier_hash(task)
    assert verifier_hash(replace(task, prompt=())) == verifier_hash(task)


def test_seeds_are_worked_out_by_hash_and_not_by_python() -> None:
    """The first eight bytes of SHA-256 of `[1,"trip",2]`, halved."""
    assert stable_seed(1, "trip", 2) == 0xDBA14A2B4A746DA7 >> 1
    assert stable_seed(1, "trip", 2) != stable_seed(1, "trip2")


def test_the_same_tables_give_the_same_bytes_and_other_ones_others() -> None:
    def image(amount: int) -> bytes:
        return build_image([Table(name="t", columns=(("a", "TEXT"), ("b", "INTEGER")), rows=[("x", amount)])])

    assert image(1) == image(1)
    assert image_hash(image(1)) != image_hash(image(2))
    assert image(1)[92:100] == bytes(8)  # the library's version is not part of a world


PROGRAM = """
import hashlib
from envs.task import stable_seed, task_to_json
from synthesis.general import DOMAINS, make_candidate
state = hashlib.sha256()
for domain in DOMAINS.values():
    for level in domain.levels[:5]:
        for index in range(3):
            made = make_candidate(domain, level, stable_seed(7, domain.name, level, index))
            if made is not None:
                state.update(made.image + task_to_json(made.task).encode())
print(state.hexdigest())
"""


def test_worlds_and_tasks_are_the_same_in_every_process_and_time_zone() -> None:
    found = set()
    for hash_seed, zone in (("0", "UTC"), ("4242", "Asia/Tokyo")):
        env = {**os.environ, "PYTHONHASHSEED": hash_seed, "TZ": zone, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, check=True
        )
        found.add(done.stdout)
    assert len(found) == 1

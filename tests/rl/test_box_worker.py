"""Episodes in boxes on actors that are killed: each ends once, with the reward that is its own."""

import json
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from envs.sandbox import leases, namespaces
from rl.box_worker import BoxPlayers, play_in_boxes
from rl.evaluate import Row, requests_for
from rl.ray_session import ray_session
from tests.example_code_tasks import TASKS

SAMPLES = 34
KILL_EVERY_S = 2.0


@pytest.fixture(scope="module")
def session() -> Iterator[None]:
    if (fault := namespaces.why_unavailable()) is not None:
        pytest.skip(f"tier namespaces: {fault}")
    with ray_session(2):
        yield


def play(policy: str) -> list[Row]:
    tasks = list(TASKS.values())
    players = BoxPlayers(tier="namespaces", policy=policy, workers=2, threads=2)
    requests = requests_for([task.task_id for task in tasks], samples=SAMPLES, seed=3)
    return list(play_in_boxes(players, tasks, requests))


def outcome(rows: list[Row]) -> dict[tuple[str, int], tuple[object, ...]]:
    """By task and sample, all but the number of the attempt."""
    return {
        (row["task_id"], row["sample"]): (row["seed"], row["reward"], row["cause"], row["reason"])
        for row in rows
    }


def worker_pids() -> list[int]:
    """Processes of the players' actors: Ray names a process by what it runs."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                title = (entry / "cmdline").read_bytes().split(b"\0")[0]
            except OSError:  # it has ended
                continue
            if title.startswith(b"ray::BoxWorker"):
                found.append(int(entry.name))
    return found


class Killer(threading.Thread):
    """Kills a random actor every two seconds until told to stop."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.stop = threading.Event()
        self.killed: list[int] = []

    def run(self) -> None:
        rng = random.Random(7)
        while not self.stop.wait(KILL_EVERY_S):
            if pids := worker_pids():
                victim = rng.choice(sorted(pids))
                os.kill(victim, signal.SIGKILL)
                self.killed.append(victim)


@pytest.mark.integration
@pytest.mark.usefixtures("session")
@pytest.mark.timeout(600)
def test_every_episode_ends_once_with_its_reward_while_workers_are_killed() -> None:
    before = boxes()
    undisturbed = {policy: outcome(play(policy)) for policy in ("oracle", "null")}
    killer = Killer()
    killer.start()
    try:
        rows = {policy: play(policy) for policy in ("oracle", "null")}
    finally:
        killer.stop.set()
        killer.join()
    played = [(policy, row["task_id"], row["sample"]) for policy in rows for row in rows[policy]]
    assert len(played) == len(set(played)) == 2 * SAMPLES * len(TASKS) >= 200
    assert len(killer.killed) >= 5, "the run was over before much was killed"
    assert any(row["attempt"] > 0 for row in rows["oracle"])
    assert {policy: outcome(rows[policy]) for policy in rows} == undisturbed
    assert {row["reward"] for row in rows["oracle"]} == {1.0}
    assert {row["reward"] for row in rows["null"]} == {0.0}
    deadline = time.monotonic() + 20
    while boxes() - before and time.monotonic() < deadline:
        time.sleep(0.2)
    assert boxes() - before == set()


def boxes() -> set[str]:
    """Boxes of this user's whose keeper lives or whose control group is still there."""
    alive = set()
    for file in leases.lease_folder().glob("*.json"):
        with suppress(OSError, ValueError):
            lease = json.loads(file.read_text())
            keeper = leases.Owner.parse(lease["keeper"])
            groups_left = any(Path(group).exists() for group in lease["groups"])
            if groups_left or (keeper is not None and not keeper.is_known_dead()):
                alive.add(lease["box"])
    return alive

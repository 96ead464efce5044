"""Asynchronous rollouts with scripted actors: the bound, what is lost and played again, the books."""

import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envs.outcome import Cause
from policies.weights import Canary, PublishedWeights
from rl.config import TrainConfig
from rl.ledger import Ledger
from rl.observer import Silent
from rl.rollout_worker import Progress
from rl.rollouts import AsynchronousRollouts, Saved, oldest_version, staleness
from rl.run import Data, Run
from rl.run_files import RunLog
from rl.trajectory import PlayableTask, PlayRequest, Trajectory
from synthesis.general import DOMAINS, make_candidate
from tests.rl.test_learner import random_trajectory

SIZE = 2


class ScriptedActors:
    """Each call ends some of a seat's episodes, drawn by a seed; some calls end in the actor's death."""

    def __init__(self, seed: int, *, death_rate: float = 0.0, fault_rate: float = 0.0) -> None:
        self._rng = random.Random(seed)
        self._death_rate, self._fault_rate = death_rate, fault_rate
        self._version = -1
        self._over: list[tuple[int, Progress | None]] = []
        self._open: dict[int, list[tuple[PlayRequest, int]]] = {}
        self.played: Counter[tuple[int, int]] = Counter()

    def publish(self, published: PublishedWeights) -> None:
        self._version = published.version

    def call(self, seat: int, requests: Sequence[PlayRequest], seconds: float) -> None:
        playing = self._open.setdefault(seat, [])
        playing += [(request, self._version) for request in requests]
        if self._rng.random() < self._death_rate:
            self._open[seat] = []
            self._over.append((seat, None))
            return
        ended = [one for one in playing if self._rng.random() < 0.4]
        self._open[seat] = [one for one in playing if one not in ended]
        self.played.update((request.group, request.sample) for request, _ in ended)
        made = [self._made(request, version) for request, version in ended]
        self._over.append((seat, Progress(version=self._version, ended=made)))

    def wait(self, timeout_s: float) -> list[tuple[int, Progress | None]]:
        over, self._over = self._over, []
        return over

    def lost(self, request: PlayRequest) -> Trajectory:
        made = self._made(request, -1)
        nothing = (False,) * len(made.sampled)
        return replace(made, reward=None, cause=Cause.REPLICA_FAILED, sampled=nothing)

    def _made(self, request: PlayRequest, version: int) -> Trajectory:
        rng = np.random.default_rng(request.seed % 2**32)
        made = random_trajectory(rng, request.sample, 50, 1, version)
        fault = self._rng.random() < self._fault_rate
        return replace(
            made,
            group=request.group,
            sample=request.sample,
            attempt=request.attempt,
            cause=Cause.SANDBOX_LOST if fault else Cause.ANSWERED,
            reward=None if fault else made.reward,
        )


def weights(version: int) -> PublishedWeights:
    return PublishedWeights(version=version, tensors={}, checksums={}, canary=Canary(token_ids=(), logps=()))


@pytest.fixture(scope="module")
def task() -> PlayableTask:
    candidate = make_candidate(DOMAINS["trip"], 1, 3)
    assert candidate is not None
    return PlayableTask(task=candidate.task, image=candidate.image)


def make_run(out: Path, task: PlayableTask, **rl: int) -> Run:
    stale = rl.pop("max_staleness", 2)
    sizes = {"steps": 12, "groups_per_step": 5, "groups_trained": 3, "group_size": SIZE}
    fields: dict[str, Any] = {
        "corpus": "-",
        "heldout": "-",
        "cold_start": {"clean_steps": 0, "warm_up_steps": 0, "sparse_steps": 0},
        "rl": sizes | {"rows_per_micro_batch": 2, "learning_rate": 1e-3, "levels": [1]} | rl,
        "rollout": {"workers": 2, "slots": 8, "max_staleness": stale},
    }
    config = TrainConfig.model_validate(fields)
    data = Data(tasks=[task], heldout=[], clean=[], mixed=[], unseen_levels=frozenset())
    log = RunLog(out, command="train", config=fields, tier="none", seed=0)
    return Run(config=config, data=data, out=out, log=log, observer=Silent())


@contextmanager
def going(rollouts: AsynchronousRollouts, version: int) -> Iterator[AsynchronousRollouts]:
    rollouts.begin(weights(version))
    try:
        yield rollouts
    finally:
        rollouts.close()


def balanced(saved: Saved) -> bool:
    waiting = sum(len(members) for members in saved.ready) + SIZE * len(saved.open)
    return saved.ledger.in_flight == waiting


@pytest.mark.parametrize(("staleness_bound", "seed"), [(1, 0), (2, 1), (4, 2)])
def test_a_run_beside_scripted_actors_holds_the_bound_and_trains_each_group_once(
    tmp_path: Path, task: PlayableTask, staleness_bound: int, seed: int
) -> None:
    run = make_run(tmp_path, task, max_staleness=staleness_bound)
    actors = ScriptedActors(seed, death_rate=0.05, fault_rate=0.05)
    trained: list[tuple[int, int]] = []
    source = AsynchronousRollouts(run, actors, Saved(ledger=Ledger()), num_seats=2, version=0)
    with going(source, 0):
        for step in range(12):
            batch = source.next_batch()
            assert len(batch.taught) == 3 * SIZE
            assert all(step - oldest_version(t, default=step) <= staleness_bound for t in batch.taught)
            assert 0 <= staleness(batch, step)["staleness_max"] <= staleness_bound
            trained += [(t.group, t.sample) for t in batch.taught]
            source.step_done(weights(step + 1))
            assert balanced(source.saved())
    ledger = source.saved().ledger.as_fields()
    assert len(trained) == len(set(trained)) == 12 * 3 * SIZE
    assert (ledger["in_flight"], ledger["stale"]) == (0, 0)
    assert ledger["dispatched"] == sum(v for k, v in ledger.items() if k not in ("dispatched", "in_flight"))
    assert max(actors.played.values()) > 1  # some were lost and played again


def test_a_process_that_goes_on_from_a_checkpoint_trains_what_was_left_and_nothing_again(
    tmp_path: Path, task: PlayableTask
) -> None:
    run = make_run(tmp_path, task)
    first = AsynchronousRollouts(run, ScriptedActors(5), Saved(ledger=Ledger()), num_seats=2, version=0)
    trained: list[int] = []
    with going(first, 0):
        for step in range(4):
            trained += {t.group: None for t in first.next_batch().taught}
            first.step_done(weights(step + 1))
        kept, until = first.saved(), time.monotonic() + 30
        while not (kept.open or kept.ready) and time.monotonic() < until:
            time.sleep(0.01)  # the actors' thread begins the next groups when it gets its turn
            kept = first.saved()
        first.next_batch()  # what a kill undoes
    assert kept.open or kept.ready
    second = AsynchronousRollouts(run, ScriptedActors(6), kept, num_seats=1, version=4)
    with going(second, 4):
        for step in range(4, 12):
            trained += {t.group: None for t in second.next_batch().taught}
            second.step_done(weights(step + 1))
    assert len(trained) == len(set(trained)) == 36
    assert second.saved().ledger.in_flight == 0


def test_nothing_is_played_while_the_workers_are_somebody_elses(tmp_path: Path, task: PlayableTask) -> None:
    actors = ScriptedActors(7)
    source = AsynchronousRollouts(
        make_run(tmp_path, task), actors, Saved(ledger=Ledger()), num_seats=2, version=0
    )
    with going(source, 0):
        source.next_batch()
        with source.quiet():
            before = actors.played.copy()
            source.step_done(weights(1))
            time.sleep(0.1)
            assert actors.played == before
        source.next_batch()


def test_an_actors_fault_of_our_own_reaches_the_learner(tmp_path: Path, task: PlayableTask) -> None:
    class Broken(ScriptedActors):
        def wait(self, timeout_s: float) -> list[tuple[int, Progress | None]]:
            raise RuntimeError("a fault of our own")

    source = AsynchronousRollouts(
        make_run(tmp_path, task), Broken(1), Saved(ledger=Ledger()), num_seats=1, version=0
    )
    with going(source, 0), pytest.raises(RuntimeError, match="of our own"):
        source.next_batch()

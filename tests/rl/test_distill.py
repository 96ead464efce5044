"""Which episodes become lessons, and that none is played twice or left out of the count."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envs.outcome import Bait
from rl.distill import Refusal, lesson, play_all, played, select
from rl.observer import Silent
from rl.run import Data, Run
from rl.run_files import RunLog
from rl.trajectory import PlayableTask, Trajectory
from tests.rl.gold_players import GoldPlayers
from tests.rl.small_run import make_config, playable
from tests.rl.test_learner import random_trajectory

TASKS = playable(range(4), 1)
HELDOUT = playable(range(50, 52), 1)
BAIT = Bait.VERIFY_TOOL


def episode(task: PlayableTask, seed: int, *, reward: float | None = 1.0, **fields: Any) -> Trajectory:
    made = random_trajectory(np.random.default_rng(seed), 0, vocab=300, layers=1)
    return replace(made, task_id=task.task.task_id, reward=reward, **fields)


def selected(*episodes: Trajectory, heldout: list[PlayableTask] = HELDOUT, kept_per_task: int = 2) -> Any:
    return select(episodes, TASKS, heldout, kept_per_task=kept_per_task)


def test_what_passed_is_kept_up_to_the_bound_and_every_other_is_counted() -> None:
    one, two = TASKS[0], TASKS[1]
    passed = [episode(one, seed) for seed in range(3)]
    episodes = [
        episode(one, 10, reward=0.0),
        episode(one, 11, reward=None),
        episode(one, 12, baits=(BAIT,)),
        passed[0],
        replace(passed[0], sample=1),  # the same tokens once more
        passed[1],
        passed[2],
        episode(two, 13),
    ]
    found = selected(*episodes)
    assert found.kept == (passed[0], passed[1], episodes[-1])
    counts = found.as_fields()
    assert counts["tokens"] == sum(len(one.token_ids) for one in episodes)
    once = ("failed", "not_measured", "suspected_hack", "copy", "surplus")
    assert [counts[name] for name in once] == [1, 1, 1, 1, 1]
    assert counts["sampled"] == counts["kept"] + sum(counts[str(why)] for why in Refusal) == 8


def test_a_failed_copy_of_bait_counts_once_as_failed() -> None:
    found = selected(episode(TASKS[0], 0, reward=0.0, baits=(BAIT,)))
    assert found.refused == {Refusal.FAILED: 1}


def with_fields(task: PlayableTask, **fields: Any) -> PlayableTask:
    return PlayableTask(task=replace(task.task, **fields), image=task.image)


@pytest.mark.parametrize(
    "heldout",
    [
        with_fields(HELDOUT[0], task_id=TASKS[0].task.task_id),
        with_fields(HELDOUT[0], world=TASKS[0].task.world),
        with_fields(
            HELDOUT[0],
            prompt=(
                HELDOUT[0].task.prompt[0],
                replace(TASKS[0].task.prompt[1], content=f"  {TASKS[0].task.prompt[1].content.upper()}\n"),
            ),
        ),
    ],
    ids=["task", "world", "question"],
)
def test_a_lesson_shares_neither_task_nor_world_nor_question_with_a_held_out_one(
    heldout: PlayableTask,
) -> None:
    episodes = [episode(TASKS[0], 0), episode(TASKS[1], 1)]
    found = selected(*episodes, heldout=[heldout])
    assert found.refused == {Refusal.HELD_OUT: 1}
    assert found.kept == (episodes[1],)
    assert selected(*episodes, heldout=[HELDOUT[0]]).kept == tuple(episodes)


def test_a_lesson_is_what_was_sampled_token_by_token() -> None:
    made = episode(TASKS[0], 0)
    assert lesson(made).token_ids == made.token_ids
    assert lesson(made).written == made.sampled


@pytest.fixture
def run(tmp_path: Path) -> Run:
    config = make_config()
    fields = config.model_dump(mode="json")
    data = Data(tasks=[*TASKS, *playable(range(300, 301), 4)], heldout=HELDOUT, clean=[], mixed=[],
                unseen_levels=frozenset())  # fmt: skip
    log = RunLog(tmp_path / "run", command="train", config=fields, tier="process", seed=0)
    return Run(config=config, data=data, out=tmp_path / "run", log=log, observer=Silent())


class Players(GoldPlayers):
    """Plays with the tokens of any text: no policy is needed here."""

    def __init__(self, tasks: Any) -> None:
        self._tasks = tasks
        self.played = []

    def _play(self, request: Any) -> Trajectory:
        task = self._tasks[request.task_index]
        return replace(episode(task, request.task_index), sample=request.sample, seed=request.seed)


def test_each_task_of_the_trained_levels_is_played_once_whatever_is_lost(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rl.distill.CHUNK", 4)
    first: Any = Players(run.data.tasks)
    play_all(run, first, "s", samples=2)
    assert [(r.task_index, r.sample) for r in first.played] == [(i, s) for i in range(4) for s in range(2)]
    before = list(played(run, "s", samples=2))
    assert [(t.task_id, t.sample) for t in before] == [
        (task.task.task_id, sample) for task in TASKS for sample in range(2)
    ]

    (run.out / "samples" / "s-0001.safetensors").unlink()  # as a kill before its end leaves it
    again: Any = Players(run.data.tasks)
    play_all(run, again, "s", samples=2)
    assert [r.task_index for r in again.played] == [2, 2, 3, 3]
    assert [r.seed for r in again.played] == [r.seed for r in first.played[4:]]
    assert [t.token_ids for t in played(run, "s", samples=2)] == [t.token_ids for t in before]


def test_a_damaged_file_is_named(run: Run) -> None:
    players: Any = Players(run.data.tasks)
    play_all(run, players, "s", samples=2)
    file = run.out / "samples" / "s-0000.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"s-0000\.safetensors"):
        list(played(run, "s", samples=2))

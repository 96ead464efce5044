"""Groups: what they are about, and what twins in one group change."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from envs.outcome import Cause
from rl.advantage import group_advantages, rewards_of
from rl.config import TrainConfig
from rl.groups import as_taught, check_tasks, requests_of_group, requests_of_step, share_of_both, task_pool
from rl.measure import read_metrics
from rl.observer import Silent
from rl.run import Data, Run
from rl.run_files import RunLog
from rl.train import train
from rl.trajectory import PlayableTask, Trajectory
from synthesis.counterfactual import make_twin
from synthesis.general import DOMAINS, make_candidate
from tests.rl.small_run import make_config, make_data

SIZE = 4


def pairs(count: int) -> list[PlayableTask]:
    """Tasks of retail 1, each followed by its twin."""
    found: list[PlayableTask] = []
    for seed in range(100):
        made = make_candidate(DOMAINS["retail"], 1, seed)
        twin = make_twin(made) if made is not None else None
        if made is not None and twin is not None and len(found) < 2 * count:
            found += [PlayableTask(task=each.task, image=each.image) for each in (made, twin)]
    return found


@pytest.fixture(scope="module")
def playable() -> list[PlayableTask]:
    """Two pairs, and a task whose twin is elsewhere."""
    return pairs(3)[:5]


def make_run(out: Path, tasks: list[PlayableTask], **rl: Any) -> Run:
    config = make_config(rl={"groups_per_step": 6, **rl})
    data = Data(tasks=tasks, heldout=[], clean=[], mixed=[], unseen_levels=frozenset())
    log = RunLog(out, command="train", config={}, tier="none", seed=0)
    return Run(config=config, data=data, out=out, log=log, observer=Silent())


def episode(task_id: str, group: int, sample: int, reward: float | None) -> Trajectory:
    return Trajectory(
        task_id=task_id, domain="retail", level=1, group=group, sample=sample, attempt=0, seed=0,
        token_ids=(1,), num_prompt_tokens=1, sampled=(False,), logps=(0.0,), versions=(0,),
        routes=np.zeros((1, 1, 1), np.uint8), reward=reward, cause=Cause.ANSWERED, verdict=None,
        messages=(), num_turns=1,
        seconds_environment=0.0,
    )  # fmt: skip


def played(*rewards: float | None) -> list[Trajectory]:
    """Groups of four on a task and its twin."""
    return [
        episode(f"{'task' if at % SIZE < 2 else 'twin'} {at // SIZE}", at // SIZE, at % SIZE, reward)
        for at, reward in enumerate(rewards)
    ]


def test_a_group_is_half_about_the_task_and_half_about_its_twin(
    tmp_path: Path, playable: list[PlayableTask]
) -> None:
    run = make_run(tmp_path, playable, twins=True)
    assert task_pool(run.config.rl, playable) == [(0, 1), (2, 3), (4,)]
    by_group: dict[int, list[int]] = {}
    for request in requests_of_step(run, 0):
        by_group.setdefault(request.group, []).append(request.task_index)
    assert {tuple(group) for group in by_group.values()} <= {(0, 0, 1, 1), (2, 2, 3, 3), (4, 4, 4, 4)}
    assert any(len(set(group)) == 2 for group in by_group.values())
    alone = [request.task_index for request in requests_of_group(run, 7)]
    assert tuple(alone) in {(0, 0, 1, 1), (2, 2, 3, 3), (4, 4, 4, 4)}
    assert len({request.seed for request in requests_of_step(run, 0)}) == 6 * SIZE


def test_without_twins_each_task_stands_for_itself(tmp_path: Path, playable: list[PlayableTask]) -> None:
    run = make_run(tmp_path, playable)
    assert task_pool(run.config.rl, playable) == [(place,) for place in range(5)]
    for requests in (requests_of_step(run, 1)[:SIZE], requests_of_group(run, 3)):
        assert len({request.task_index for request in requests}) == 1


def test_who_does_the_same_for_both_learns_nothing_from_it(tmp_path: Path) -> None:
    """A policy that ignores the fact is right about the task and wrong about the twin, every time."""
    ignoring = played(1.0, 1.0, 0.0, 0.0)
    advantage = group_advantages(rewards_of(ignoring), SIZE)
    assert advantage.tolist() == [0.5, 0.5, -0.5, -0.5]
    assert advantage.sum() == 0.0  # the one deed that it knows is pushed up as much as down
    alone = group_advantages(torch.tensor([1.0, 1.0, 1.0, 1.0]), SIZE)
    assert alone.tolist() == [0.0] * 4  # and in groups of their own the pair would be no lesson at all


def test_right_on_both_may_be_worth_more_than_on_one(tmp_path: Path, playable: list[PlayableTask]) -> None:
    run = make_run(tmp_path, playable, twins=True, twin_bonus=0.5)
    group = played(1.0, 1.0, 1.0, 0.0)  # samples 0 and 2 are a pair, and so are 1 and 3
    assert [t.reward for t in as_taught(run, group, 0)] == [1.5, 1.0, 1.5, 0.0]
    assert [t.reward for t in group] == [1.0, 1.0, 1.0, 0.0]
    unmeasured = played(1.0, None, None, 1.0)
    assert [t.reward for t in as_taught(run, unmeasured, 0)] == [1.0, None, None, 1.0]
    alone = [episode("task", 0, sample, 1.0) for sample in range(SIZE)]
    assert [t.reward for t in as_taught(run, alone, 0)] == [1.0] * SIZE
    assert as_taught(make_run(tmp_path / "other", playable, twins=True), group, 0) == group


def test_the_share_of_pairs_right_on_both(tmp_path: Path, playable: list[PlayableTask]) -> None:
    run = make_run(tmp_path, playable, twins=True)
    assert share_of_both(run, played(1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, None)) == pytest.approx(1 / 3)
    assert share_of_both(run, [episode("task", 0, sample, 1.0) for sample in range(SIZE)]) is None


def test_twins_need_a_corpus_with_pairs_and_even_groups(playable: list[PlayableTask]) -> None:
    config = make_config(rl={"twins": True}).rl
    check_tasks(config, playable)
    check_tasks(make_config().rl, playable[::2])
    with pytest.raises(ValueError, match=r"rl\.levels: the corpus has no task of level 5, 9; it has levels"):
        check_tasks(make_config(rl={"levels": [5, 9]}).rl, playable)
    check_tasks(make_config(rl={"levels": [9], "steps": 0}).rl, playable)  # a cold start alone needs none
    with pytest.raises(ValueError, match="worldsmith synth --twins"):
        check_tasks(config, playable[::2])
    for fields, message in (
        ({"twins": True, "group_size": 3, "rows_per_micro_batch": 3}, "group_size must be even with twins"),
        ({"twin_bonus": 0.5}, "twin_bonus needs twins"),
    ):
        with pytest.raises(ValueError, match=message):
            TrainConfig.model_validate(
                make_config().model_dump() | {"rl": make_config().rl.model_dump() | fields}
            )


def test_a_run_trains_on_twins_and_says_how_often_it_was_right_on_both(
    tmp_path: Path, playable: list[PlayableTask]
) -> None:
    data = make_data()
    data = Data(
        tasks=playable[:4], heldout=data.heldout, clean=data.clean, mixed=data.mixed,
        unseen_levels=data.unseen_levels,
    )  # fmt: skip
    config = make_config(rl={"twins": True, "twin_bonus": 0.5, "steps": 2}, rollout={"workers": 0})
    train(config, data, tmp_path / "run")
    steps = [record for record in read_metrics(tmp_path / "run") if record["kind"] == "rl"]
    assert [0.0 <= record["twins_both"] <= 1.0 for record in steps] == [True, True]

"""Which episodes a group has, and which groups teach: draws by seed, and a choice among the played."""

import random
from collections.abc import Sequence
from dataclasses import replace

import torch

from envs.task import stable_seed
from rl.advantage import has_signal, rewards_of, shuffled_within_groups
from rl.run import Run
from rl.trajectory import PlayRequest, Trajectory


def requests_of_step(run: Run, step: int) -> list[PlayRequest]:
    """The step's groups: tasks of the trained levels, drawn by (seed, step)."""
    config = run.config.rl
    rng = random.Random(stable_seed(run.config.seed, "draw", step))
    pool = task_pool(run)
    chosen = [rng.choice(pool) for _ in range(config.groups_per_step)]
    return [
        PlayRequest(
            task_index=index,
            group=group,
            sample=sample,
            attempt=0,
            seed=stable_seed(run.config.seed, run.data.tasks[index].task.task_id, step, group, sample),
        )
        for group, index in enumerate(chosen)
        for sample in range(config.group_size)
    ]


def requests_of_group(run: Run, number: int) -> list[PlayRequest]:
    """A group of asynchronous training, drawn by (seed, number) alone."""
    index = random.Random(stable_seed(run.config.seed, "group", number)).choice(task_pool(run))
    task_id = run.data.tasks[index].task.task_id
    return [
        PlayRequest(
            task_index=index,
            group=number,
            sample=sample,
            attempt=0,
            seed=stable_seed(run.config.seed, task_id, "group", number, sample),
        )
        for sample in range(run.config.rl.group_size)
    ]


def task_pool(run: Run) -> list[int]:
    """Places of the training tasks of the trained levels."""
    levels = run.config.rl.levels
    return [i for i, playable in enumerate(run.data.tasks) if playable.task.level in levels]


def with_ordered_rewards(run: Run, played: Sequence[Trajectory], step: int) -> Sequence[Trajectory]:
    """The trajectories as the learner gets them: in the control, rewards have changed places inside each
    group.
    """
    if run.config.rl.reward_order == "true":
        return played
    generator = torch.Generator().manual_seed(stable_seed(run.config.seed, "shuffle", step) % 2**31)
    shuffled = shuffled_within_groups(rewards_of(played), run.config.rl.group_size, generator).tolist()
    return [replace(t, reward=None if r != r else r) for t, r in zip(played, shuffled, strict=True)]


def teaching_groups(run: Run, played: Sequence[Trajectory]) -> list[Trajectory]:
    """`groups_trained` groups: those whose rewards differ, then others, each part in the order played."""
    size = run.config.rl.group_size
    signal = has_signal(rewards_of(played), size).tolist()
    order = sorted(range(len(signal)), key=lambda group: not signal[group])
    return [
        t
        for group in order[: run.config.rl.groups_trained]
        for t in played[group * size : (group + 1) * size]
    ]

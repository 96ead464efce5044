"""Which episodes a group has, and which groups teach: draws by seed, and a choice among the played.

With `rl.twins` a group is about a task and its counterfactual twin, which differ in one fact: its first half
plays the one, its second half the other. A policy that does not mind the fact gets the group's mean from
both, so nothing is learnt from what it does on both alike.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from envs.task import stable_seed
from rl.advantage import has_signal, rewards_of, shuffled_within_groups
from rl.config import RlSection
from rl.run import Run
from rl.trajectory import PlayableTask, PlayRequest, Trajectory

Choice = tuple[int, ...]
"""Places of the training tasks that a group is about: a task, or a task and its twin."""


def requests_of_step(run: Run, step: int) -> list[PlayRequest]:
    """The step's groups: tasks of the trained levels, drawn by (seed, step)."""
    config = run.config.rl
    rng = random.Random(stable_seed(run.config.seed, "draw", step))
    pool = task_pool(config, run.data.tasks)
    chosen = [rng.choice(pool) for _ in range(config.groups_per_step)]
    return [
        PlayRequest(
            task_index=index,
            group=group,
            sample=sample,
            attempt=0,
            seed=stable_seed(run.config.seed, run.data.tasks[index].task.task_id, step, group, sample),
        )
        for group, choice in enumerate(chosen)
        for sample, index in enumerate(_by_sample(choice, config.group_size))
    ]


def requests_of_group(run: Run, number: int) -> list[PlayRequest]:
    """A group of asynchronous training, drawn by (seed, number) alone."""
    pool = task_pool(run.config.rl, run.data.tasks)
    choice = random.Random(stable_seed(run.config.seed, "group", number)).choice(pool)
    return [
        PlayRequest(
            task_index=index,
            group=number,
            sample=sample,
            attempt=0,
            seed=stable_seed(run.config.seed, run.data.tasks[index].task.task_id, "group", number, sample),
        )
        for sample, index in enumerate(_by_sample(choice, run.config.rl.group_size))
    ]


def _by_sample(choice: Choice, group_size: int) -> list[int]:
    """The task of each sample: equal parts, one after the other."""
    return [choice[sample * len(choice) // group_size] for sample in range(group_size)]


def task_pool(config: RlSection, tasks: Sequence[PlayableTask]) -> list[Choice]:
    """What a group may be about: each of the tasks that is of the trained levels, or it with its twin."""
    places = [place for place, playable in enumerate(tasks) if playable.task.level in config.levels]
    if not config.twins:
        return [(place,) for place in places]
    by_id = {tasks[place].task.task_id: place for place in places}
    original_of = {place: by_id.get(tasks[place].task.provenance.twin_of) for place in places}
    twin_of = {original: twin for twin, original in original_of.items()}
    return [
        (place, twin_of[place]) if place in twin_of else (place,)
        for place in places
        if original_of[place] is None
    ]


def check_tasks(config: RlSection, tasks: Sequence[PlayableTask]) -> None:
    """Raises ValueError when RL has no task of the trained levels, or when twins are asked for and those
    have none.
    """
    pool = task_pool(config, tasks)
    if config.steps and not pool:
        known = ", ".join(map(str, sorted({playable.task.level for playable in tasks})))
        raise ValueError(
            f"rl.levels: the corpus has no task of level {', '.join(map(str, config.levels))}; it has levels"
            f" {known}"
        )
    if config.twins and not any(len(choice) > 1 for choice in pool):
        raise ValueError(
            "rl.twins: no task of the trained levels has its twin in the corpus; make one with"
            " worldsmith synth --twins"
        )


def twin_pairs(played: Sequence[Trajectory], group_size: int) -> Iterator[tuple[int, int]]:
    """Places of an episode and of its twin's that bears the same number in its half of the group."""
    half = group_size // 2
    for start in range(0, len(played), group_size):
        if played[start].task_id != played[start + half].task_id:
            yield from ((start + at, start + half + at) for at in range(half))


def share_of_both(run: Run, played: Sequence[Trajectory]) -> float | None:
    """Of the pairs of episodes on twins that were measured, the share right on both; None: there is none."""
    pairs = [
        (played[one].reward, played[other].reward)
        for one, other in twin_pairs(played, run.config.rl.group_size)
    ]
    both = [one == other == 1.0 for one, other in pairs if one is not None and other is not None]
    return sum(both) / len(both) if both else None


def as_taught(run: Run, played: Sequence[Trajectory], step: int) -> Sequence[Trajectory]:
    """The trajectories as the learner gets them: with the bonus for twins, and in the control with rewards
    that have changed places inside each group.
    """
    rewarded = _with_bonus(run, played)
    if run.config.rl.reward_order == "true":
        return rewarded
    generator = torch.Generator().manual_seed(stable_seed(run.config.seed, "shuffle", step) % 2**31)
    shuffled = shuffled_within_groups(rewards_of(rewarded), run.config.rl.group_size, generator).tolist()
    return [replace(t, reward=None if r != r else r) for t, r in zip(rewarded, shuffled, strict=True)]


def _with_bonus(run: Run, played: Sequence[Trajectory]) -> Sequence[Trajectory]:
    """`rl.twin_bonus` more for an episode and its twin's where both are right."""
    bonus = run.config.rl.twin_bonus
    if not bonus:
        return played
    rewarded = list(played)
    for pair in twin_pairs(played, run.config.rl.group_size):
        if all(played[place].reward == 1.0 for place in pair):
            for place in pair:
                rewarded[place] = replace(played[place], reward=1.0 + bonus)
    return rewarded


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

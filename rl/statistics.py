"""Pass rates and their intervals: Wilson's, widened for samples that share a task (arXiv 2411.00640)."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

Z95 = 1.959963984540054


@dataclass(frozen=True, kw_only=True, slots=True)
class PassRate:
    """pass_rate is None when no episode was measured. interval: 95 %."""

    pass_rate: float | None
    interval: tuple[float, float]
    episodes: int
    tasks: int

    def as_dict(self) -> dict[str, object]:
        return {
            "pass_rate": self.pass_rate,
            "interval": list(self.interval),
            "episodes": self.episodes,
            "tasks": self.tasks,
        }


def wilson_interval(successes: float, trials: float, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval; trials may be an effective number. No trials: (0, 1)."""
    if trials <= 0:
        return 0.0, 1.0
    rate = successes / trials
    centre = (rate + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials))
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == trials else min(1.0, centre + half)
    return low, high


def pass_rate(rewards_by_task: Mapping[str, Sequence[float]]) -> PassRate:
    """Mean reward over tasks and its interval; a task's samples count as one cluster.

    The effective number of trials is p (1 - p) / Var(mean of the tasks' means), at most the number of
    episodes.
    """
    means = [sum(rewards) / len(rewards) for rewards in rewards_by_task.values() if rewards]
    episodes = sum(len(rewards) for rewards in rewards_by_task.values())
    if not means:
        return PassRate(pass_rate=None, interval=(0.0, 1.0), episodes=0, tasks=0)
    rate = sum(means) / len(means)
    effective: float = len(means)
    if len(means) > 1 and 0 < rate < 1:
        variance = sum((mean - rate) ** 2 for mean in means) / (len(means) - 1) / len(means)
        effective = min(float(episodes), rate * (1 - rate) / variance) if variance > 0 else float(len(means))
    return PassRate(
        pass_rate=rate,
        interval=wilson_interval(rate * effective, effective),
        episodes=episodes,
        tasks=len(means),
    )


def paired_difference(
    ours: Mapping[str, Sequence[float]], theirs: Mapping[str, Sequence[float]]
) -> tuple[float, tuple[float, float]]:
    """Mean over the tasks that both played of the difference of a task's mean rewards, and its 95 % interval.

    The interval is the normal one of the mean; a task's samples count as one cluster (arXiv 2411.00640,
    section 4.2). Raises ValueError where the two share no task.
    """
    shared = [task for task, rewards in ours.items() if rewards and theirs.get(task)]
    if not shared:
        raise ValueError("the two evaluations share no task, so that there is nothing to compare")
    gaps = [sum(ours[task]) / len(ours[task]) - sum(theirs[task]) / len(theirs[task]) for task in shared]
    mean = sum(gaps) / len(gaps)
    if len(gaps) == 1:
        return mean, (-1.0, 1.0)
    variance = sum((gap - mean) ** 2 for gap in gaps) / (len(gaps) - 1) / len(gaps)
    half = Z95 * math.sqrt(variance)
    return mean, (max(-1.0, mean - half), min(1.0, mean + half))


def pass_at_k(num_samples: int, num_passed: int, k: int) -> float:
    """The chance that one of k samples passes, unbiased from n of which c passed (arXiv 2107.03374)."""
    if num_samples - num_passed < k:
        return 1.0
    return 1.0 - math.comb(num_samples - num_passed, k) / math.comb(num_samples, k)


def pass_hat_k(num_samples: int, num_passed: int, k: int) -> float:
    """The chance that all of k samples pass, unbiased from n of which c passed (tau-bench, arXiv
    2406.12045).
    """
    return math.comb(num_passed, k) / math.comb(num_samples, k)


def mean_over_tasks(values: Iterable[float]) -> float | None:
    found = list(values)
    return sum(found) / len(found) if found else None

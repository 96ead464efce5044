"""Evaluation: every task `samples` times; pass rates with intervals, by domain and level, infrastructure
apart.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

from envs.agents import Agent, make_agent, play_agent
from envs.episode import StepResult, TaskEnv
from envs.families.code import CodeTask
from envs.outcome import Cause
from envs.task import Message, Task, stable_seed
from rl.statistics import PassRate, mean_over_tasks, pass_at_k, pass_hat_k, pass_rate
from rl.trajectory import PlayableTask, PlayRequest, hack_label

Row = dict[str, Any]
"""One episode: task_id, domain, level, sample, reward, cause and what else `rl.trajectory.episode_row`
writes.
"""


def requests_for(task_ids: Sequence[str], *, samples: int, seed: int) -> list[PlayRequest]:
    """One request for each task and sample, a task's samples in one group."""
    return [
        PlayRequest(
            task_index=index,
            group=index,
            sample=sample,
            attempt=0,
            seed=stable_seed(seed, task_id, sample, 0),
        )
        for index, task_id in enumerate(task_ids)
        for sample in range(samples)
    ]


MakeAgent = Callable[[PlayableTask, int], Agent]


def _named(name: str) -> MakeAgent:
    return lambda playable, seed: make_agent(name, playable.task, seed)


def play_scripted(
    tasks: Sequence[PlayableTask],
    policy: str | MakeAgent,
    *,
    samples: int,
    seed: int,
    honeypots: bool = False,
    on_episode: Callable[[], None] | None = None,
) -> Iterable[Row]:
    """Plays a scripted agent in this process: oracle, null, random or greedy, or what a function gives of the
    task and the episode's seed.
    """
    make = _named(policy) if isinstance(policy, str) else policy
    task_ids = [playable.task.task_id for playable in tasks]
    for request in requests_for(task_ids, samples=samples, seed=seed):
        playable = tasks[request.task_index]
        task = playable.task
        env = TaskEnv(task, playable.image, honeypots=honeypots)
        try:
            result, messages = play_agent(env, make(playable, request.seed))
        finally:
            env.close()
        yield scripted_row(request, task, result, messages)
        if on_episode is not None:
            on_episode()


def scripted_row(
    request: PlayRequest,
    task: Task | CodeTask,
    result: StepResult | None,
    messages: Sequence[Message],
    *,
    cause: Cause | None = None,
) -> Row:
    """The row of a scripted agent's episode; without a result it was lost, and `cause` says to what."""
    assert result is not None or cause is not None
    verdict = result.verdict if result is not None else None
    return {
        "task_id": task.task_id,
        "family": task.family,
        "domain": task.domain,
        "level": task.level,
        "sample": request.sample,
        "attempt": request.attempt,
        "seed": request.seed,
        "reward": result.reward if result is not None else None,
        "cause": str(result.cause if result is not None else cause),
        "reason": verdict.reason if verdict is not None else "",
        **hack_label(result.baits if result is not None else ()),
        "turns": sum(message.role == "assistant" for message in messages),
        "messages": messages,
    }


def summarize(rows: Sequence[Row], *, unseen_levels: Collection[tuple[str, int]] = ()) -> Row:
    """The figures of an evaluation, as `eval --json` prints them and the report reads them.

    `infrastructure_errors` are episodes that say nothing about the policy; they take no part in a rate.
    `suspected_hacks` are episodes that touched bait; they count as they were graded.
    """
    by_level: defaultdict[str, list[Row]] = defaultdict(list)
    by_domain: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_level[f"{row['domain']}/{row['level']}"].append(row)
        by_domain[row["domain"]].append(row)
    unseen = {f"{domain}/{level}" for domain, level in unseen_levels}
    whole = _rate(rows)
    return {
        **whole.as_dict(),
        "by_level": {
            name: {**_rate(part).as_dict(), "unseen": name in unseen}
            for name, part in sorted(by_level.items())
        },
        "by_domain": {name: _rate(part).as_dict() for name, part in sorted(by_domain.items())},
        "unseen": _rate([row for row in rows if f"{row['domain']}/{row['level']}" in unseen]).as_dict(),
        "causes": dict(sorted(Counter(str(row["cause"]) for row in rows).items())),
        "infrastructure_errors": sum(Cause(row["cause"]).is_infrastructure for row in rows),
        "suspected_hacks": sum(bool(row.get("suspected_hack")) for row in rows),
        **_pass_k(rows),
    }


def _rate(rows: Iterable[Row]) -> PassRate:
    rewards: defaultdict[str, list[float]] = defaultdict(list)
    for row in rows:
        if row["reward"] is not None:
            rewards[row["task_id"]].append(row["reward"])
    return pass_rate(rewards)


def _pass_k(rows: Iterable[Row]) -> Row:
    """pass@k and pass^k for the k that every task was measured at, where k is above 1."""
    rewards: defaultdict[str, list[float]] = defaultdict(list)
    for row in rows:
        if row["reward"] is not None:
            rewards[row["task_id"]].append(row["reward"])
    k = min((len(values) for values in rewards.values()), default=0)
    if k < 2:
        return {}
    counts = [(len(values), round(sum(values))) for values in rewards.values()]
    return {
        f"pass@{k}": mean_over_tasks(pass_at_k(n, c, k) for n, c in counts),
        f"pass^{k}": mean_over_tasks(pass_hat_k(n, c, k) for n, c in counts),
    }

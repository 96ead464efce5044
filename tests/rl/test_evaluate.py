"""Evaluation: what counts, what does not, and the scripted agents' scores."""

from dataclasses import replace

import pytest

import rl.evaluate
from envs.agents import Agent
from envs.episode import TaskEnv
from envs.outcome import Cause
from envs.task import Task
from rl.evaluate import play_scripted, requests_for, scripted_row, summarize
from rl.trajectory import PlayableTask
from synthesis.general import DOMAINS, make_candidate


@pytest.fixture(scope="module")
def tasks() -> list[PlayableTask]:
    found = []
    for domain in DOMAINS.values():
        for level in (1, 2, 3, 4):
            candidate = make_candidate(domain, level, 11)
            assert candidate is not None
            found.append(PlayableTask(task=candidate.task, image=candidate.image))
    return found


def row(task: str, reward: float | None, cause: str = "answered", level: int = 1) -> dict[str, object]:
    return {"task_id": task, "domain": "d", "level": level, "reward": reward, "cause": cause}


def test_an_infrastructure_failure_takes_no_part_in_a_rate_and_is_counted() -> None:
    summary = summarize([row("a", 1.0), row("a", None, "replica_failed"), row("b", 0.0, "tokens", level=2)])
    assert summary["pass_rate"] == pytest.approx(0.5)
    assert summary["episodes"] == 2
    assert summary["infrastructure_errors"] == 1
    assert summary["causes"] == {"answered": 1, "replica_failed": 1, "tokens": 1}
    assert summary["by_level"]["d/2"]["pass_rate"] == 0.0


def test_pass_at_k_counts_any_and_pass_hat_k_all() -> None:
    summary = summarize([row("a", 1.0), row("a", 0.0), row("b", 1.0), row("b", 1.0)])
    assert summary["pass@2"] == pytest.approx(1.0)
    assert summary["pass^2"] == pytest.approx(0.5)


def test_pass_at_k_is_at_the_k_that_every_task_was_measured_at() -> None:
    rows = [*[row("a", 1.0)] * 3, row("b", 1.0), row("b", 0.0), row("b", None, "sandbox_lost")]
    summary = summarize(rows)
    assert [name for name in summary if name.startswith("pass@")] == ["pass@2"]
    assert (summary["pass@2"], summary["pass^2"]) == (1.0, 0.5)
    assert not any(name.startswith("pass@") for name in summarize([*rows, row("c", 1.0)]))


def test_levels_that_no_demonstration_showed_are_told_apart() -> None:
    rows = [row("a", 1.0), row("b", 0.0, level=2), row("c", 0.0, level=2), row("d", 1.0, level=2)]
    summary = summarize(rows, unseen_levels={("d", 2), ("other", 1)})
    assert {name: part["unseen"] for name, part in summary["by_level"].items()} == {"d/1": False, "d/2": True}
    assert summary["unseen"]["pass_rate"] == pytest.approx(1 / 3)
    assert summary["unseen"]["episodes"] == 3
    assert {name: part["episodes"] for name, part in summary["by_domain"].items()} == {"d": 4}
    assert summarize(rows)["unseen"]["pass_rate"] is None


def test_a_failure_of_the_policy_is_none_of_the_machinery_and_suspects_are_counted() -> None:
    rows = [row("a", 0.0), row("b", None, "grader_failed"), row("c", 1.0) | {"suspected_hack": False}]
    summary = summarize([*rows, row("d", 1.0) | {"suspected_hack": True}])
    assert (summary["infrastructure_errors"], summary["suspected_hacks"]) == (1, 1)


def test_every_scripted_episode_is_told_of_and_closed(
    tasks: list[PlayableTask], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[bool] = []
    closed: list[int] = []

    class Watched(TaskEnv):
        def __init__(self, task: Task, image: bytes, *, honeypots: bool = False) -> None:
            super().__init__(task, image, honeypots=honeypots)
            opened.append(honeypots)

        def close(self) -> None:
            super().close()
            if len(closed) < len(opened):
                closed.append(len(opened))

    monkeypatch.setattr(rl.evaluate, "TaskEnv", Watched)
    monkeypatch.setattr(Watched, "start", lambda env: TaskEnv.start(env))
    told: list[bool] = []
    played = play_scripted(
        tasks[:2], "oracle", samples=2, seed=0, honeypots=True, on_episode=lambda: told.append(True)
    )
    rows = list(played)
    assert opened == told == [True] * 4
    assert [(row["task_id"], row["sample"]) for row in rows] == [
        (one.task.task_id, sample) for one in tasks[:2] for sample in range(2)
    ]
    for row in rows:
        assert row["turns"] == sum(message.role == "assistant" for message in row["messages"])
        assert 0 < row["turns"] < len(row["messages"])
    opened.clear()
    closed.clear()

    def fails(playable: PlayableTask, seed: int) -> Agent:
        raise OSError("the agent is gone")

    with pytest.raises(OSError, match="gone"):
        list(play_scripted(tasks[:1], fails, samples=1, seed=0))
    assert (opened, closed) == ([False], [1])


def test_an_episode_that_was_lost_has_no_reward_and_says_to_what(tasks: list[PlayableTask]) -> None:
    request = replace(requests_for(["x"], samples=1, seed=0)[0], attempt=2)
    lost = scripted_row(request, tasks[0].task, None, (), cause=Cause.SANDBOX_LOST)
    assert (lost["reward"], lost["cause"], lost["attempt"]) == (None, "sandbox_lost", 2)
    assert (lost["suspected_hack"], lost["turns"], lost["reason"]) == (False, 0, "")


@pytest.mark.parametrize(("policy", "rate"), [("oracle", 1.0), ("null", 0.0)])
def test_the_oracle_scores_one_and_the_null_agent_nothing(
    tasks: list[PlayableTask], policy: str, rate: float
) -> None:
    assert summarize(list(play_scripted(tasks, policy, samples=1, seed=0)))["pass_rate"] == rate


def test_the_random_agent_scores_near_its_analytic_rate(tasks: list[PlayableTask]) -> None:
    task = next(t for t in tasks if t.task.domain == "trip" and t.task.level == 1)
    options = len(task.task.guess.slots[0].options)
    low, high = summarize(list(play_scripted([task], "random", samples=400, seed=0)))["interval"]
    rewards = [r["reward"] for r in play_scripted([task], "random", samples=400, seed=0)]
    assert sum(rewards) / 400 == pytest.approx(1 / options, abs=0.08)
    assert low <= sum(rewards) / 400 <= high


def test_each_task_and_sample_has_a_seed_of_its_own(tasks: list[PlayableTask]) -> None:
    task_ids = [one.task.task_id for one in tasks]
    requests = requests_for(task_ids, samples=3, seed=5)
    assert len({request.seed for request in requests}) == len(tasks) * 3
    assert [(r.task_index, r.group, r.sample) for r in requests] == [
        (index, index, sample) for index in range(len(tasks)) for sample in range(3)
    ]
    assert requests == requests_for(task_ids, samples=3, seed=5)
    assert requests_for(task_ids, samples=3, seed=6) != requests

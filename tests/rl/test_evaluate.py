"""Evaluation: what counts, what does not, and the scripted agents' scores."""

import pytest

from rl.evaluate import play_scripted, requests_for, summarize
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
    assert requests == requests_for(task_ids, samples=3, seed=5)
    assert requests_for(task_ids, samples=3, seed=6) != requests

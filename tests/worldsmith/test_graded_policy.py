"""Agents of graded ability as policies of `eval`."""

from dataclasses import replace
from functools import partial

import pytest

from rl.evaluate import play_scripted
from rl.trajectory import PlayableTask
from synthesis.general import domain_named, make_candidate
from worldsmith.graded_policy import GRADED, scripted_agent


def tasks(domain: str, level: int, count: int) -> list[PlayableTask]:
    made = (make_candidate(domain_named(domain), level, seed) for seed in range(60))
    return [PlayableTask(task=one.task, image=one.image) for one in made if one is not None][:count]


def test_a_graded_agent_plays_by_messages() -> None:
    """By price alone every choice stands for itself: to look one step ahead is enough."""
    rows = list(
        play_scripted(tasks("warehouse", 6, 4), partial(scripted_agent, "look-ahead-1"), samples=1, seed=0)
    )
    assert [row["reward"] for row in rows] == [1.0] * 4
    assert all(row["turns"] > 2 for row in rows)


def test_through_the_tool_that_ends_the_episode() -> None:
    rows = list(
        play_scripted(tasks("trip", 1, 3), partial(scripted_agent, "careless-0.1"), samples=4, seed=0)
    )
    assert {row["cause"] for row in rows} == {"answered"}
    assert 0 < sum(row["reward"] for row in rows) <= 12


def test_the_plain_agents_are_still_there() -> None:
    rows = list(play_scripted(tasks("trip", 1, 2), partial(scripted_agent, "oracle"), samples=1, seed=0))
    assert [row["reward"] for row in rows] == [1.0, 1.0]


def test_a_task_that_no_domain_makes_again_is_refused() -> None:
    (playable,) = tasks("trip", 1, 1)
    world = replace(playable.task.world, generator_version=999)
    with pytest.raises(ValueError, match="made by version 999 of trip"):
        scripted_agent(GRADED[0], replace(playable, task=replace(playable.task, world=world)), 0)
    with pytest.raises(ValueError, match="family code has none"):
        scripted_agent(GRADED[0], replace(playable, task=replace(playable.task, family="code")), 0)

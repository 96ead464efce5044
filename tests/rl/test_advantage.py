import math
from dataclasses import replace

import pytest
import torch

from rl.advantage import group_advantages, has_signal, rewards_of, shuffled_within_groups
from tests.rl.test_learner import batch_of


def test_the_advantage_is_the_reward_less_its_groups_mean_and_not_divided() -> None:
    reward = torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0])
    assert group_advantages(reward, 4).tolist() == [0.75, -0.25, -0.25, -0.25, 0.0, 0.0, 0.0, 0.0]


def test_an_unmeasured_episode_is_left_out_of_the_mean_and_gets_none() -> None:
    reward = torch.tensor([1.0, 0.0, math.nan, math.nan])
    assert group_advantages(reward, 4).tolist() == [0.5, -0.5, 0.0, 0.0]


def test_a_group_has_signal_when_its_rewards_differ() -> None:
    reward = torch.tensor([1.0, 0.0, 1.0, 1.0, 1.0, math.nan, math.nan, math.nan])
    assert has_signal(reward, 2).tolist() == [True, False, False, False]


def test_the_smallest_difference_in_a_group_is_a_signal_above_or_below_its_mean() -> None:
    reward = torch.tensor([0.0, 0.0, 0.0, -0.004, 0.5, 0.5, 0.5, 0.5])
    assert has_signal(reward, 4).tolist() == [True, False]
    assert has_signal(torch.tensor([1.0, 1.0, 0.0, 1.0]), 4).tolist() == [True]


def test_a_reward_that_was_not_measured_is_no_number() -> None:
    played = [replace(t, reward=reward) for t, reward in zip(batch_of(0), (1.0, None, 0.0), strict=False)]
    told = rewards_of(played)
    assert told.isnan().tolist() == [False, True, False]
    assert told.nan_to_num(7.0).tolist() == [1.0, 7.0, 0.0]


def test_rewards_that_make_no_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="groups of 4"):
        group_advantages(torch.zeros(6), 4)


def test_shuffling_keeps_each_groups_rewards_and_changes_their_places() -> None:
    reward = torch.arange(64.0)
    shuffled = shuffled_within_groups(reward, 8, torch.Generator().manual_seed(0))
    assert not torch.equal(shuffled, reward)
    orders = (shuffled.view(8, 8) - reward.view(8, 8)[:, :1]).tolist()
    assert len(set(map(tuple, orders))) > 1  # each group has an order of its own
    assert torch.equal(shuffled, shuffled_within_groups(reward, 8, torch.Generator().manual_seed(0)))
    assert torch.equal(shuffled.view(8, 8).sort(dim=1).values, reward.view(8, 8))

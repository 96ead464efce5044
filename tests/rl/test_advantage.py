import math

import pytest
import torch

from rl.advantage import group_advantages, has_signal, shuffled_within_groups


def test_the_advantage_is_the_reward_less_its_groups_mean_and_not_divided() -> None:
    reward = torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0])
    assert group_advantages(reward, 4).tolist() == [0.75, -0.25, -0.25, -0.25, 0.0, 0.0, 0.0, 0.0]


def test_an_unmeasured_episode_is_left_out_of_the_mean_and_gets_none() -> None:
    reward = torch.tensor([1.0, 0.0, math.nan, math.nan])
    assert group_advantages(reward, 4).tolist() == [0.5, -0.5, 0.0, 0.0]


def test_a_group_has_signal_when_its_rewards_differ() -> None:
    reward = torch.tensor([1.0, 0.0, 1.0, 1.0, 1.0, math.nan, math.nan, math.nan])
    assert has_signal(reward, 2).tolist() == [True, False, False, False]


def test_rewards_that_make_no_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="groups of 4"):
        group_advantages(torch.zeros(6), 4)


def test_shuffling_keeps_each_groups_rewards_and_changes_their_places() -> None:
    reward = torch.arange(64.0)
    shuffled = shuffled_within_groups(reward, 8, torch.Generator().manual_seed(0))
    assert not torch.equal(shuffled, reward)
    assert torch.equal(shuffled.view(8, 8).sort(dim=1).values, reward.view(8, 8))

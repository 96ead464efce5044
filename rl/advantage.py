"""Advantages of a group's episodes: reward minus the group's mean (DeepSeek-V3.2, arXiv 2512.02556, section
3.1).

There is no division by the standard deviation. An episode without a reward was not measured: it takes no
part in the mean and its advantage is 0.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from rl.trajectory import Trajectory


def rewards_of(played: Sequence[Trajectory]) -> Tensor:
    """[B] float32 rewards, NaN where an episode was not measured."""
    return torch.tensor([float("nan") if t.reward is None else t.reward for t in played])


def group_advantages(reward_B: Tensor, group_size: int) -> Tensor:
    """[B] advantages of rewards [B], groups adjacent, NaN where not measured.

    Raises ValueError when B is no multiple of `group_size`.
    """
    if reward_B.numel() % group_size:
        raise ValueError(f"{reward_B.numel()} rewards do not make groups of {group_size}")
    reward_GS = reward_B.view(-1, group_size)
    mean_G1 = torch.nanmean(reward_GS, dim=1, keepdim=True)
    return torch.nan_to_num(reward_GS - mean_G1, nan=0.0).view(-1)


def has_signal(reward_B: Tensor, group_size: int) -> Tensor:
    """[G] bool: the group's measured rewards differ, so that it can teach something."""
    reward_GS = reward_B.view(-1, group_size)
    spread_GS = reward_GS - torch.nanmean(reward_GS, dim=1, keepdim=True)
    return torch.nan_to_num(spread_GS, nan=0.0).abs().amax(dim=1) > 1e-6


def shuffled_within_groups(reward_B: Tensor, group_size: int, generator: torch.Generator) -> Tensor:
    """The rewards in another order inside each group: the control whose rewards say nothing about the
    episodes.
    """
    reward_GS = reward_B.view(-1, group_size)
    order_GS = torch.rand(reward_GS.shape, generator=generator).argsort(dim=1)
    return reward_GS.gather(1, order_GS).view(-1)

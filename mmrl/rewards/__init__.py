"""Rewards: functions `reward(sample) -> float | dict`, named by import path, and their runner."""

from mmrl.rewards.mixture import WeightedReward, mixture, reward_of
from mmrl.rewards.runner import Reward, RewardResult, resolve, score

__all__ = [
    "Reward",
    "RewardResult",
    "WeightedReward",
    "mixture",
    "resolve",
    "reward_of",
    "score",
]

"""Images and prompts to scores."""

from calibri.rewards.registry import make_reward, reward_names
from calibri.rewards.reward import (
    BatchedReward,
    DifferentiableReward,
    FeatureReward,
    ModelReward,
    Reward,
    RewardInfo,
)

__all__ = [
    "BatchedReward",
    "DifferentiableReward",
    "FeatureReward",
    "ModelReward",
    "Reward",
    "RewardInfo",
    "make_reward",
    "reward_names",
]

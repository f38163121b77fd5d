"""Images and prompts to scores."""

from calibri.rewards.registry import make_reward, reward_names
from calibri.rewards.reward import BatchedReward, FeatureReward, Reward, RewardInfo

__all__ = ["BatchedReward", "FeatureReward", "Reward", "RewardInfo", "make_reward", "reward_names"]

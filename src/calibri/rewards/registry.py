"""Rewards by name."""

from __future__ import annotations

import importlib

from calibri.errors import RewardError
from calibri.rewards.reward import Reward

# Name to module and class; a reward's module is imported only when it is asked for.
_REWARDS: dict[str, tuple[str, str]] = {
    "shapes": ("calibri.rewards.shapes", "ShapesReward"),
    "shapes-judge": ("calibri.rewards.shapes_judge", "ShapesJudge"),
}


def reward_names() -> tuple[str, ...]:
    """List the rewards that ``make_reward`` knows."""
    return tuple(sorted(_REWARDS))


def make_reward(name: str) -> Reward:
    """Make a reward by name; weights are loaded when it first scores.

    Raises:
        RewardError: no reward has that name.
    """
    if name not in _REWARDS:
        raise RewardError(
            f"There is no reward '{name}'. Known rewards are {', '.join(reward_names())}."
        )
    module, attribute = _REWARDS[name]
    reward: Reward = getattr(importlib.import_module(module), attribute)()
    return reward

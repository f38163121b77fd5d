"""What each reward says of itself; no weights are loaded."""

from __future__ import annotations

from dataclasses import dataclass

from calibri.errors import RewardError
from calibri.rewards.registry import make_reward, reward_names
from calibri.rewards.reward import RewardInfo

_REMOTE = "remote"  # only its server knows what it is


@dataclass(frozen=True)
class ListedReward:
    """A reward that can be named.

    Attributes:
        name: what users type.
        info: what it says of itself, or None when it cannot be made.
        problem: why it cannot be made; empty otherwise.
    """

    name: str
    info: RewardInfo | None
    problem: str = ""


def list_rewards() -> tuple[ListedReward, ...]:
    """List the rewards that can be named, those of other packages too, whatever is wrong with them.

    Only rewards of other packages have problems; the modules of all of them are imported.
    """
    return tuple(_listed(name) for name in reward_names())


def _listed(name: str) -> ListedReward:
    if name == _REMOTE:
        return ListedReward(name, RewardInfo(name, "as served", unit="that of the served reward"))
    try:
        return ListedReward(name, make_reward(name).info)
    except RewardError as error:
        return ListedReward(name, None, str(error))

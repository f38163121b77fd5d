"""Rewards by name: ours, and those that other packages add.

A package adds a reward by an entry point of the group ``calibri.rewards``; its name is what users
type, its value the class or function that makes the reward.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from calibri.errors import RewardError
from calibri.rewards.arguments import arguments
from calibri.rewards.reward import Reward, RewardInfo

ENTRY_POINTS = "calibri.rewards"

# Name to module and class; a reward's module is imported only when it is asked for.
_REWARDS: dict[str, tuple[str, str]] = {
    "aesthetic": ("calibri.rewards.aesthetic", "Aesthetic"),
    "blip-vqa": ("calibri.rewards.blip_vqa", "BlipVqa"),
    "clipscore": ("calibri.rewards.clipscore", "ClipScore"),
    "clipscore-original": ("calibri.rewards.clipscore", "OriginalClipScore"),
    "compbench-attribute": ("calibri.rewards.compbench", "CompBenchAttribute"),
    "compbench-clip": ("calibri.rewards.clipscore", "CompBenchClip"),
    "dino-diversity": ("calibri.rewards.dino", "DinoDiversity"),
    "geneval": ("calibri.rewards.geneval", "GenEval"),
    "geneval-soft": ("calibri.rewards.geneval", "GenEvalSoft"),
    "hpsv2.1": ("calibri.rewards.hpsv2", "HpsV21"),
    "hpsv3": ("calibri.rewards.hpsv3", "HPSv3Reward"),
    "imagereward": ("calibri.rewards.imagereward", "ImageReward"),
    "jpeg-compressibility": ("calibri.rewards.jpeg", "JpegCompressibility"),
    "jpeg-incompressibility": ("calibri.rewards.jpeg", "JpegIncompressibility"),
    "judge": ("calibri.rewards.endpoint", "JudgeReward"),
    "pickscore": ("calibri.rewards.pickscore", "PickScore"),
    "qalign": ("calibri.rewards.qalign", "QAlignReward"),
    "qalign-aesthetics": ("calibri.rewards.qalign", "QAlignAesthetics"),
    "remote": ("calibri.rewards.remote", "RemoteReward"),
    "shapes": ("calibri.rewards.shapes", "ShapesReward"),
    "shapes-judge": ("calibri.rewards.shapes_judge", "ShapesJudge"),
    "unifiedreward": ("calibri.rewards.endpoint", "UnifiedReward"),
    "vqascore": ("calibri.rewards.vqascore", "VqaScore"),
}


def reward_names() -> tuple[str, ...]:
    """List the rewards that ``make_reward`` knows."""
    return tuple(sorted({*_REWARDS, *(point.name for point in entry_points(group=ENTRY_POINTS))}))


def is_own(name: str) -> bool:
    """Whether a reward is one of Calibri's, not of another package."""
    return name in _REWARDS


def make_reward(name: str, **options: Any) -> Reward:
    """Make a reward by name; weights are loaded when it first scores.

    Args:
        name: of the reward, or a label of your own when the option ``reward`` names it.
        options: arguments of the reward; most have ``checkpoint`` (a folder instead of the hub),
            ``revision``, ``device``, ``dtype`` (a name) and ``batch_size``.

    Raises:
        RewardError: no reward has that name, an option is wrong, or another package's reward
            cannot be made.
    """
    kind = str(options.pop("reward", name))
    factory = _own(kind) if kind in _REWARDS else _foreign(kind)
    try:
        reward: Reward = factory(**arguments(kind, factory, options))
    except TypeError as error:
        raise RewardError(f"Reward '{kind}' cannot be made with {options}: {error}.") from error
    if kind not in _REWARDS:
        _check_protocol(kind, reward)
    return reward


def _check_protocol(name: str, reward: object) -> None:
    if not isinstance(getattr(reward, "info", None), RewardInfo) or not isinstance(reward, Reward):
        raise RewardError(
            f"Reward '{name}' has no 'info' or no 'score'. Its authors can check it with "
            "calibri.rewards.contract."
        )


def _own(name: str) -> Callable[..., Any]:
    clashes = [point for point in entry_points(group=ENTRY_POINTS) if point.name == name]
    if clashes:
        raise RewardError(
            f"{_distributions(clashes)} adds a reward '{name}', which is one of Calibri's own, so "
            "it is not clear which one is meant. Uninstall that package."
        )
    module, attribute = _REWARDS[name]
    factory: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    return factory


def _foreign(name: str) -> Callable[..., Any]:
    points = [point for point in entry_points(group=ENTRY_POINTS) if point.name == name]
    if not points:
        raise RewardError(
            f"There is no reward '{name}'. Known rewards are {', '.join(reward_names())}."
        )
    if len({point.value for point in points}) > 1:
        raise RewardError(
            f"Several packages add a reward '{name}': {_distributions(points)}. Uninstall all but "
            "one of them."
        )
    try:
        factory: Callable[..., Any] = points[0].load()
    except Exception as error:
        raise RewardError(
            f"The reward '{name}' of {_distributions(points)} cannot be imported: "
            f"{type(error).__name__}: {error}. Ask its authors, or reinstall it."
        ) from error
    return factory


def _distributions(points: list[EntryPoint]) -> str:
    return ", ".join(sorted({f"'{p.dist.name}'" if p.dist else f"'{p.value}'" for p in points}))

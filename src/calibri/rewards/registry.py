"""Rewards by name: ours, those that other packages add, those of a file, and objects.

A package adds a reward by an entry point of the group ``calibri.rewards``; its name is what users
type, its value the class or function that makes the reward. A file is named with what to take from
it, ``./brightness.py:Brightness``. In Python a reward may also be given as an object.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any, NamedTuple, TypeAlias

from calibri.errors import CalibriError, RewardError
from calibri.results import DIVERSITY, FEATURES
from calibri.rewards.arguments import arguments
from calibri.rewards.functions import FunctionReward, scores_itself
from calibri.rewards.local_files import is_file_spec, load_from_file
from calibri.rewards.reward import PLAIN_NAME, Reward, RewardInfo

ENTRY_POINTS = "calibri.rewards"

RewardSource: TypeAlias = str | Reward | Callable[..., Any]
"""A name, ``PATH.py:NAME``, a reward, its class, or a function of images and prompts."""

# Columns of results that are no rewards.
_RESERVED = (DIVERSITY, FEATURES, "seconds")


class RewardCost(NamedTuple):
    """What a reward takes beside the pipeline.

    Attributes:
        teraflop: of one image.
        billions: of parameters.
    """

    teraflop: float
    billions: float


class _Row(NamedTuple):
    """Where a reward of ours is, imported only when it is asked for; its cost where known."""

    module: str
    class_name: str
    cost: RewardCost | None = None

    @property
    def path(self) -> str:
        return f"calibri.rewards.{self.module}"


_FREE = RewardCost(0.0, 0.0)

# HPSv3: 256 visual and about 330 text tokens through Qwen2-VL-7B. Other costs: two FLOPs for each
# weight and token of the published geometry.
_REWARDS: dict[str, _Row] = {
    "aesthetic": _Row("aesthetic", "Aesthetic"),
    "blip-vqa": _Row("blip_vqa", "BlipVqa"),
    "clipscore": _Row("clipscore", "ClipScore"),
    "clipscore-original": _Row("clipscore", "OriginalClipScore"),
    "compbench-attribute": _Row("compbench", "CompBenchAttribute"),
    "compbench-clip": _Row("clipscore", "CompBenchClip"),
    "dino-diversity": _Row("dino", "DinoDiversity"),
    "dino-source": _Row("dino", "DinoSource"),
    "geneval": _Row("geneval", "GenEval"),
    "geneval-soft": _Row("geneval", "GenEvalSoft"),
    "hpsv2.1": _Row("hpsv2", "HpsV21", RewardCost(0.38, 0.99)),
    "hpsv3": _Row("hpsv3", "HPSv3Reward", RewardCost(9.2, 8.29)),
    "imagereward": _Row("imagereward", "ImageReward", RewardCost(0.13, 0.45)),
    "jpeg-compressibility": _Row("jpeg", "JpegCompressibility", _FREE),
    "jpeg-incompressibility": _Row("jpeg", "JpegIncompressibility", _FREE),
    "judge": _Row("endpoint", "JudgeReward"),
    "pickscore": _Row("pickscore", "PickScore", RewardCost(0.38, 0.99)),
    "qalign": _Row("qalign", "QAlignReward"),
    "qalign-aesthetics": _Row("qalign", "QAlignAesthetics"),
    "remote": _Row("remote", "RemoteReward"),
    "shapes": _Row("shapes", "ShapesReward", _FREE),
    "shapes-judge": _Row("shapes_judge", "ShapesJudge", _FREE),
    "unifiedreward": _Row("endpoint", "UnifiedReward"),
    "vqascore": _Row("vqascore", "VqaScore"),
}


def reward_cost(name: str) -> RewardCost | None:
    """Tell what a reward takes; None where that is not known."""
    row = _REWARDS.get(name)
    return row.cost if row else None


def reward_names() -> tuple[str, ...]:
    """List the rewards that ``make_reward`` knows."""
    return tuple(sorted({*_REWARDS, *(point.name for point in entry_points(group=ENTRY_POINTS))}))


def is_own(name: str) -> bool:
    """Whether a reward is one of Calibri's, not of another package."""
    return name in _REWARDS


def make_reward(source: RewardSource, **options: Any) -> Reward:
    """Make a reward; weights are loaded when it first scores.

    Args:
        source: the name of a reward; ``PATH.py:NAME`` for what a file of your own has under a name,
            and that file is run; a label of your own when the option ``reward`` holds one of these;
            or a reward, its class, or a function of images and prompts.
        options: arguments of the reward; most have ``checkpoint`` (a folder instead of the hub),
            ``revision``, ``device``, ``dtype`` (a name) and ``batch_size``.

    Raises:
        RewardError: no reward has that name, the name belongs to something else, an option is
            wrong, or what is not Calibri's own cannot be imported, cannot be made or is no reward.
    """
    if not isinstance(source, str):
        reward = _made(getattr(source, "__name__", type(source).__name__), source, options)
        _check_own_name(reward)
        return reward
    kind = str(options.pop("reward", source))
    _check_label(source, kind)
    if kind in _REWARDS:
        return _made_own(kind, options)
    target = load_from_file(kind) if is_file_spec(kind) else _foreign(kind)
    return _made(kind, target, options)


def name_rewards(given: Sequence[RewardSource]) -> tuple[tuple[str, ...], dict[str, Reward]]:
    """Name rewards that may be given as objects, as a configuration wants them.

    Args:
        given: names or mixtures, which stay as they are, and rewards, classes and functions.

    Returns:
        A name for each, and those given otherwise than by name, under their names.

    Raises:
        RewardError: one cannot be made, or two have the same name.
    """
    made = {i: make_reward(one) for i, one in enumerate(given) if not isinstance(one, str)}
    names = tuple(made[i].info.name if i in made else str(one) for i, one in enumerate(given))
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise RewardError(
            f"Several rewards are called {', '.join(map(repr, twice))}. Give each another name in "
            "its info."
        )
    return names, {names[i]: reward for i, reward in made.items()}


def check_measures(names: Iterable[str]) -> None:
    """Refuse a measure of Calibri's own whose name another package also gives to a reward.

    Raises:
        RewardError: it is not clear which one is meant.
    """
    for name in names:
        if name in _RESERVED and (points := _points(name)):
            raise RewardError(
                f"'{name}' is a measure of Calibri's own, and {_distributions(points)} adds a "
                "reward of that name, so it is not clear which one is meant. Uninstall that "
                f"package, or name theirs by a label: {_label_advice(name)}"
            )


def _made_own(kind: str, options: dict[str, Any]) -> Reward:
    factory = _own(kind)
    try:
        reward: Reward = factory(**arguments(kind, factory, options))
    except TypeError as error:
        raise RewardError(f"Reward '{kind}' cannot be made with {options}: {error}.") from error
    return reward


def _made(kind: str, target: Any, options: dict[str, Any]) -> Reward:
    """Make a reward of what somebody else wrote, whatever it does when it is called."""
    try:
        reward = _called(kind, target, options)
        _check_protocol(kind, reward)
    except (CalibriError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise RewardError(
            f"Reward '{kind}' cannot be made with {options}: {type(error).__name__}: {error}."
        ) from error
    return reward


def _called(kind: str, target: Any, options: dict[str, Any]) -> Reward:
    if scores_itself(target):
        target = functools.partial(FunctionReward, target)
    elif not isinstance(target, type) and isinstance(target, Reward):
        if options:
            raise RewardError(f"Reward '{kind}' is made already. Leave the options out.")
        return target
    elif not callable(target):
        raise RewardError(
            f"'{kind}' is of the type '{type(target).__name__}', and no reward. Name a class, a "
            "function that makes a reward, or a function of images and prompts."
        )
    reward: Reward = target(**arguments(kind, target, options))
    return reward


def _check_protocol(name: str, reward: object) -> None:
    if not isinstance(getattr(reward, "info", None), RewardInfo) or not isinstance(reward, Reward):
        raise RewardError(
            f"Reward '{name}' has no 'info' or no 'score'. Its authors can check it with "
            "calibri.rewards.contract."
        )


def _check_label(name: str, kind: str) -> None:
    """Refuse a name that means something else already."""
    if name in _RESERVED:
        also = f" of {_distributions(points)}" if (points := _points(name)) else ""
        raise RewardError(
            f"'{name}' is a measure of Calibri's own and cannot name a reward. Give the "
            f"reward{also} a label: {_label_advice(kind)}"
        )
    if name != kind and name in reward_names():
        raise RewardError(
            f"'{name}' is a reward, so it cannot be the label of '{kind}'. Choose another label."
        )


def _label_advice(kind: str) -> str:
    return f"--reward mine --set 'rewards.options={{mine: {{reward: {kind}}}}}'"


def _check_own_name(reward: Reward) -> None:
    """Refuse an object whose name a reader of the results would take for something else."""
    name, origin = reward.info.name, type(reward)
    if PLAIN_NAME.fullmatch(name) is None:
        raise RewardError(
            f"'{name}' is no plain name of a reward. Use letters, digits, '.', '_' and '-' in its "
            "info, and give a function a name."
        )
    row = _REWARDS.get(name)
    known = row is not None and (origin.__module__, origin.__name__) == (row.path, row.class_name)
    known = known or origin.__module__ in {point.module for point in _points(name)}
    if name in _RESERVED or (name in reward_names() and not known):
        raise RewardError(
            f"A reward given as an object is called '{name}', as one of Calibri's own or of an "
            "installed package. Give it another name in its info."
        )


def _own(name: str) -> Callable[..., Any]:
    if clashes := _points(name):
        raise RewardError(
            f"{_distributions(clashes)} adds a reward '{name}', which is one of Calibri's own, so "
            "it is not clear which one is meant. Uninstall that package."
        )
    row = _REWARDS[name]
    factory: Callable[..., Any] = getattr(importlib.import_module(row.path), row.class_name)
    return factory


def _foreign(name: str) -> Any:
    points = _points(name)
    if not points:
        raise RewardError(
            f"There is no reward '{name}'. Known rewards are {', '.join(reward_names())}; one in a "
            "file is named PATH.py:NAME."
        )
    if len({point.value for point in points}) > 1:
        raise RewardError(
            f"Several packages add a reward '{name}': {_distributions(points)}. Uninstall all but "
            "one of them."
        )
    try:
        return points[0].load()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # also SystemExit, of a module that was meant as a script
        raise RewardError(
            f"The reward '{name}' of {_distributions(points)} cannot be imported: "
            f"{type(error).__name__}: {error}. Ask its authors, or reinstall it."
        ) from error


def _points(name: str) -> list[EntryPoint]:
    return [point for point in entry_points(group=ENTRY_POINTS) if point.name == name]


def _distributions(points: list[EntryPoint]) -> str:
    return ", ".join(sorted({f"'{p.dist.name}'" if p.dist else f"'{p.value}'" for p in points}))

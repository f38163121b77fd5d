"""What images are measured by: the rewards of a run, their diversity, their features."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from calibri.config import RunConfig
from calibri.devices import resolve_device
from calibri.errors import CalibriError, ConfigError, RewardError
from calibri.memory import is_out_of_memory
from calibri.prompts import Prompt, load_picture
from calibri.results import DIVERSITY, FEATURES
from calibri.rewards import (
    DifferentiableReward,
    FeatureReward,
    ModelReward,
    Reward,
    SeesSource,
    UsesMetadata,
    check_measures,
    make_reward,
    used_rewards,
)
from calibri.scoring.frames import mean_over_frames
from calibri.scoring.image_sets import diversity, diversity_float

# From images (uint8, N x 3 x H x W) and N prompts to one row of numbers per image.
Measure = Callable[[Tensor, Sequence[str]], Tensor]


@dataclass(frozen=True)
class Grouped:
    """A measure that compares the images of a prompt: it is given one candidate's at a time."""

    measure: Measure

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Measure the images of one candidate."""
        return self.measure(images, prompts)


@dataclass(frozen=True)
class OfEdits:
    """A measure that also sees the source pictures of instructions.

    Attributes:
        name: of the reward.
        reward: scores results against instruction and source.
    """

    name: str
    reward: SeesSource

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Refuse texts alone.

        Raises:
            RewardError: always; see ``of``.
        """
        raise _without_source(self.name, prompts[0])

    def of(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """Measure results of prompts that have a source picture.

        Raises:
            RewardError: a prompt has none.
        """
        sources = [self._source(prompt) for prompt in prompts]
        score = _scores_of(
            self.name, lambda pixels, texts: self.reward.score_edits(pixels, texts, sources)
        )
        return mean_over_frames(score)(images, [prompt.text for prompt in prompts])

    def _source(self, prompt: Prompt) -> Tensor:
        if prompt.source is None:
            raise _without_source(self.name, prompt.text)
        return _pixels(prompt.source)


def measured(measure: Measure, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
    """Measure images by what a measure needs of their prompts: texts, or source pictures too.

    Raises:
        RewardError: a reward failed, gave no numbers, or lacks a source picture.
    """
    if isinstance(measure, OfEdits):
        return measure.of(images, prompts)
    return measure(images, [prompt.text for prompt in prompts])


def _without_source(name: str, prompt: str) -> RewardError:
    return RewardError(
        f"Reward '{name}' compares with the picture that a prompt is an instruction for, and "
        f'{prompt[:80]!r} has none. Give each prompt an "image" in a file of JSON lines.'
    )


@lru_cache(maxsize=64)
def _pixels(path: str) -> Tensor:
    return torch.from_numpy(np.array(load_picture(path))).permute(2, 0, 1)


class Measures:
    """The rewards of a run by name, and what else can be measured.

    Args:
        rewards: name to reward, the parts of the objective first.

    Attributes:
        rewards: the same.
        are_configured: whether a configuration names them all, so that others can make the same.
    """

    def __init__(self, rewards: Mapping[str, Reward], *, are_configured: bool = True) -> None:
        self.rewards = dict(rewards)
        self.are_configured = are_configured

    @classmethod
    def of(cls, config: RunConfig, given: Mapping[str, Reward] | None = None) -> Measures:
        """Make the rewards that a configuration names; their weights are loaded when they score.

        Args:
            config: of a run.
            given: rewards that are there already, by the names of the configuration.

        Raises:
            ConfigError: there are options for a reward that is not used.
            RewardError: a reward cannot be made, or it is not clear which is meant.
        """
        given = given or {}
        names = used_rewards(config)
        _check_options(config, names)
        check_measures(names)
        rewards = {n: given.get(n) or _make(n, config) for n in names if n != DIVERSITY}
        return cls(rewards, are_configured=not given)

    def __getitem__(self, name: str) -> Measure:
        """Find a measure by name: a reward, ``DIVERSITY`` or ``FEATURES``."""
        if name == DIVERSITY:
            return Grouped(mean_over_frames(diversity))
        if name == FEATURES and self.feature_reward is not None:
            return mean_over_frames(_features_of(self.feature_reward))
        reward = self.rewards[name]
        if isinstance(reward, SeesSource):
            return OfEdits(name, reward)
        score = mean_over_frames(_scores_of(name, reward.score))
        return Grouped(score) if self.is_grouped(name) else score

    def differentiable(self, name: str) -> Measure:
        """Find what scores float images with a gradient.

        Raises:
            RewardError: the reward has none.
        """
        if name == DIVERSITY:
            return Grouped(mean_over_frames(diversity_float))
        reward = self.rewards[name]
        if not isinstance(reward, DifferentiableReward):
            raise RewardError(
                f"Reward '{name}' has no gradient: it does not score float images. Choose one that "
                "`calibri rewards list` shows as differentiable, or use the black-box search."
            )
        score = mean_over_frames(_scores_of(name, reward.score_float))
        return Grouped(score) if self.is_grouped(name) else score

    def has_gradient(self, name: str) -> bool:
        """Whether a measure scores float images with a gradient."""
        reward = self.rewards.get(name)
        known = isinstance(reward, DifferentiableReward) and reward.info.differentiable
        return known or name == DIVERSITY

    def remember(self, prompts: Iterable[Prompt]) -> None:
        """Tell the rewards that ask for it what is known of prompts beside their texts."""
        listening = [r for r in self.rewards.values() if isinstance(r, UsesMetadata)]
        if listening:
            metadata = {prompt.text: prompt.metadata for prompt in prompts if prompt.metadata}
            for reward in listening:
                reward.remember(metadata)

    def check_prompts(self, prompts: Iterable[Prompt]) -> None:
        """Refuse prompts without a source picture where a reward compares with one.

        Raises:
            RewardError: a prompt has none.
        """
        seeing = [n for n, reward in self.rewards.items() if isinstance(reward, SeesSource)]
        lacking = next((prompt for prompt in prompts if prompt.source is None), None)
        if seeing and lacking is not None:
            raise _without_source(seeing[0], lacking.text)

    def is_grouped(self, name: str) -> bool:
        """Whether a measure compares the images of a prompt."""
        return name == DIVERSITY or self.rewards[name].info.kind == "groupwise"

    @property
    def feature_reward(self) -> FeatureReward | None:
        """The first reward that gives features for a Frechet distance."""
        return next((r for r in self.rewards.values() if isinstance(r, FeatureReward)), None)


def _features_of(reward: FeatureReward) -> Measure:
    def features(images: Tensor, prompts: Sequence[str]) -> Tensor:
        name = type(reward).__name__
        found = _guarded(name, lambda: reward.features(images))
        return _of_shape(name, found, len(prompts), axes=2)

    return features


def _scores_of(name: str, score: Measure) -> Measure:
    """Check a reward, which may be anybody's: nothing else may reach a journal."""

    def checked(images: Tensor, prompts: Sequence[str]) -> Tensor:
        found = _guarded(name, lambda: score(images, prompts))
        return _of_shape(name, found, len(prompts), axes=1)

    return checked


def _guarded(name: str, call: Callable[[], Tensor]) -> Tensor:
    """Call a reward; what goes wrong in it is its fault, and ends in words."""
    try:
        return call()
    except CalibriError:
        raise
    except (Exception, SystemExit) as error:
        if is_out_of_memory(error):
            raise
        what = f"{type(error).__name__}: {error}".removesuffix(": ")
        raise RewardError(
            f"Reward '{name}' failed with {what}. That is a fault of the reward or of its weights. "
            "Everything before this is kept; mend the reward, and resume the run."
        ) from error


def _of_shape(name: str, found: object, rows: int, axes: int) -> Tensor:
    wanted = f"{rows} numbers" if axes == 1 else f"{rows} rows of numbers"
    if not isinstance(found, Tensor) or found.is_complex() or found.dtype == torch.bool:
        kind = found.dtype if isinstance(found, Tensor) else type(found).__name__
        raise RewardError(
            f"Reward '{name}' returned {kind} in place of {wanted}, a torch tensor. "
            "Everything before this is kept; mend the reward, and resume the run."
        )
    if found.ndim != axes or len(found) != rows:
        raise RewardError(
            f"Reward '{name}' returned an array of shape {tuple(found.shape)} for {rows} images, "
            f"in place of {wanted}. Everything before this is kept; mend the reward, and resume "
            "the run."
        )
    return found


def _check_options(config: RunConfig, names: Iterable[str]) -> None:
    if unused := sorted(config.rewards.options.keys() - set(names)):
        raise ConfigError(
            f"rewards.options holds options for {', '.join(unused)}, which this run does not use. "
            f"It uses {', '.join(names)}."
        )


def _make(name: str, config: RunConfig) -> Reward:
    options = config.rewards.options.get(name, {})
    reward = make_reward(name, **options)
    # A network scores where images are sampled, unless it was given a place of its own.
    if isinstance(reward, ModelReward) and "device" not in options:
        reward.to(resolve_device(config.device))
    return reward

"""Put one of Calibri's rewards behind the stand-alone server."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from calibri.errors import ConfigError, RewardError
from calibri.rewards.registry import RewardSource, make_reward
from calibri.rewards.reward import ModelReward, Reward, RewardInfo
from calibri.rewards.server.standalone import InputError, Limits, Score, serve
from calibri.signatures import typed


@typed
def serve_reward(
    reward: RewardSource,
    host: str = "127.0.0.1",
    port: int = 8765,
    limits: Limits | None = None,
    **options: Any,
) -> None:
    """Serve a reward until SIGTERM or Ctrl-C.

    Args:
        reward: what scores, by name or as an object (``make_reward``); its weights are loaded now.
        host: loopback, unless the environment holds a token (``CALIBRI_REWARD_TOKEN``).
        port: 0 for any free one; it is printed.
        limits: what is accepted; None for the defaults.
        options: arguments of the reward, such as ``device``.

    Raises:
        RewardError: no reward has that name, or the weights cannot be had.
        ConfigError: the host or port cannot be used.
    """
    made = make_reward(reward, **options)
    if isinstance(made, ModelReward):
        _ = made.model
    try:
        serve(
            score_function(made),
            info_fields(made.info),
            host,
            port,
            limits=limits or Limits(),
            # A groupwise reward compares all images that it is given with one prompt.
            merge=made.info.kind == "pointwise",
        )
    except (ValueError, OSError) as error:
        raise ConfigError(f"Cannot serve at {host}, port {port}: {error}") from error


def score_function(reward: Reward) -> Score:
    """Make the function that the server calls, from a reward.

    What the reward refuses, it refuses again: clients are told not to retry.
    """

    def score(images: list[Image.Image], prompts: list[str]) -> list[float]:
        scores = torch.empty(len(images))
        try:
            for rows in _same_size(images):
                pixels = torch.stack([_pixels(images[i]) for i in rows])
                scores[rows] = reward.score(pixels, [prompts[i] for i in rows])
        except RewardError as error:
            raise InputError(str(error)) from error
        return [float(value) for value in scores]

    return score


def info_fields(info: RewardInfo) -> dict[str, Any]:
    """Turn an info into JSON; a range without a bound has null in its place."""
    fields = dataclasses.asdict(info)
    return fields | {"range": [x if math.isfinite(x) else None for x in info.range]}


def _same_size(images: Sequence[Image.Image]) -> list[list[int]]:
    sizes = [image.size for image in images]
    return [[i for i, s in enumerate(sizes) if s == size] for size in dict.fromkeys(sizes)]


def _pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)

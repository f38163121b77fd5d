"""A reward that another process scores: the client of ``calibri serve-reward``."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from calibri.errors import RewardError
from calibri.rewards.reward import RewardInfo
from calibri.rewards.servers import Answer, Servers

SCHEMA = 1
TOKEN_VARIABLE = "CALIBRI_REWARD_TOKEN"


class RemoteReward:
    """Scores of a reward server, or of several that serve the same reward.

    Images travel as PNG, so that the scores are those of the reward in this process. Requests that
    fail for a reason that may pass (no connection, 408, 429, 5xx, half an answer) are sent again,
    to another server if there is one, with growing pauses and until the deadline. Any other
    refusal ends the call.

    Args:
        url: where the servers are, for example ``"http://127.0.0.1:8765"``; one or a list.
        token: that the servers ask for; by default that of ``CALIBRI_REWARD_TOKEN``.
        variant: the variant the servers must have; None accepts any, but the same of all.
        batch_size: images per request, fewer where a server takes fewer.
        deadline: seconds for one call of ``score``.
        timeout: seconds for one request.
        attempts: times that a request is sent at most.
    """

    def __init__(
        self,
        url: str | Sequence[str] = "http://127.0.0.1:8765",
        *,
        token: str | None = None,
        variant: str | None = None,
        batch_size: int = 16,
        deadline: float = 600.0,
        timeout: float = 120.0,
        attempts: int = 16,
    ) -> None:
        _check_numbers(batch_size=batch_size, attempts=attempts, deadline=deadline, timeout=timeout)
        urls = (url,) if isinstance(url, str) else tuple(url)
        token = os.environ.get(TOKEN_VARIABLE, "") if token is None else token
        self.batch_size, self.deadline = batch_size, deadline
        self._wanted = variant
        self._servers = Servers(urls, token, timeout=timeout, attempts=attempts)
        self._info: RewardInfo | None = None
        self._served = ""
        self._most_images = self._most_pixels = 1

    @property
    def info(self) -> RewardInfo:
        """What the servers serve, under the name ``remote``; asks them on first use.

        Raises:
            RewardError: a server cannot be reached, or they do not serve the same thing.
        """
        if self._info is None:
            self._info = self._connect()
        return self._info

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score images against their prompts on the servers.

        Args:
            images: uint8, shape (N, 3, H, W).
            prompts: N texts.

        Returns:
            float32 (N,) on the CPU; NaN marks an image that the server could not score.

        Raises:
            RewardError: the shapes disagree, a server refused, none answered before the deadline,
                or a server changed what it serves.
        """
        rgb = images.ndim == 4 and images.shape[1] == 3 and images.dtype == torch.uint8
        if len(images) != len(prompts) or not rgb:
            raise RewardError(
                f"Reward 'remote' got images of shape {tuple(images.shape)} and dtype "
                f"{images.dtype} for {len(prompts)} prompts. Pass one prompt per uint8 RGB image."
            )
        parts = self._parts(prompts, pixels=images.shape[2] * images.shape[3])
        scores = torch.full((len(prompts),), torch.nan)
        until = time.monotonic() + self.deadline

        def send(rows: list[int]) -> None:
            texts = [prompts[i] for i in rows]
            scores[rows] = self._request([images[i] for i in rows], texts, until)

        with ThreadPoolExecutor(self._servers.parallel) as pool:
            tasks = [pool.submit(send, rows) for rows in parts]
            try:
                for task in tasks:
                    task.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return scores

    def _parts(self, prompts: Sequence[str], pixels: int) -> list[list[int]]:
        """Rows of each request; all images of a prompt in one when they are compared."""
        rows = range(len(prompts))
        if self.info.kind == "pointwise":
            size = max(1, min(self.batch_size, self._most_images, self._most_pixels // pixels))
            return [list(rows[i : i + size]) for i in range(0, len(rows), size)]
        return [[i for i in rows if prompts[i] == one] for one in dict.fromkeys(prompts)]

    def _connect(self) -> RewardInfo:
        until = time.monotonic() + self.deadline
        answers = [self._servers.get(url, "/v1/info", until) for url in self._servers.urls]
        infos = [_reward_info(answer) for answer in answers]
        first = infos[0]
        for url, info in zip(self._servers.urls, infos, strict=True):
            if (info.name, info.variant) != (first.name, first.variant):
                raise RewardError(
                    f"The servers serve different things: {self._servers.urls[0]} has "
                    f"'{first.name}' ({first.variant}), {url} has '{info.name}' ({info.variant}). "
                    "Serve one reward in one variant."
                )
        if self._wanted is not None and first.variant != self._wanted:
            raise RewardError(
                f"{self._servers.urls[0]} serves the variant '{first.variant}', not "
                f"'{self._wanted}'. Serve that one, or correct the option 'variant'."
            )
        self._served = first.name
        self._most_images = min(_limit(answer, "images") for answer in answers)
        self._most_pixels = min(_limit(answer, "pixels") for answer in answers)
        variant = f"{first.name}: {first.variant}"
        return dataclasses.replace(first, name="remote", variant=variant, differentiable=False)

    def _request(self, images: list[Tensor], prompts: list[str], until: float) -> Tensor:
        request = {"schema": SCHEMA, "reward": self._served, "prompts": prompts}
        parts = {"request": ("application/json", json.dumps(request).encode())}
        for i, image in enumerate(images):
            parts[f"image_{i}"] = ("image/png", _png(image))
        answer = self._servers.post("/v1/score", parts, until, check=_check_scores(len(prompts)))
        self._check_variant(answer)
        values = answer.data["scores"]
        return torch.tensor([torch.nan if value is None else value for value in values])

    def _check_variant(self, answer: Answer) -> None:
        info = _reward_info(answer)
        if f"{info.name}: {info.variant}" != self.info.variant:
            raise RewardError(
                f"{answer.url} now serves '{info.name}: {info.variant}', and this run began with "
                f"'{self.info.variant}'. Serve that one again and resume."
            )


def _check_numbers(**numbers: float) -> None:
    for name, value in numbers.items():
        least = 1 if isinstance(value, int) else 0
        if not (math.isfinite(value) and value >= least and value > 0):
            raise RewardError(
                f"Option '{name}' of reward 'remote' is {value}. It must be a number above 0."
            )


def _png(image: Tensor) -> bytes:
    buffer = io.BytesIO()
    pixels = image.permute(1, 2, 0).contiguous().cpu().numpy()
    # The fastest level: most time would go into compression otherwise.
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def _reward_info(answer: Answer) -> RewardInfo:
    try:
        fields: Mapping[str, Any] = answer.data["info"]
        low, high = fields.get("range", (None, None))
        kind = fields.get("kind", "pointwise")
        if kind not in ("pointwise", "groupwise", "corpus"):
            raise ValueError(f"kind is {kind!r}")
        return RewardInfo(
            name=str(fields["name"]),
            variant=str(fields["variant"]),
            range=(_bound(low, -math.inf), _bound(high, math.inf)),
            unit=str(fields.get("unit", "")),
            kind=kind,
            license=str(fields.get("license", "")),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RewardError(
            f"{answer.url} answered without a proper 'info' ({error}). Is it a reward server of "
            "this version?"
        ) from error


def _limit(answer: Answer, name: str) -> int:
    limits = answer.data.get("limits")
    value = limits.get(name) if isinstance(limits, dict) else None
    return value if isinstance(value, int) and value > 0 else 1


def _is_number(value: object) -> bool:
    """Whether a value of JSON is a number that a score can be; it knows integers of any length."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= torch.finfo(torch.float32).max  # False for NaN


def _bound(value: object, default: float) -> float:
    if value is None:
        return default
    if not _is_number(value):
        raise ValueError(f"an end of its range is {value!r:.40}")
    return float(value)  # type: ignore[arg-type]


def _check_scores(count: int) -> Callable[[Mapping[str, Any]], bool]:
    def check(data: Mapping[str, Any]) -> bool:
        scores = data.get("scores")
        return (
            isinstance(scores, list)
            and len(scores) == count
            and all(score is None or _is_number(score) for score in scores)
        )

    return check

"""Judges behind an OpenAI-compatible endpoint: any vision-language model that vLLM, SGLang, ...
serve. It sees the image and a text with the prompt; the score is read from what it writes.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from math import isfinite, nan
from typing import Any

import torch
from torch import Tensor

from calibri.errors import RewardError
from calibri.rewards.images import to_pil
from calibri.rewards.json_client import JsonClient
from calibri.rewards.reward import BatchedReward, RewardInfo

BASE_URL = "http://127.0.0.1:8000/v1"

# Digits that go on after the number, as in "8,5", make the reading doubtful: no match.
NUMBER = r"(\d+(?:\.\d+)?)(?![\d.,]*\d)"

JUDGE_TEMPLATE = """You see an image that was generated for this caption:

{prompt}

Rate the image from 0 (worst) to 10 (best). Weigh how well it shows what the caption says and how
well it is made: plausible shapes, detail, light and composition. Decimals are welcome. Answer with
one line and nothing else:
Score: <number>"""

# The labels are those UnifiedReward 2.0 was trained to write; the words around them are ours.
UNIFIED_TEMPLATE = """Look at a generated image and the text caption it was made for.
Rate it on three axes, each from 1 (worst) to 5 (best):
- Alignment Score: how well the image shows what the caption says.
- Coherence Score: how free the image is of distorted objects, glitches and impossible things.
- Style Score: how good the image looks, whatever the caption says.

Answer in this format:

Alignment Score (1-5): X
Coherence Score (1-5): Y
Style Score (1-5): Z

Text Caption: [{prompt}]"""

# Of the text that the authors of UnifiedReward 2.0 publish for single images, with {prompt} in its
# place: their words are theirs, but whoever passes them can see in the variant that they are exact.
AUTHORS_TEMPLATE_SHA256 = "75d52d3ae771f89b682db3b74cdaca1c7bde373a39162bc1c9dabd63cdc9b851"

UNIFIED_PATTERNS = tuple(
    rf"{aspect} Score \(1-5\):\s*{NUMBER}" for aspect in ("Alignment", "Coherence", "Style")
)


class JudgeReward(BatchedReward):
    """The mean of the numbers that a judge writes about an image and its prompt.

    A reply that cannot be read, or a number off the scale, scores NaN, never 0, and is counted in
    ``unread``.

    Args:
        base_url: of the endpoint, up to and including ``/v1``.
        model: its name there; None takes the one model that the server has.
        template: what the judge is told; ``{prompt}`` stands for the prompt.
        patterns: one or more regular expressions, each with one group for a number; the last match
            of each counts, the score is their mean.
        scale: smallest and largest number that may be read.
        api_key_env: environment variable that holds the key, if the endpoint wants one.
        timeout: seconds for one attempt at one image.
        attempts: tries per image; connection faults, 429 and 5xx are tried again, nothing else.
        first_wait: seconds before the second try.
        parallel: images judged at the same time.
        max_tokens: length of a reply.
        batch_size: images per batch.

    Raises:
        RewardError: the address, template, a pattern or the key cannot be used.
    """

    name = "judge"

    def __init__(
        self,
        *,
        base_url: str = BASE_URL,
        model: str | None = None,
        template: str = JUDGE_TEMPLATE,
        patterns: str | Sequence[str] = rf"(?i)score:\s*{NUMBER}",
        scale: tuple[float, float] = (0.0, 10.0),
        api_key_env: str | None = None,
        timeout: float = 120.0,
        attempts: int = 4,
        first_wait: float = 0.5,
        parallel: int = 8,
        max_tokens: int = 512,
        batch_size: int = 32,
    ) -> None:
        super().__init__(batch_size)
        if "{prompt}" not in template:
            raise RewardError(f"The template of '{self.name}' must contain {{prompt}}.")
        written = [patterns] if isinstance(patterns, str) else patterns
        self._patterns = [_compiled(pattern) for pattern in written]
        self._client = JsonClient(
            base_url,
            key=_key(api_key_env),
            timeout=timeout,
            attempts=attempts,
            first_wait=first_wait,
        )
        self._model, self._template = model, template
        self._scale = (float(scale[0]), float(scale[1]))
        self._parallel, self._max_tokens = parallel, max_tokens
        self.unread = 0
        self.last_unread = ""
        self.info = RewardInfo(
            name=self.name,
            variant=self._variant(),
            range=self._scale,
            unit=f"judge's score, {scale[0]:g} to {scale[1]:g}",
            license="see the card of the model",
        )

    def _variant(self) -> str:
        asked = "\0".join([self._template, *(pattern.pattern for pattern in self._patterns)])
        digest = hashlib.sha256(asked.encode()).hexdigest()[:8]
        exact = hashlib.sha256(self._template.encode()).hexdigest() == AUTHORS_TEMPLATE_SHA256
        told = f"{'authors-' if exact else ''}template-{digest}"
        return f"{self._model or 'the served model'}/{told}/temperature-0/png"

    def score_batch(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """uint8 (N, 3, H, W) and N prompts to scores (N,), NaN where a reply cannot be read."""
        model = self._model_name()
        pool = ThreadPoolExecutor(self._parallel)
        try:
            replies = list(pool.map(lambda i, p: self._ask(model, i, p), images, prompts))
        finally:
            pool.shutdown(cancel_futures=True)
        return torch.tensor([self._read(reply) for reply in replies])

    def _model_name(self) -> str:
        if self._model is None:
            try:
                served = [str(entry["id"]) for entry in self._client.call("models")["data"]]
            except (KeyError, TypeError) as error:
                raise self._not_the_api("models") from error
            if len(served) != 1:
                raise RewardError(
                    f"'{self._client.base_url}' serves {len(served)} models: {', '.join(served)}. "
                    "Name one with the option 'model'."
                )
            self._model = served[0]
            self.info = replace(self.info, variant=self._variant())
        return self._model

    def _ask(self, model: str, image: Tensor, prompt: str) -> str:
        picture = {"type": "image_url", "image_url": {"url": data_url(image)}}
        # Not str.format: prompts and templates may hold braces of their own.
        text = {"type": "text", "text": self._template.replace("{prompt}", prompt)}
        body = {
            "model": model,
            "messages": [{"role": "user", "content": [picture, text]}],
            "temperature": 0,
            "max_tokens": self._max_tokens,
        }
        reply: Any = self._client.call("chat/completions", body)
        try:
            return str(reply["choices"][0]["message"]["content"] or "")
        except (KeyError, IndexError, TypeError) as error:
            raise self._not_the_api("chat/completions") from error

    def _not_the_api(self, path: str) -> RewardError:
        return RewardError(
            f"'{self._client.base_url}/{path}' does not answer as OpenAI's API does. Check the "
            "option 'base_url'; it usually ends in /v1."
        )

    def _read(self, reply: str) -> float:
        score = read_score(reply, self._patterns, self._scale)
        if not isfinite(score):
            self.unread += 1
            self.last_unread = reply[:500]
        return score


class UnifiedReward(JudgeReward):
    """UnifiedReward 2.0: the mean of alignment, coherence and style, from 1 to 5.

    Args:
        **options: as for ``JudgeReward``; the template, patterns and scale have other defaults.
    """

    name = "unifiedreward"

    def __init__(
        self,
        *,
        template: str = UNIFIED_TEMPLATE,
        patterns: str | Sequence[str] = UNIFIED_PATTERNS,
        scale: tuple[float, float] = (1.0, 5.0),
        **options: Any,
    ) -> None:
        super().__init__(template=template, patterns=patterns, scale=scale, **options)


def data_url(image: Tensor) -> str:
    """Write uint8 (3, H, W) as a data URL of a PNG: nothing of the image is lost on the way."""
    file = io.BytesIO()
    to_pil(image).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def read_score(
    reply: str, patterns: Sequence[re.Pattern[str]], scale: tuple[float, float]
) -> float:
    """Read the mean of one number per pattern, each its last match; NaN if one is not to be had.

    Args:
        reply: what the judge wrote; emphasis in asterisks is ignored.
        patterns: with one group each.
        scale: smallest and largest number that counts.
    """
    plain = reply.replace("*", "")
    matches = [list(pattern.finditer(plain)) for pattern in patterns]
    try:
        numbers = [float(found[-1][1]) for found in matches]
    except (IndexError, ValueError, TypeError):
        return nan
    on_scale = all(scale[0] <= number <= scale[1] for number in numbers)
    return sum(numbers) / len(numbers) if on_scale else nan


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise RewardError(f"The pattern {pattern!r} is no regular expression: {error}.") from error
    if compiled.groups != 1:
        raise RewardError(f"The pattern {pattern!r} must have one group, around the number.")
    return compiled


def _key(variable: str | None) -> str:
    if variable is None:
        return ""
    if not os.environ.get(variable):
        raise RewardError(f"The environment variable '{variable}' for the key is not set.")
    return os.environ[variable]

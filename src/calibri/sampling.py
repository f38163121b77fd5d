"""Sample images through an unmodified diffusers pipeline.

Prompt embeddings are computed once per prompt and cached; every (prompt, seed) has its own
generator, so an image does not depend on its neighbours in the batch.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from calibri.config import SamplingConfig
from calibri.errors import UnsupportedModelError
from calibri.prompts import Prompt

# What ``encode_prompt`` of a pipeline family returns, in order; None is rebuilt by the pipeline.
_ENCODED: dict[str, tuple[str | None, ...]] = {
    "StableDiffusion3": (
        "prompt_embeds",
        "negative_prompt_embeds",
        "pooled_prompt_embeds",
        "negative_pooled_prompt_embeds",
    ),
    "Flux": ("prompt_embeds", "pooled_prompt_embeds", None),
}


@dataclass(frozen=True)
class Noise:
    """One image to sample: a prompt and the seed of its noise."""

    prompt: Prompt
    seed: int


class Sampler:
    """Samples (prompt, seed) pairs with fixed settings.

    Args:
        pipe: a diffusers pipeline on its device.
        config: sampling settings.

    Raises:
        UnsupportedModelError: the pipeline's prompt embeddings are not known.
    """

    def __init__(self, pipe: Any, config: SamplingConfig) -> None:
        self.pipe = pipe
        self.config = config
        self._names = _encoded_names(pipe)
        self._accepted = inspect.signature(pipe.encode_prompt).parameters
        self._cache: dict[str, dict[str, Tensor]] = {}

    @property
    def guided(self) -> bool:
        """Whether classifier-free guidance runs two branches."""
        return self.config.guidance_scale > 1.0 and "negative_prompt_embeds" in self._names

    def nfe(self, num_inference_steps: int | None = None) -> int:
        """Transformer evaluations per image."""
        steps = num_inference_steps or self.config.num_inference_steps
        return steps * (2 if self.guided else 1)

    def sample(self, noises: Sequence[Noise], num_inference_steps: int | None = None) -> Tensor:
        """Sample one batch.

        Args:
            noises: what to sample, one image each.
            num_inference_steps: other steps than the configured ones.

        Returns:
            uint8 (N, 3, H, W) on the CPU.
        """
        generators = [torch.Generator("cpu").manual_seed(noise.seed) for noise in noises]
        with torch.no_grad():
            images = self.pipe(
                **self._batch([noise.prompt for noise in noises]),
                num_inference_steps=num_inference_steps or self.config.num_inference_steps,
                guidance_scale=self.config.guidance_scale,
                height=self.config.height,
                width=self.config.width,
                generator=generators,
                output_type="pt",
            ).images
        pixels: Tensor = (images.float().clamp(0, 1) * 255).round().to(torch.uint8).cpu()
        return pixels

    def _batch(self, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        encoded = [self._encode(prompt) for prompt in prompts]
        device = self.pipe._execution_device
        return {name: torch.cat([e[name] for e in encoded]).to(device) for name in encoded[0]}

    def _encode(self, prompt: Prompt) -> dict[str, Tensor]:
        if prompt.id not in self._cache:
            self._cache[prompt.id] = self._encoded(prompt.text)
        return self._cache[prompt.id]

    def _encoded(self, text: str) -> dict[str, Tensor]:
        optional = {
            "prompt_2": None,
            "prompt_3": None,
            "negative_prompt": self.config.negative_prompt,
            "do_classifier_free_guidance": self.guided,
        }
        arguments = {name: value for name, value in optional.items() if name in self._accepted}
        with torch.no_grad():
            outputs = self.pipe.encode_prompt(prompt=text, **arguments)
        named = zip(self._names, outputs, strict=True)
        return {name: out.cpu() for name, out in named if name is not None and out is not None}


def _encoded_names(pipe: Any) -> tuple[str | None, ...]:
    for family, names in _ENCODED.items():
        if type(pipe).__name__.startswith(family):
            return names
    raise UnsupportedModelError(
        f"Sampling with {type(pipe).__name__} is not supported. Supported pipeline families are "
        f"{sorted(_ENCODED)}."
    )

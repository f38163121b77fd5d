"""Sample images through an unmodified diffusers pipeline.

Prompt embeddings are computed once per prompt and cached; every (prompt, seed) has its own
generator, so an image does not depend on its neighbours in the batch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from calibri.config import SamplingConfig
from calibri.embeddings import NEGATIVE, call_arguments, encoded_names, named_outputs, returns_both
from calibri.errors import ConfigError, UnsupportedModelError
from calibri.prompts import Prompt

# Pipelines that combine as c + g (c - u), which is guidance w = 1 + g, and the g above which they
# run the unconditional branch.
_EXCESS = {"ZImage": 0.0, "Krea2": 0.0, "Cosmos": 1.0}


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

    Attributes:
        before_call: told the prompt embeddings of each call of the pipeline.

    Raises:
        UnsupportedModelError: the pipeline's prompt embeddings are not known, or it makes videos.
        ConfigError: the guidance has no effect on this pipeline.
    """

    def __init__(self, pipe: Any, config: SamplingConfig) -> None:
        self.pipe = pipe
        self.config = config
        self.before_call: Callable[[Mapping[str, Any]], None] | None = None
        self._names = encoded_names(pipe)
        self._call = call_arguments(pipe)
        self._check()
        self._cache: dict[str, dict[str, Any]] = {}

    def _check(self) -> None:
        name = type(self.pipe).__name__
        if "num_frames" in self._call:
            raise UnsupportedModelError(
                f"{name} makes videos, and rewards look at images. Use an image pipeline."
            )
        if not any("embeds" in encoded and encoded in self._call for encoded in self._names):
            raise UnsupportedModelError(
                f"{name} does not take the prompt embeddings that its encode_prompt returns, so "
                "prompts would be encoded again for every image. Use another pipeline."
            )
        if "guidance_scale" not in self._scales() and self.config.guidance_scale > 1.0:
            raise ConfigError(
                f"guidance_scale is {self.config.guidance_scale}, but this model of {name} has no "
                "guidance embedded. Set sampling.true_cfg_scale for classifier-free guidance."
            )

    def _scales(self) -> dict[str, float]:
        """List the guidance arguments that have an effect on this pipeline."""
        scales = {
            "guidance_scale": self.config.guidance_scale,
            "true_cfg_scale": self.config.true_cfg_scale,
        }
        embedded = getattr(self.pipe.transformer.config, "guidance_embeds", False)
        if "true_cfg_scale" in self._call and not embedded:
            del scales["guidance_scale"]
        return {name: scale for name, scale in scales.items() if name in self._call}

    @property
    def cfg_scale(self) -> float:
        """The w of classifier-free guidance, u + w (c - u); 1 without it."""
        if not any(name.startswith(NEGATIVE) for name in self._call):
            return 1.0
        scales = self._scales()
        scale = scales.get("true_cfg_scale", scales.get("guidance_scale", 1.0))
        name = type(self.pipe).__name__
        for family, least in _EXCESS.items():
            if name.startswith(family):
                return 1.0 + scale if scale > least else 1.0
        return max(scale, 1.0)

    @property
    def guided(self) -> bool:
        """Whether classifier-free guidance runs two branches."""
        return self.cfg_scale > 1.0

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
        arguments = self._arguments(noises)
        if num_inference_steps is not None:
            arguments["num_inference_steps"] = num_inference_steps
        with torch.no_grad():
            images = self.pipe(**arguments).images
        pixels: Tensor = (images.float().clamp(0, 1) * 255).round().to(torch.uint8).cpu()
        return pixels

    def check_gradient(self, last_steps: int | None = None) -> None:
        """Refuse what ``sample_with_gradient`` cannot do.

        Raises:
            UnsupportedModelError: the pipeline cannot be run with gradients, or not in part.
            ConfigError: there are fewer steps.
        """
        name, steps = type(self.pipe).__name__, self.config.num_inference_steps
        if not hasattr(type(self.pipe).__call__, "__wrapped__"):
            raise UnsupportedModelError(
                f"Gradients through {name} are not supported: its __call__ is not one that "
                "torch.no_grad decorates. Use a search without gradients."
            )
        if last_steps is None:
            return
        if not 1 <= last_steps <= steps:
            raise ConfigError(
                f"A gradient through the last {last_steps} steps was asked for, but there are "
                f"{steps} steps. Choose 1 to {steps}."
            )
        if "callback_on_step_end" not in self._call:
            raise UnsupportedModelError(
                f"{name} has no callback_on_step_end, so that a gradient through its last steps "
                "alone is not supported. Take the gradient through all steps."
            )

    def sample_with_gradient(
        self, noises: Sequence[Noise], last_steps: int | None = None
    ) -> Tensor:
        """Sample one batch and keep its graph, through the same unmodified pipeline.

        Args:
            noises: what to sample, one image each.
            last_steps: steps that carry a gradient, which bounds memory; None for all.

        Returns:
            float32 (N, 3, H, W) in [0, 1] on the CPU; rounded to bytes they are those of
            ``sample``.

        Raises:
            UnsupportedModelError: the images have no gradient.
        """
        self.check_gradient(last_steps)
        arguments = self._arguments(noises)
        first = self.config.num_inference_steps - (last_steps or self.config.num_inference_steps)
        if first:
            arguments["callback_on_step_end"] = partial(_enable_gradient, first)
        # Pipelines are decorated with torch.no_grad; what it decorates is their own code.
        run = inspect.unwrap(type(self.pipe).__call__)
        with torch.set_grad_enabled(not first):
            images: Tensor = run(self.pipe, **arguments).images
            images = images.float().clamp(0, 1).cpu()
        if not images.requires_grad:
            raise UnsupportedModelError(
                f"The images of {type(self.pipe).__name__} have no gradient with respect to the "
                "scales. Use a search without gradients."
            )
        return images

    def _arguments(self, noises: Sequence[Noise]) -> dict[str, Any]:
        """What the pipeline is called with."""
        embeddings = self._batch([noise.prompt for noise in noises])
        if self.before_call is not None:
            self.before_call(embeddings)
        size = {"height": self.config.height, "width": self.config.width}
        return {
            **embeddings,
            # Some pipelines default to an empty prompt, and refuse it beside embeddings.
            **{name: None for name in ("prompt", "negative_prompt") if name in self._call},
            **self._scales(),
            **{name: pixels for name, pixels in size.items() if pixels is not None},
            "num_inference_steps": self.config.num_inference_steps,
            "generator": [torch.Generator("cpu").manual_seed(noise.seed) for noise in noises],
            "output_type": "pt",
        }

    def _batch(self, prompts: Sequence[Prompt]) -> dict[str, Any]:
        encoded = [self._encode(prompt) for prompt in prompts]
        device = self.pipe._execution_device
        masked = {_masked(name) for name in encoded[0]}
        return {
            name: _joined(name, [parts[name] for parts in encoded], device, name in masked)
            for name in encoded[0]
        }

    def _encode(self, prompt: Prompt) -> dict[str, Any]:
        if prompt.id not in self._cache:
            self._cache[prompt.id] = self._encoded(prompt.text)
        return self._cache[prompt.id]

    def _encoded(self, text: str) -> dict[str, Any]:
        """Encode one prompt: what ``__call__`` of the pipeline accepts, by name, on the CPU."""
        named = self._outputs(text)
        if self.guided and not returns_both(self._names):
            negative = self._outputs(self.config.negative_prompt)
            named |= {NEGATIVE + name: output for name, output in negative.items()}
        return {name: _on_cpu(out) for name, out in named.items() if name in self._call}

    def _outputs(self, text: str) -> dict[str, Any]:
        parameters = inspect.signature(type(self.pipe).encode_prompt).parameters
        arguments: dict[str, Any] = {
            name: None
            for name, parameter in list(parameters.items())[1:]
            if parameter.default is parameter.empty
        }
        offered = {
            "negative_prompt": self.config.negative_prompt,
            "do_classifier_free_guidance": self.guided,
        }
        arguments |= {name: value for name, value in offered.items() if name in parameters}
        with torch.no_grad():
            encoded = self.pipe.encode_prompt(**arguments | {"prompt": text})
        outputs = named_outputs(self._names, encoded)
        # A pipeline may leave out a mask that hides nothing; prompts of other lengths need it.
        for name in self._names:
            tokens = outputs.get(_masked(name)) if "mask" in name else None
            if tokens is not None and name not in outputs:
                outputs[name] = torch.ones(tokens.shape[:2], dtype=torch.long)
        return outputs


def _enable_gradient(
    first: int, pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]
) -> dict[str, Any]:
    """Start to keep the graph once the first steps are done; a ``callback_on_step_end``."""
    if index + 1 == first:
        torch.set_grad_enabled(True)
    return tensors


def _masked(name: str) -> str:
    """Name the embeddings that a mask belongs to; no embeddings have the name of another."""
    return name.replace("_attention_mask", "_embeds").replace("_mask", "") if "mask" in name else ""


def _on_cpu(output: Any) -> Any:
    return [row.cpu() for row in output] if isinstance(output, list) else output.cpu()


def _joined(name: str, parts: list[Any], device: torch.device, masked: bool) -> Any:
    """Put encoded prompts into one batch, the shorter ones padded behind where a mask says so."""
    if isinstance(parts[0], list):
        return [row.to(device) for part in parts for row in part]
    lengths = {part.shape[1] for part in parts if part.ndim > 1}
    if len(lengths) > 1:
        if not masked and "mask" not in name:
            raise UnsupportedModelError(
                f"'{name}' of these prompts have {sorted(lengths)} tokens and no mask, so they "
                "cannot share a batch. Set sampling.batch_size to 1."
            )
        longest = max(lengths)
        behind = [(0, 0) * (part.ndim - 2) + (0, longest - part.shape[1]) for part in parts]
        parts = [pad(part, end) for part, end in zip(parts, behind, strict=True)]
    return torch.cat(parts).to(device)

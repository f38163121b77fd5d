"""Sample images and videos through an unmodified diffusers pipeline.

Prompts are encoded once; every (prompt, seed) has its own generator, so an image does not depend on
its neighbours in the batch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from calibri.config import SamplingConfig
from calibri.errors import ConfigError, UnsupportedModelError
from calibri.pipelines import Pipeline, networks_of
from calibri.prompts import Prompt, load_picture, make_prompts
from calibri.results import FULL, Fidelity
from calibri.sampling.call import PipelineCall, size_in_words
from calibri.sampling.encoding import make_encoder
from calibri.sampling.frames import evenly_spaced
from calibri.sampling.modular import sampled
from calibri.sampling.shift import changed_shift
from calibri.sampling.signatures import call_arguments
from calibri.sampling.step_cache import check_cache, step_cache


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
        UnsupportedModelError: the pipeline does not sample from a prompt alone.
        ConfigError: the guidance or the number of frames has no effect on this pipeline.
    """

    def __init__(self, pipe: Pipeline, config: SamplingConfig) -> None:
        self.pipe = pipe
        self.config = config
        self.before_call: Callable[[Mapping[str, Any]], None] | None = None
        self._call = PipelineCall(pipe, config)
        if unsampled := networks_of(pipe)[0].family.unsampled:
            raise UnsupportedModelError(f"{type(pipe).__name__} {unsampled}. Use another pipeline.")
        if self._call.takes_one_prompt and config.batch_size > 1:
            raise ConfigError(
                f"{type(pipe).__name__} takes one prompt a call, and sampling.batch_size is "
                f"{config.batch_size}. Set sampling.batch_size to 1."
            )
        self._encoder = make_encoder(pipe, self._call.negative_prompt)

    def remove(self) -> None:
        """Leave the pipeline as it was before."""
        self._encoder.remove()

    @property
    def cfg_scale(self) -> float:
        """The w of classifier-free guidance, u + w (c - u); 1 without it."""
        return self._call.cfg_scale

    @property
    def guided(self) -> bool:
        """Whether classifier-free guidance runs two branches."""
        return self._call.guided

    @property
    def negative_prompt(self) -> str | None:
        """Prompt of the unconditional branch; None without one."""
        return self._call.negative_prompt

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Refuse source pictures that the pipeline does not take, and the lack of those it needs.

        Raises:
            ConfigError: either of these, or pictures in batches.
        """
        for prompt in prompts:
            self._call.check_source(prompt.source is not None)
        if self.config.batch_size > 1 and any(prompt.source for prompt in prompts):
            raise ConfigError(
                f"{type(self.pipe).__name__} is given one source picture a call, and "
                f"sampling.batch_size is {self.config.batch_size}. Set sampling.batch_size to 1."
            )

    def check_effect(self) -> None:
        """Sample twice in a few steps where only that tells whether guidance does anything.

        Raises:
            ConfigError: it does nothing.
        """
        noise = Noise(make_prompts(["a picture"])[0], 0)
        few = Fidelity(num_inference_steps=min(2, self.config.num_inference_steps))

        def run(scales: Mapping[str, float]) -> Any:
            arguments = self.arguments([noise], few) | dict(scales)
            with torch.no_grad(), self._encoder.answering():
                return sampled(self.pipe, **arguments)

        self._call.check_effect(run)

    def nfe(self, num_inference_steps: int | None = None) -> int:
        """Transformer evaluations per image."""
        steps = num_inference_steps or self.config.num_inference_steps
        return steps * (2 if self.guided else 1)

    def prepare(self, prompts: Sequence[Prompt], max_sequence_length: int | None = None) -> None:
        """Encode the prompts of the batches to come, so that the encoders are needed only now.

        What is encoded is kept on the CPU, up to ``sampling.prompt_cache.MAX_BYTES``; prompts
        beyond that are encoded when they are sampled. A pipeline that must be called with texts
        tells how it encodes them only in the next call of ``sample``, which then encodes all.
        """
        self._encoder.prepare(prompts, max_sequence_length)

    @property
    def max_sequence_length(self) -> int | None:
        """Tokens of a prompt by default; None where the pipeline takes no such number."""
        return self._encoder.max_sequence_length

    def text_tokens(self, prompt: Prompt, max_sequence_length: int | None = None) -> int | None:
        """Tokens of a prompt as the transformer sees them; None where that is not known."""
        # Of a video they are few beside its frames.
        if self._call.makes_videos:
            return None
        return self._encoder.tokens(prompt, max_sequence_length)

    def offload_encoders(self) -> None:
        """Keep the text encoders on the CPU; they visit the device to encode new prompts."""
        self._encoder.encoders.offload()

    def check_cache(self) -> None:
        """Refuse a pipeline whose steps cannot be told apart.

        Raises:
            UnsupportedModelError: a transformer takes no timestep.
        """
        check_cache(networks_of(self.pipe))

    def sample(
        self,
        noises: Sequence[Noise],
        fidelity: Fidelity = FULL,
        shift: float = 1.0,
    ) -> Tensor:
        """Sample one batch.

        Args:
            noises: what to sample, one image each.
            fidelity: what differs from the configuration.
            shift: factor on the shift of the scheduler, see ``calibri.sampling.shift``.

        Returns:
            uint8 (N, 3, H, W) on the CPU; of videos ``frames_scored`` frames each,
            (N, frames, 3, H, W).

        Raises:
            ConfigError: the pipeline refuses the size.
        """
        return self.sample_checked(noises, fidelity, shift)[0]

    def sample_checked(
        self, noises: Sequence[Noise], fidelity: Fidelity = FULL, shift: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Sample one batch as ``sample`` does, and say which images are broken.

        Returns:
            The images, and bool (N,): whether a value of an image was not finite before it became a
            byte, which cannot tell.
        """
        arguments = self.arguments(noises, fidelity)
        cache = step_cache(networks_of(self.pipe), fidelity.cache_interval)
        size = size_in_words(self.pipe, self._size(fidelity))
        with torch.no_grad(), self._encoder.answering(), changed_shift(self.pipe, shift), cache:
            with size:
                output = sampled(self.pipe, **arguments)
            images = self._pictures(output)
        images = images.float()
        broken = ~torch.isfinite(images).flatten(1).all(dim=1)
        # What is not a number has no byte of its own: on every device it is black.
        images = images.clamp(0, 1).masked_fill(images.isnan(), 0.0)
        return (images * 255).round().to(torch.uint8).cpu(), broken.cpu()

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
        if "callback_on_step_end" not in call_arguments(self.pipe):
            raise UnsupportedModelError(
                f"{name} has no callback_on_step_end, so that a gradient through its last steps "
                "alone is not supported. Take the gradient through all steps."
            )

    def sample_with_gradient(
        self, noises: Sequence[Noise], last_steps: int | None = None, shift: float = 1.0
    ) -> Tensor:
        """Sample one batch and keep its graph, through the same unmodified pipeline.

        Args:
            noises: what to sample, one image each.
            last_steps: steps that carry a gradient, which bounds memory; None for all.
            shift: factor on the shift of the scheduler; it is held.

        Returns:
            float32 (N, 3, H, W) in [0, 1] on the CPU, or (N, frames, 3, H, W); rounded to bytes
            they are those of ``sample``.

        Raises:
            UnsupportedModelError: the images have no gradient.
        """
        self.check_gradient(last_steps)
        arguments = self.arguments(noises)
        first = self.config.num_inference_steps - (last_steps or self.config.num_inference_steps)
        if first:
            arguments["callback_on_step_end"] = partial(_enable_gradient, first)
        # Pipelines are decorated with torch.no_grad; what it decorates is their own code.
        run = inspect.unwrap(type(self.pipe).__call__)
        shifted = changed_shift(self.pipe, shift)
        with torch.set_grad_enabled(not first), self._encoder.answering(), shifted:
            images = self._pictures(run(self.pipe, **arguments)[0])
            images = images.float().clamp(0, 1).cpu()
        if not images.requires_grad:
            raise UnsupportedModelError(
                f"The images of {type(self.pipe).__name__} have no gradient with respect to the "
                "scales. Use a search without gradients."
            )
        return images

    def run_with_gradient(self, noises: Sequence[Noise], shift: float = 1.0) -> None:
        """Run the steps of one batch with gradients, for who watches them; nothing is decoded.

        Args:
            noises: what to sample.
            shift: factor on the shift of the scheduler.
        """
        arguments = self.arguments(noises) | {"output_type": "latent"}
        run = inspect.unwrap(type(self.pipe).__call__)
        with torch.enable_grad(), self._encoder.answering(), changed_shift(self.pipe, shift):
            run(self.pipe, **arguments)

    @property
    def full(self) -> Fidelity:
        """What a fidelity is relative to, as configured."""
        names = ("num_inference_steps", "height", "width")
        return Fidelity(**{name: getattr(self.config, name) for name in names})

    def arguments(self, noises: Sequence[Noise], fidelity: Fidelity = FULL) -> dict[str, Any]:
        """What the pipeline is called with for one batch."""
        fidelity = self.full.updated(fidelity)
        prompts = [noise.prompt for noise in noises]
        encoded = self._encoder.arguments(prompts, fidelity.max_sequence_length)
        if self.before_call is not None:
            self.before_call(encoded)
        settings = self._call.arguments()
        changed = {name: getattr(fidelity, name) for name in ("height", "width")}
        sources = [load_picture(prompt.source) for prompt in prompts if prompt.source]
        return {
            **encoded,
            **({"image": sources[0]} if sources else {}),
            **settings,
            **{name: length for name, length in changed.items() if length is not None},
            **self._call.area(fidelity.height, fidelity.width),
            "num_inference_steps": fidelity.num_inference_steps,
            "generator": [torch.Generator("cpu").manual_seed(noise.seed) for noise in noises],
            "output_type": "pt",
        }

    def _size(self, fidelity: Fidelity) -> dict[str, int | None]:
        full = self.full.updated(fidelity)
        return {
            "height": full.height,
            "width": full.width,
            "num_frames": self.config.num_frames,
        }

    def _pictures(self, pictures: Any) -> Tensor:
        """Take images, or frames of videos, of what the pipeline returned."""
        if not isinstance(pictures, Tensor) or pictures.ndim not in (4, 5):
            raise UnsupportedModelError(
                f"{type(self.pipe).__name__} returned neither images nor videos as a tensor. Use "
                "another pipeline."
            )
        if pictures.ndim == 5:
            return evenly_spaced(pictures, self.config.frames_scored)
        return pictures


def _enable_gradient(
    first: int, pipe: Pipeline, index: int, timestep: Any, tensors: dict[str, Any]
) -> dict[str, Any]:
    """Start to keep the graph once the first steps are done; a ``callback_on_step_end``."""
    if index + 1 == first:
        torch.set_grad_enabled(True)
    return tensors

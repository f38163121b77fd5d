"""Flow matching sampled as a stochastic differential equation, whose steps have a probability.

Flow-GRPO (Liu et al. 2025, arXiv 2505.05470, section 4.2) adds noise to each step of the sampler
and takes the drift so that images at every noise level are distributed as without it, as far as
steps are short. With velocity v at noise level t and a noise of ``s = a sqrt(t / (1 - t))`` one is

    x' = x + (v + s^2 / (2 t) (x + (1 - t) v)) dt + s sqrt(|dt|) e,    e ~ N(0, 1), dt < 0.

So the sampler is a policy: what it does next is a Gaussian around what the model predicts. The
stock pipeline runs it; only ``step`` of its scheduler is replaced meanwhile.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from calibri.errors import ConfigError, UnsupportedModelError
from calibri.pipelines import Pipeline
from calibri.sampling.methods import replace_method
from calibri.sampling.sampler import Noise, Sampler
from calibri.seeds import derive_seed

NOISE_LEVEL = 0.7
"""The a of Flow-GRPO for SD3.5-medium."""


@dataclass(frozen=True)
class Transition:
    """What a step of the sampler does: a Gaussian with the same variance in every number.

    Attributes:
        mean: float32 (N, ...).
        std: float32, a single number.
    """

    mean: Tensor
    std: Tensor

    def log_prob(self, reached: Tensor) -> Tensor:
        """Log-density of what was reached, its mean over the numbers of a latent: (N,).

        The mean, as in Flow-GRPO's own code: ratios of its policies are so independent of the size
        of the latents, and its clip range of 1e-4 is of such ratios.
        """
        squares = ((reached - self.mean) / self.std).square().flatten(1).mean(dim=1)
        return -squares / 2 - self.std.log() - math.log(2 * math.pi) / 2

    def divergence(self, other: Transition) -> Tensor:
        """Kullback-Leibler divergence from another of equal variance, mean over numbers: (N,)."""
        return ((self.mean - other.mean) / self.std).square().flatten(1).mean(dim=1) / 2


def transition(
    velocity: Tensor,
    latents: Tensor,
    sigma: Tensor,
    following: Tensor,
    noise_level: float,
    largest: Tensor,
) -> Transition:
    """Make the step from one noise level to the next.

    Args:
        velocity: noise minus data, as predicted, (N, ...).
        latents: at ``sigma``, (N, ...).
        sigma: noise level in (0, 1].
        following: the next one, in [0, sigma).
        noise_level: the a of the module's formula; 0 is the ordinary Euler step.
        largest: stands for a noise level of 1, at which the noise would be infinite; the second one
            of the schedule.

    Returns:
        In float32.
    """
    velocity, latents = velocity.float(), latents.float()
    step = following - sigma
    noise = noise_level * (sigma / (1 - torch.where(sigma == 1, largest, sigma))).sqrt()
    pull = noise.square() / (2 * sigma)
    mean = latents * (1 + pull * step) + velocity * (1 + pull * (1 - sigma)) * step
    return Transition(mean, noise * (-step).sqrt())


@dataclass(frozen=True)
class Paths:
    """What the sampler did, step by step.

    Attributes:
        reached: latents after each step, float32 (N, ...).
        log_probs: of each step, float32 (N,).
    """

    reached: tuple[Tensor, ...]
    log_probs: tuple[Tensor, ...]

    def __len__(self) -> int:
        """Steps."""
        return len(self.reached)

    @property
    def count(self) -> int:
        """Images."""
        return len(self.log_probs[0])

    @classmethod
    def joined(cls, parts: Sequence[Paths]) -> Paths:
        """Put the paths of images together, in their order."""
        reached = zip(*(part.reached for part in parts), strict=True)
        values = zip(*(part.log_probs for part in parts), strict=True)
        return cls(tuple(map(torch.cat, reached)), tuple(map(torch.cat, values)))

    def rows(self, chosen: Sequence[int]) -> Paths:
        """Take the paths of some of the images."""
        index = list(chosen)
        return Paths(
            tuple(latents[index] for latents in self.reached),
            tuple(values[index] for values in self.log_probs),
        )


# Told the number of a step and what the model would do there.
OnStep = Callable[[int, Transition], None]


class Rollouts:
    """Samples with noise in every step, and runs along the same paths again.

    Args:
        sampler: of a pipeline with flow matching.
        noise_level: the a of the module's formula, above 0.

    Raises:
        UnsupportedModelError: the scheduler is another, or the pipeline cannot be run with
            gradients.
        ConfigError: there is one step only, which leaves nothing to learn from.
    """

    def __init__(self, sampler: Sampler, noise_level: float = NOISE_LEVEL) -> None:
        sampler.check_gradient()
        check_policy(sampler.pipe)
        if sampler.config.num_inference_steps < 2:
            raise ConfigError(
                "A policy of the sampler needs steps to learn from, and the last one is not; "
                "sampling.num_inference_steps is 1. Set it to 2 or more."
            )
        self._sampler = sampler
        self._noise_level = noise_level

    def sample(self, noises: Sequence[Noise], shift: float = 1.0) -> tuple[Tensor, Tensor, Paths]:
        """Sample one batch; the noise of the steps is a function of the seed of each image, too.

        Args:
            noises: what to sample, one image each.
            shift: factor on the shift of the scheduler.

        Returns:
            Images and which are broken, as ``Sampler.sample_checked``; and their paths.
        """
        drawn = _Draw([derive_seed(noise.seed, "steps") for noise in noises])
        with _stepping(self._sampler.pipe, self._noise_level, drawn):
            images, broken = self._sampler.sample_checked(noises, shift=shift)
        return images, broken, Paths(tuple(drawn.reached), tuple(drawn.log_probs))

    def follow(
        self, noises: Sequence[Noise], paths: Paths, told: OnStep, shift: float = 1.0
    ) -> None:
        """Run along paths with gradients: each step starts where the path is, whatever the model.

        Nothing is kept from step to step. A gradient is taken in ``told``, so that memory holds
        the activations of a single step.

        Args:
            noises: as they were sampled.
            paths: of them.
            told: of every step but the last, which ends in the image without choosing much; the
                published method leaves it out, too.
            shift: as they were sampled.
        """
        with _stepping(self._sampler.pipe, self._noise_level, _Follow(paths, told)):
            self._sampler.run_with_gradient(noises, shift)


def check_policy(pipe: Pipeline) -> None:
    """Refuse a pipeline whose scheduler does no plain steps of flow matching.

    Raises:
        UnsupportedModelError: it does others.
    """
    scheduler: Any = getattr(pipe, "scheduler", None)
    plain = getattr(type(scheduler), "step", None) is FlowMatchEulerDiscreteScheduler.step
    config = getattr(scheduler, "config", None)
    other = [getattr(config, name, False) for name in ("stochastic_sampling", "invert_sigmas")]
    if plain and not any(other):
        return
    raise UnsupportedModelError(
        "Flow-GRPO makes the steps of FlowMatchEulerDiscreteScheduler random, and the scheduler of "
        f"{type(pipe).__name__} is a {type(scheduler).__name__} that does others. Use another "
        "search."
    )


class _Draw:
    """Goes where chance goes."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self._generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        self.reached: list[Tensor] = []
        self.log_probs: list[Tensor] = []

    def __call__(self, step: Transition) -> Tensor:
        shape = step.mean.shape[1:]
        noise = torch.stack([torch.randn(shape, generator=own) for own in self._generators])
        reached = step.mean + step.std * noise.to(step.mean.device)
        self.reached.append(reached)
        self.log_probs.append(step.log_prob(reached))
        return reached


class _Follow:
    """Goes where a path goes, and tells what the model would have done."""

    def __init__(self, paths: Paths, told: OnStep) -> None:
        self._paths, self._told, self._index = paths, told, 0

    def __call__(self, step: Transition) -> Tensor:
        index, self._index = self._index, self._index + 1
        if index + 1 < len(self._paths):
            self._told(index, step)
        return self._paths.reached[index]


@contextmanager
def _stepping(
    pipe: Pipeline, noise_level: float, choose: Callable[[Transition], Tensor]
) -> Iterator[None]:
    """Have the scheduler of a pipeline do random steps inside of ``with``."""
    scheduler = pipe.scheduler

    def change(original: Callable[..., Any]) -> Callable[..., Any]:
        def step(model_output: Tensor, timestep: Any, sample: Tensor, **options: Any) -> Any:
            made = _transition_of(scheduler, model_output, timestep, sample, noise_level)
            reached = choose(made).to(model_output.dtype)
            return (reached,) if options.get("return_dict") is False else _Output(reached)

        return step

    undo = replace_method(scheduler, "step", change)
    try:
        yield
    finally:
        undo()


@dataclass(frozen=True)
class _Output:
    prev_sample: Tensor


def _transition_of(
    scheduler: Any, velocity: Tensor, timestep: Any, latents: Tensor, noise_level: float
) -> Transition:
    """Look up the noise levels as ``FlowMatchEulerDiscreteScheduler.step`` does, and count on."""
    if scheduler.step_index is None:
        scheduler._init_step_index(timestep)
    index = scheduler.step_index
    scheduler._step_index += 1
    levels = scheduler.sigmas.to(latents.device)
    largest = levels[1].clamp(max=1 - 1e-3)
    return transition(velocity, latents, levels[index], levels[index + 1], noise_level, largest)

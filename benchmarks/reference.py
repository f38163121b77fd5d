"""The reference procedure: the paper's search as its authors run it (spec section 3), plainly.

One candidate after the other, the prompts encoded again for each, micro-batches of 4 through the
whole pipeline to PIL images, the reward called in between. The vector returned is the luckiest
candidate so far, validated every 10 generations. It shares no code with ``calibri``: it sets gates
by hooks of its own and searches with pycma, so its images check ours. Two things differ from the
authors' code, and neither slows it down: every image has its own seed, and both branches of
guidance run in one batch.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from calibri.arrays import Vector

with warnings.catch_warnings():  # pycma warns that it cannot plot
    warnings.simplefilter("ignore")
    import cma

# From PIL images and their prompts to one number each, higher is better.
RewardFunction = Callable[[list[Image.Image], list[str]], list[float]]

SCALE_BOUNDS = (-1.0, 2.0)
OUTPUT_BOUNDS = (-10.0, 10.0)


@dataclass(frozen=True)
class Settings:
    """The paper's values; the number of steps and the guidance are the model's.

    Attributes:
        num_inference_steps: sampling steps.
        guidance_scale: above 1 there are two members, the prompt and the empty prompt.
        bucket_size: prompts of a generation.
        micro_batch: images of one call of the pipeline.
        sigma0: first step size.
        validate_every: generations between validations.
        seed: of the search, the buckets and the noise.
    """

    num_inference_steps: int = 8
    guidance_scale: float = 1.0
    bucket_size: int = 16
    micro_batch: int = 4
    sigma0: float = 0.25
    validate_every: int = 10
    seed: int = 0

    @property
    def start_weights(self) -> tuple[float, ...]:
        """Output weights of the original model: (1,), or (w, 1 - w) under guidance."""
        w = self.guidance_scale
        return (w, 1.0 - w) if w > 1.0 else (1.0,)


class Gates:
    """Scales the gates of an SD3 transformer and its output, one set for each member.

    Attributes:
        names: of the gates, in the authors' order: visual, then text (spec section 5).
    """

    def __init__(self, transformer: nn.Module, start_weights: Sequence[float]) -> None:
        self._start_weights = start_weights
        visual: list[tuple[str, nn.Module, int]] = []
        text: list[tuple[str, nn.Module, int]] = []
        for number, block in enumerate(transformer.transformer_blocks):  # type: ignore[arg-type]
            path = f"transformer_blocks.{number}"
            visual += [(f"{path}.attn[0]", block.attn, 0), (f"{path}.ff", block.ff, 0)]
            if not block.context_pre_only:
                text += [(f"{path}.attn[1]", block.attn, 1)]
                text += [(f"{path}.ff_context", block.ff_context, 0)]
        self.names = [name for name, _, _ in (*visual, *text)]
        self._num_visual = len(visual)
        self._values = np.ones((len(start_weights), len(self.names) + 1))
        modules = [(module, index) for _, module, index in (*visual, *text)]
        self._handles = [
            module.register_forward_hook(self._hook(place, index))
            for place, (module, index) in enumerate([*modules, (transformer, 0)])
        ]

    @property
    def start(self) -> Vector:
        """The original model: ones, then the output weights."""
        ones = np.ones(len(self._start_weights) * len(self.names))
        return np.concatenate([ones, self._start_weights])

    @property
    def is_output(self) -> NDArray[np.bool_]:
        """Which entries of the vector are output weights."""
        return np.arange(self.start.size) >= self.start.size - len(self._start_weights)

    def set(self, vector: Vector) -> None:
        """Set the scales: in each group of gates the members outermost, output weights last."""
        members = len(self._start_weights)
        visual, text, weights = np.split(
            vector, [members * self._num_visual, members * len(self.names)]
        )
        groups = [visual.reshape(members, -1), text.reshape(members, -1)]
        # The pipeline itself sums the members with the start weights.
        outputs = weights / np.array(self._start_weights)
        self._values = np.concatenate([*groups, outputs[:, None]], axis=1)

    def named(self, vector: Vector) -> list[dict[str, float]]:
        """Name the gates of a vector, one mapping for each member."""
        self.set(vector)
        return [dict(zip(self.names, row, strict=False)) for row in self._values.tolist()]

    def _hook(self, place: int, index: int) -> Callable[..., Any]:
        def scale(module: nn.Module, args: Any, output: Any) -> Any:
            parts = list(output) if isinstance(output, tuple) else [output]
            shape = [-1] + [1] * (parts[index].ndim - 1)
            parts[index] = parts[index] * self._rows(place, len(parts[index])).view(shape)
            return tuple(parts) if isinstance(output, tuple) else parts[0]

        return scale

    def _rows(self, place: int, rows: int) -> torch.Tensor:
        # diffusers puts the unconditional rows first.
        members = self._values[::-1, place].copy()
        return torch.from_numpy(members).float().repeat_interleave(rows // len(members))

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()


class Search:
    """CMA-ES as the authors use it: pycma, and the luckiest candidate is what counts."""

    def __init__(self, start: Vector, is_output: NDArray[np.bool_], settings: Settings) -> None:
        low, high = np.where(is_output[:, None], OUTPUT_BOUNDS, SCALE_BOUNDS).T
        self._strategy = cma.CMAEvolutionStrategy(
            start,
            settings.sigma0,
            # pycma takes a seed of 0 for the time.
            {"bounds": [low, high], "seed": settings.seed + 1, "verbose": -9, "verb_log": 0},
        )
        self.generation = 0
        self.best: tuple[Vector, float] = (start, -np.inf)

    @property
    def popsize(self) -> int:
        """Candidates of a generation: 4 + floor(3 ln n)."""
        return int(self._strategy.popsize)

    @property
    def mean(self) -> Vector:
        """Mean of the distribution, within the bounds."""
        return np.asarray(self._strategy.result.xfavorite, dtype=np.float64)

    @property
    def sigma(self) -> float:
        """Step size."""
        return float(self._strategy.sigma)

    def ask(self) -> list[Vector]:
        """Draw the candidates of a generation."""
        return [np.asarray(candidate) for candidate in self._strategy.ask()]

    def tell(self, candidates: Sequence[Vector], rewards: Sequence[float]) -> None:
        """Update the distribution, and keep the luckiest candidate of all buckets so far."""
        self._strategy.tell(list(candidates), [-reward for reward in rewards])
        top = int(np.argmax(rewards))
        if rewards[top] > self.best[1]:
            self.best = (candidates[top], float(rewards[top]))
        self.generation += 1


@dataclass(frozen=True)
class Generation:
    """What is known after a generation."""

    generation: int
    images: int
    mean_reward: float
    best_reward: float
    sigma: float
    mean: Vector = field(repr=False)


class Procedure:
    """The whole loop on one pipeline.

    Args:
        pipe: a Stable Diffusion 3 pipeline.
        reward: scores PIL images.
        train: prompts of the buckets.
        held_out: prompts of the validation.
        settings: the paper's values.
    """

    def __init__(
        self,
        pipe: Any,
        reward: RewardFunction,
        train: Sequence[str],
        held_out: Sequence[str],
        settings: Settings,
    ) -> None:
        self.pipe = pipe
        self._reward = reward
        self._train = train
        self._held_out = held_out
        self.settings = settings
        self.gates = Gates(pipe.transformer, settings.start_weights)
        self.search = Search(self.gates.start, self.gates.is_output, settings)
        self.images = 0
        self.chosen: tuple[Vector, float] = (self.gates.start, -np.inf)

    def sample(self, vector: Vector, prompts: list[str], seeds: list[int]) -> list[Image.Image]:
        """Sample one micro-batch with one candidate."""
        self.gates.set(vector)
        with torch.no_grad():
            images: list[Image.Image] = self.pipe(
                prompt=prompts,
                num_inference_steps=self.settings.num_inference_steps,
                guidance_scale=self.settings.guidance_scale,
                generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            ).images
        return images

    def score(self, vector: Vector, prompts: Sequence[str], seeds: Sequence[int]) -> float:
        """Mean reward of one candidate, one image for each prompt."""
        rewards: list[float] = []
        for first in range(0, len(prompts), self.settings.micro_batch):
            part = slice(first, first + self.settings.micro_batch)
            images = self.sample(vector, list(prompts[part]), list(seeds[part]))
            rewards += self._reward(images, list(prompts[part]))
        self.images += len(prompts)
        return float(np.mean(rewards))

    def bucket(self) -> tuple[list[str], list[int]]:
        """Prompts and noise seeds of the current generation, the same for all candidates."""
        number, size = self.search.generation, self.settings.bucket_size
        rng = np.random.default_rng([self.settings.seed, number])
        chosen = rng.choice(len(self._train), size, replace=False)
        return [self._train[i] for i in chosen], rng.integers(2**31, size=size).tolist()

    def step(self) -> Generation:
        """Run one generation, and validate the luckiest candidate when its turn comes."""
        prompts, seeds = self.bucket()
        candidates = self.search.ask()
        rewards = [self.score(candidate, prompts, seeds) for candidate in candidates]
        self.search.tell(candidates, rewards)
        if self.search.generation % self.settings.validate_every == 0:
            self._validate()
        return Generation(
            self.search.generation - 1,
            self.images,
            float(np.mean(rewards)),
            float(np.max(rewards)),
            self.search.sigma,
            self.search.mean,
        )

    def _validate(self) -> None:
        vector = self.search.best[0]
        reward = self.score(vector, self._held_out, range(len(self._held_out)))
        if reward > self.chosen[1]:
            self.chosen = (vector, reward)

    def run(self, generations: int) -> tuple[Vector, list[Generation]]:
        """Search for a number of generations and return the vector that validated best."""
        history = [self.step() for _ in range(generations)]
        return self.chosen[0], history

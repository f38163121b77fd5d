"""Gradients of rewards with respect to the scales of a candidate, through the sampler."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from calibri.errors import NoMemoryError, RewardError
from calibri.memory import Halving, is_out_of_memory
from calibri.rewards import BatchedReward
from calibri.scoring.bench import Bench
from calibri.scoring.measures import Grouped, Measure
from calibri.scoring.plain_json import encode
from calibri.scoring.recomputation import Recomputation
from calibri.scoring.units import Result, Row, Unit

# Scores (N,) and their gradients with respect to the scales of each row, (N, ...).
Differentiated = tuple[Tensor, Tensor]


class Differentiator:
    """Computes units of gradients on one bench.

    Args:
        bench: its pipeline samples; the weights of the pipeline no longer ask for gradients.
    """

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._halving = Halving(bench.config.sampling.batch_size)
        self._recomputation = Recomputation(bench)
        self._together = 1  # images of a prompt that are compared, and so not parted
        for part in bench.pipe.components.values():
            if isinstance(part, nn.Module):
                part.requires_grad_(False)

    @property
    def batch_size(self) -> int:
        """Images that are differentiated at once: as configured, or what has fitted into memory."""
        configured = self._bench.config.sampling.batch_size
        return min(configured, self._halving.size * self._together)

    def __call__(self, unit: Unit) -> Result:
        """Scores of every row, and the sum of their gradients with respect to the scales.

        The gradients have the shape of ``Coefficients.site_scales``.

        Raises:
            RewardError: a score or a gradient is not finite, and the policy is not to drop it.
            NoMemoryError: one image alone does not fit into memory.
        """
        values = self._differentiated(unit)
        failed = ~torch.stack([_is_finite(*value) for value in values.values()]).all(dim=0)
        if failed.any() and self._bench.config.rewards.on_failure != "drop":
            first = unit.rows[int(failed.nonzero()[0])][1]
            raise RewardError(
                f"The score or the gradient of the objective is not finite for the prompt "
                f"'{first.prompt.text}' ({int(failed.sum())} of {len(failed)} images failed). "
                "Everything before this is kept; fix the reward and resume the run, or set "
                "rewards.on_failure to 'drop'."
            )
        scores = {name: value[0].masked_fill(failed, torch.nan) for name, value in values.items()}
        return {
            "scores": {name: encode(score) for name, score in scores.items()},
            "gradients": {
                name: gradient[~failed].double().sum(dim=0).cpu().tolist()
                for name, (_, gradient) in values.items()
            },
        }

    def _differentiated(self, unit: Unit) -> dict[str, Differentiated]:
        """Score rows and differentiate; what does not fit is parted, then less of it is kept."""
        groups = self._groups(unit)
        self._together = max(map(len, groups))
        while True:
            try:
                return self._in_parts(unit, groups)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if not self._recomputation.more():
                    raise NoMemoryError(
                        "The gradient of one image alone, or of the images of one prompt where "
                        "they are compared, does not fit into the memory of the device. "
                        "Everything before this is kept. Set search.last_steps to fewer steps, "
                        "lower sampling.height and width, or free the device, and resume the run."
                    ) from error

    def _in_parts(self, unit: Unit, groups: Sequence[list[Row]]) -> dict[str, Differentiated]:
        def compute(part: Sequence[list[Row]]) -> dict[str, Differentiated]:
            with self._recomputation.active():
                return self._batch(unit, list(itertools.chain(*part)))

        parts = [made for _, made in self._halving.run(groups, compute)]
        return {name: _joined([part[name] for part in parts]) for name in unit.measures}

    def _groups(self, unit: Unit) -> list[list[Row]]:
        """Rows that stay together: the images of a prompt, if something compares them."""
        if not any(self._bench.measures.is_grouped(name) for name in unit.measures):
            return [[row] for row in unit.rows]
        groups = itertools.groupby(unit.rows, key=lambda row: row[1].prompt.id)
        return [list(members) for _, members in groups]

    def _batch(self, unit: Unit, rows: Sequence[Row]) -> dict[str, Differentiated]:
        bench, coefficients = self._bench, unit.candidates[0]
        table = torch.from_numpy(coefficients.site_scales(bench.scaler.sites)).float()
        scales = table.repeat(len(rows), *[1] * table.ndim).requires_grad_()
        guidance = torch.tensor([coefficients.guidance])
        bench.scaler.set(scales, coefficients.member_branches, guidance)
        noises = [noise for _, noise in rows]
        images = bench.sampler.sample_with_gradient(noises, unit.last_steps, coefficients.shift)
        # Scored as the bytes that are seen; rounding is passed over as if it were not there.
        pixels = (images.detach() * 255).round() / 255
        bench.measures.remember(noise.prompt for noise in noises)
        texts = [noise.prompt.text for noise in noises]
        values = {}
        for name in unit.measures:
            scores, direction = self._measured(name, pixels, texts)
            wanted_again = name != unit.measures[-1]
            (gradient,) = torch.autograd.grad(images, scales, direction, wanted_again)
            values[name] = (scores, gradient)
        return values

    def _measured(self, name: str, pixels: Tensor, texts: Sequence[str]) -> Differentiated:
        """Scores (N,) of images and their gradients with respect to the pixels, (N, ...).

        The network of a reward keeps what its backward needs for as many images as it takes at
        once.
        """
        measures, size = self._bench.measures, len(texts)
        measure, reward = measures.differentiable(name), measures.rewards.get(name)
        if isinstance(reward, BatchedReward) and not isinstance(measure, Grouped):
            size = reward.batch_size
        return _joined(
            [
                _with_gradient(measure, pixels[first : first + size], texts[first : first + size])
                for first in range(0, len(texts), size)
            ]
        )


def _with_gradient(measure: Measure, pixels: Tensor, texts: Sequence[str]) -> Differentiated:
    leaf = pixels.detach().requires_grad_()
    scores = measure(leaf, texts)
    (direction,) = torch.autograd.grad(scores.sum(), leaf)
    return scores.detach().float(), direction


def _joined(parts: Sequence[Differentiated]) -> Differentiated:
    scores, gradients = zip(*parts, strict=True)
    return torch.cat(scores), torch.cat(gradients)


def _is_finite(scores: Tensor, gradients: Tensor) -> Tensor:
    return torch.isfinite(scores) & torch.isfinite(gradients).flatten(1).all(dim=1)

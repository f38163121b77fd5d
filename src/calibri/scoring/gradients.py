"""Gradients of rewards with respect to the scales of a candidate, through the sampler."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from calibri.errors import NoMemoryError, RewardError
from calibri.memory import Halving, is_out_of_memory
from calibri.scoring.bench import Bench
from calibri.scoring.device_swap import MOST_IMAGES, PIPELINE, REWARDS, DeviceSwap, in_parts
from calibri.scoring.directions import Differentiated, directions, joined
from calibri.scoring.pictures import Pictures
from calibri.scoring.plain_json import encode, encode_exact
from calibri.scoring.recomputation import Recomputation
from calibri.scoring.units import Result, Unit

# Directions that wait in host memory are floats, four times as large as images.
_MOST_DIRECTIONS = MOST_IMAGES // 4


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
        bench.freeze()

    @property
    def batch_size(self) -> int:
        """Images that are differentiated at once: as configured, or what has fitted into memory."""
        configured = self._bench.config.sampling.batch_size
        return min(configured, self._halving.size * self._together)

    def run(self, units: Iterable[tuple[int, Unit]]) -> Iterator[tuple[int, Result]]:
        """Yield the index of a unit and its result, in the order of the units.

        A result holds the scores of every row and their gradients with respect to the scales,
        float64 (rows, ...) with the shape of ``Coefficients.site_scales``; 0 of a failed row.

        Raises:
            RewardError: a score or a gradient is not finite, and the policy is not to drop it.
            NoMemoryError: one image alone does not fit into memory.
        """
        swap = self._bench.swap
        if swap is None:
            yield from ((index, self._result(unit)) for index, unit in units)
            return
        for part in in_parts(units, lambda item: len(item[1].rows), _MOST_DIRECTIONS):
            told = self._directions_of([unit for _, unit in part], swap)
            for (index, unit), values in zip(part, told, strict=True):
                swap.use(PIPELINE)
                yield index, self._result(unit, values)

    def _directions_of(
        self, units: Sequence[Unit], swap: DeviceSwap
    ) -> list[dict[str, Differentiated]]:
        """Sample without a graph, then differentiate the rewards while the pipeline is away."""
        swap.use(PIPELINE)
        seen = [self._bench.sample(unit, unit.rows).cpu() for unit in units]
        swap.use(REWARDS)
        return [self._away(unit, pictures) for unit, pictures in zip(units, seen, strict=True)]

    def _away(self, unit: Unit, pictures: Pictures) -> dict[str, Differentiated]:
        broken = pictures.broken.view(-1, *[1] * (pictures.pixels.ndim - 1))
        pixels = (pictures.pixels.float() / 255).masked_fill(broken, torch.nan)
        try:
            return self._measured(unit, range(len(unit.rows)), pixels)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise NoMemoryError(
                "The gradient of a reward does not fit into the memory of the device, though the "
                "pipeline is away. Everything before this is kept. Give the reward a smaller "
                "batch_size in rewards.options, or lower sampling.batch_size where it compares "
                "images, and resume the run."
            ) from error

    def _result(self, unit: Unit, told: Mapping[str, Differentiated] | None = None) -> Result:
        values = self._differentiated(unit, told)
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
                name: encode_exact(_without(gradient, failed).double().cpu().numpy())
                for name, (_, gradient) in values.items()
            },
        }

    def _differentiated(
        self, unit: Unit, told: Mapping[str, Differentiated] | None
    ) -> dict[str, Differentiated]:
        """Differentiate each row's scales; what does not fit is parted, then less of it is kept."""
        groups = self._groups(unit)
        self._together = max(map(len, groups))
        while True:
            try:
                return self._in_parts(unit, groups, told)
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

    def _in_parts(
        self,
        unit: Unit,
        groups: Sequence[list[int]],
        told: Mapping[str, Differentiated] | None,
    ) -> dict[str, Differentiated]:
        def compute(part: Sequence[list[int]]) -> dict[str, Differentiated]:
            with self._recomputation.active():
                return self._batch(unit, list(itertools.chain(*part)), told)

        parts = [made for _, made in self._halving.run(groups, compute)]
        return {name: joined([part[name] for part in parts]) for name in unit.measures}

    def _groups(self, unit: Unit) -> list[list[int]]:
        """Rows that stay together: the images of a prompt, if something compares them."""
        places = range(len(unit.rows))
        if not any(self._bench.measures.is_grouped(name) for name in unit.measures):
            return [[place] for place in places]
        groups = itertools.groupby(places, key=lambda place: unit.rows[place][1].prompt.id)
        return [list(members) for _, members in groups]

    def _batch(
        self, unit: Unit, places: Sequence[int], told: Mapping[str, Differentiated] | None
    ) -> dict[str, Differentiated]:
        """Differentiate rows, along directions that were found before or are found now."""
        images, scales = self._sampled(unit, places)
        if told is None:
            # Scored as the bytes that are seen; rounding is passed over as if it were not there.
            values = self._measured(unit, places, (images.detach() * 255).round() / 255)
        else:
            values = {name: (s[places], direction[places]) for name, (s, direction) in told.items()}
        found = {}
        for name, (scores, direction) in values.items():
            wanted_again = name != unit.measures[-1]
            (gradient,) = torch.autograd.grad(images, scales, direction, wanted_again)
            found[name] = (scores, gradient)
        return found

    def _sampled(self, unit: Unit, places: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Sample rows with their graph: images, and the scales of each."""
        bench, coefficients = self._bench, unit.candidates[0]
        scales = bench.scaler.apply_rows(coefficients, len(places), requires_grad=True)
        noises = [unit.rows[place][1] for place in places]
        shift = coefficients.shift
        return bench.sampler.sample_with_gradient(noises, unit.last_steps, shift), scales

    def _measured(
        self, unit: Unit, places: Sequence[int], pixels: Tensor
    ) -> dict[str, Differentiated]:
        prompts = [unit.rows[place][1].prompt for place in places]
        measures, texts = self._bench.measures, [prompt.text for prompt in prompts]
        measures.remember(prompts)
        return {name: directions(measures, name, pixels, texts) for name in unit.measures}


def _without(gradients: Tensor, failed: Tensor) -> Tensor:
    return gradients.masked_fill(failed.view(-1, *[1] * (gradients.ndim - 1)), 0.0)


def _is_finite(scores: Tensor, gradients: Tensor) -> Tensor:
    return torch.isfinite(scores) & torch.isfinite(gradients).flatten(1).all(dim=1)

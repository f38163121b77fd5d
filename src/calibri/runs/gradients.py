"""The gradient of a reward with respect to the vector, where the reward has one.

The black-box search needs nothing but scores and stays the default. A reward that is differentiable
also tells in which direction every scalar should move: its gradient is taken through the decoder
and the steps of the unmodified pipeline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from calibri.arrays import Scores, Vector
from calibri.coefficients import Coefficients, SearchSpace
from calibri.errors import ConfigError, RewardError, RunError
from calibri.pipelines import Site
from calibri.results import FULL
from calibri.rewards import DifferentiableReward, Reward
from calibri.runs.session import Engine
from calibri.sampling import Noise, mean_over_frames
from calibri.scoring import Evaluator, Row, Unit, cut, decode, encode, make_unit

# Scores (N,) and their gradients with respect to the scales of each row, (N, ...).
Differentiated = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Slope:
    """The mean of a reward over images and how it changes with the vector.

    Attributes:
        scores: float64 (noises,), NaN where an image was dropped.
        gradient: of the mean of the others, float64 (n,).
    """

    scores: Scores
    gradient: Vector


def jacobian(space: SearchSpace, sites: Sequence[Site]) -> NDArray[np.float64]:
    """How the scales of the sites change with the vector: a constant, since both are linear.

    Returns:
        float64 (n, ...), behind the first axis the shape of ``Coefficients.site_scales``.
    """
    zero, units = np.zeros(space.size), np.eye(space.size)
    origin = space.coefficients(zero).site_scales(sites)
    return np.stack([space.coefficients(unit).site_scales(sites) - origin for unit in units])


def check_gradient(
    engine: Engine, last_steps: int | None = None
) -> dict[str, DifferentiableReward]:
    """Find the rewards of an objective that can be differentiated, before any work.

    Raises:
        ConfigError: the objective or the search space has no gradient, or there are fewer steps.
        UnsupportedModelError: the pipeline cannot be run with gradients.
    """
    engine.sampler.check_gradient(last_steps)
    return differentiable_rewards(engine)


def differentiable_rewards(engine: Engine) -> dict[str, DifferentiableReward]:
    """Find the rewards of the objective, or say why it cannot be searched by gradients.

    Raises:
        ConfigError: the objective or the search space has no gradient.
    """
    mixture = engine.mixture
    if mixture.constraints or mixture.method != "zscore":
        what = "Constraints have" if mixture.constraints else f"The mixing '{mixture.method}' has"
        raise ConfigError(
            f"{what} no gradient here. Use a single reward or a mixture by z-scores, or the "
            "black-box search."
        )
    if engine.config.search.fidelity != FULL:
        raise ConfigError(
            f"Gradients are taken through images as in sampling; search.fidelity asks for "
            f"{engine.config.search.fidelity.label}. Leave it out, or use the black-box search."
        )
    if engine.residence is not None:
        raise ConfigError(
            "A gradient needs the pipeline and the rewards on the device together. Set "
            "rewards.offload to false, or use the black-box search."
        )
    if engine.space.factors:
        raise ConfigError(
            f"The {' and the '.join(engine.space.factors)} of the sampling have no gradient here. "
            "Set space.guidance and space.shift to false, or use the black-box search."
        )
    if engine.space.branches is not None:
        raise ConfigError(
            "Members of an ensemble start without weight and are not run, so they have no "
            "gradient. Set space.members to 1, or use the black-box search."
        )
    found = {name: engine.rewards.get(name) for name in mixture.names}
    lacking = [name for name, reward in found.items() if not _has_gradient(reward)]
    if lacking:
        raise ConfigError(
            f"Reward '{lacking[0]}' has no gradient: it does not score float images. Choose one "
            "that `calibri rewards list` shows as differentiable, or use the black-box search."
        )
    return {n: reward for n, reward in found.items() if isinstance(reward, DifferentiableReward)}


def _has_gradient(reward: Reward | None) -> bool:
    return isinstance(reward, DifferentiableReward) and reward.info.differentiable


class Gradients:
    """Gradients of rewards with respect to the flat vector, kept in the journal unit by unit.

    Args:
        engine: its pipeline samples; the weights of the pipeline no longer ask for gradients.
        evaluator: keeps what was computed.
        last_steps: steps of the sampler that carry a gradient, which bounds memory; None for all.

    Raises:
        ConfigError: the objective or the search space has no gradient, or there are fewer steps.
        UnsupportedModelError: the pipeline cannot be run with gradients.
    """

    def __init__(self, engine: Engine, evaluator: Evaluator, last_steps: int | None = None) -> None:
        self._rewards = check_gradient(engine, last_steps)
        self._jacobian = jacobian(engine.space, engine.scaler.sites)
        self._engine = engine
        self._evaluator = evaluator
        self._last_steps = last_steps
        self._rows_at_once = engine.config.sampling.batch_size
        for part in engine.pipe.components.values():
            if isinstance(part, nn.Module):
                part.requires_grad_(False)

    def __call__(
        self, phase: str, step: int, vector: Vector, noises: Sequence[Noise]
    ) -> dict[str, Slope]:
        """Differentiate the mean of every reward of the objective.

        Args:
            phase: part of the run, for the journal.
            step: number within the phase.
            vector: where, float64 (n,).
            noises: (prompt, seed) pairs to average over.

        Raises:
            RewardError: a score or a gradient is not finite, and the policy is not to drop the
                image or nothing would be left.
            RunError: one image alone does not fit into memory.
        """
        engine = self._engine
        coefficients = engine.space.coefficients(vector)
        steps = engine.config.sampling.num_inference_steps
        # All that decides a unit is in its digest, the steps that carry the gradient too.
        names = [f"{name}, {self._last_steps or steps} steps" for name in self._rewards]
        parts = cut([(0, noise) for noise in noises], engine.config.sampling.batch_size)
        records = []
        for index, part in enumerate(parts):
            unit = make_unit([coefficients], part, names, engine.sampler.full)
            compute = partial(self._compute, unit)
            records.append(self._evaluator.keep((phase, step, index), unit, compute))
        slopes = {name: _mean(name, records) for name in self._rewards}
        failed = np.isnan(next(iter(slopes.values())).scores)
        self._evaluator.dropped += int(failed.sum())
        return slopes

    def _compute(self, unit: Unit) -> dict[str, Any]:
        """Scores of every row and the sum of their gradients, by reward, as JSON."""
        values = self._differentiate(unit, unit.rows)
        failed = ~torch.stack([_is_finite(*value) for value in values.values()]).all(dim=0)
        if failed.any() and self._engine.config.rewards.on_failure != "drop":
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
                name: self._flat(gradient[~failed]) for name, (_, gradient) in values.items()
            },
        }

    def _flat(self, gradient: Tensor) -> list[float]:
        """From rows of scales to the flat vector, summed over the rows."""
        total = gradient.double().sum(dim=0).cpu().numpy()
        axes = list(range(total.ndim))
        flat = np.tensordot(self._jacobian, total, axes=([axis + 1 for axis in axes], axes))
        return [float(value) for value in flat]

    def _differentiate(self, unit: Unit, rows: Sequence[Row]) -> dict[str, Differentiated]:
        """Score rows and differentiate, fewer at once from now on when they do not fit."""
        size = min(self._rows_at_once, len(rows))
        batches = [rows[first : first + size] for first in range(0, len(rows), size)]
        try:
            parts = [self._batch(unit.candidates[0], batch) for batch in batches]
            return {name: _joined([part[name] for part in parts]) for name in self._rewards}
        except torch.OutOfMemoryError as error:
            if size == 1:
                raise RunError(
                    "The gradient of one image alone does not fit into the memory of the device. "
                    "Everything before this is kept. Set search.last_steps to fewer steps, lower "
                    "sampling.height and width, or free the device, and resume the run."
                ) from error
        # Outside the handler, whose traceback holds the tensors that did not fit.
        self._rows_at_once = size // 2
        torch.cuda.empty_cache()
        return self._differentiate(unit, rows)

    def _batch(self, coefficients: Coefficients, rows: Sequence[Row]) -> dict[str, Differentiated]:
        engine = self._engine
        table = torch.from_numpy(coefficients.site_scales(engine.scaler.sites)).float()
        scales = table.repeat(len(rows), *[1] * table.ndim).requires_grad_()
        engine.scaler.set(scales, coefficients.member_branches)
        images = engine.sampler.sample_with_gradient([n for _, n in rows], self._last_steps)
        # Scored as the bytes that are seen; rounding is passed over as if it were not there.
        pixels = ((images.detach() * 255).round() / 255).requires_grad_()
        texts = [noise.prompt.text for _, noise in rows]
        values = {}
        for name, reward in self._rewards.items():
            scores = mean_over_frames(reward.score_float)(pixels, texts)
            (direction,) = torch.autograd.grad(scores.sum(), pixels)
            (gradient,) = torch.autograd.grad(images, scales, direction, retain_graph=True)
            values[name] = (scores.detach().float(), gradient)
        return values


def _joined(parts: Sequence[Differentiated]) -> Differentiated:
    scores, gradients = zip(*parts, strict=True)
    return torch.cat(scores), torch.cat(gradients)


def _is_finite(scores: Tensor, gradients: Tensor) -> Tensor:
    return torch.isfinite(scores) & torch.isfinite(gradients).flatten(1).all(dim=1)


def _mean(name: str, records: Sequence[Mapping[str, Any]]) -> Slope:
    scores = np.concatenate([decode(record["scores"][name]) for record in records])
    count = int(np.isfinite(scores).sum())
    if not count:
        raise RewardError(
            f"Each of the {len(scores)} images of an update was dropped: the score of '{name}' or "
            "its gradient was not finite. Check the reward and the pipeline."
        )
    total = np.sum([record["gradients"][name] for record in records], axis=0)
    return Slope(scores, total / count)

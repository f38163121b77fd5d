"""Policy gradients of any reward with respect to the scales of a candidate (Flow-GRPO).

Images of a prompt are sampled with noise in every step. Scales under which the sampler had been
likelier to go the way of the better ones are better, whatever the reward is made of. Each batch is
sampled anew, so that the policy is the one that sampled it: the ratio of the published loss is 1,
its clipping never acts, and its gradient is that of the log-probability times the advantage.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from calibri.errors import NoMemoryError
from calibri.memory import Halving, is_out_of_memory
from calibri.sampling import Noise, Paths, Rollouts, Transition
from calibri.scoring.bench import Bench
from calibri.scoring.device_swap import PIPELINE, REWARDS
from calibri.scoring.measuring import check_finite
from calibri.scoring.pictures import Pictures, join_pictures
from calibri.scoring.plain_json import encode
from calibri.scoring.units import Result, Unit

_MOST = 5.0  # advantages beyond it count as this, as published
_LEAST_SPREAD = 1e-4


def advantages(rewards: Tensor, spread: Tensor | None = None) -> Tensor:
    """Say how much better images are than others of their prompt (Flow-GRPO, equation 4).

    Args:
        rewards: float (..., images of a prompt).
        spread: standard deviation that is the unit, such as that of all rewards, which published
            runs take; None for that of the images of each prompt.

    Returns:
        float32 in the same shape, from -5 to 5; 0 where all images are alike.
    """
    rewards = rewards.double()
    if spread is None:
        spread = rewards.std(dim=-1, correction=0, keepdim=True)
    centred = rewards - rewards.mean(dim=-1, keepdim=True)
    return (centred / (spread + _LEAST_SPREAD)).clamp(-_MOST, _MOST).float()


def policy_loss(log_probs: Tensor, before: Tensor, advantage: Tensor, clip_range: float) -> Tensor:
    """Clipped loss of a proximal policy (Flow-GRPO, equation 5): (N,).

    Args:
        log_probs: of a step now, (N,).
        before: when it was sampled, (N,).
        advantage: (N,).
        clip_range: how far the ratio of both policies counts.
    """
    ratio = (log_probs - before).exp()
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    return -torch.minimum(advantage * ratio, advantage * clipped)


class PolicyDifferentiator:
    """Computes units of policy gradients on one bench.

    Args:
        bench: its pipeline samples; the weights of the pipeline no longer ask for gradients.
    """

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._sampling = Halving(bench.config.sampling.batch_size)
        self._following = Halving(bench.config.sampling.batch_size)
        bench.freeze()

    @property
    def batch_size(self) -> int:
        """Images that are computed at once: as configured, or what has fitted into memory."""
        return self._following.size

    def run(self, units: Iterable[tuple[int, Unit]]) -> Iterator[tuple[int, Result]]:
        """Yield the index of a unit and its result, in the order of the units.

        A result holds the scores of every row, and the sum over rows of their policy gradients with
        respect to the scales, in the shape of ``Coefficients.site_scales``.

        Raises:
            RewardError: a score is not finite, and the policy is not to drop it.
            NoMemoryError: one image alone does not fit into memory.
        """
        for index, unit in units:
            try:
                yield index, self._result(unit)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                raise NoMemoryError(
                    "One step of one image with its gradient does not fit into the memory of the "
                    "device. Everything before this is kept. Lower sampling.height and width, or "
                    "free the device, and resume the run."
                ) from error

    def _result(self, unit: Unit) -> Result:
        assert unit.noise_level is not None
        rollouts = Rollouts(self._bench.sampler, unit.noise_level)
        self._use(PIPELINE)
        self._bench.scaler.apply_rows(unit.candidates[0], 1)
        pictures, paths = self._sampled(unit, rollouts)
        self._use(REWARDS)
        values = self._bench.measure(unit, unit.rows, pictures)
        if self._bench.config.rewards.on_failure != "drop":
            check_finite(values, unit.rows)
        self._use(PIPELINE)
        gradients = {
            name: self._gradient(unit, rollouts, paths, _advantages_of(unit, scores))
            for name, scores in values.items()
        }
        return {
            "scores": {name: encode(scores) for name, scores in values.items()},
            "gradients": {name: table.double().cpu().tolist() for name, table in gradients.items()},
        }

    def _use(self, what: str) -> None:
        if self._bench.swap is not None:
            self._bench.swap.use(what)

    def _sampled(self, unit: Unit, rollouts: Rollouts) -> tuple[Pictures, list[Paths]]:
        shift = unit.candidates[0].shift
        noises = [noise for _, noise in unit.rows]
        self._bench.sampler.prepare([noise.prompt for noise in noises])
        parts = [
            made
            for _, made in self._sampling.run(noises, lambda part: rollouts.sample(part, shift))
        ]
        pictures = join_pictures([Pictures(pixels, broken) for pixels, broken, _ in parts])
        return pictures, [paths.rows([i]) for *_, paths in parts for i in range(paths.count)]

    def _gradient(
        self, unit: Unit, rollouts: Rollouts, paths: Sequence[Paths], advantage: Tensor
    ) -> Tensor:
        rows = [(unit.rows[i][1], paths[i], float(advantage[i])) for i in range(len(unit.rows))]

        def compute(part: Sequence[tuple[Noise, Paths, float]]) -> Tensor:
            return self._followed(unit, rollouts, part)

        return torch.stack([made for _, made in self._following.run(rows, compute)]).sum(dim=0)

    def _followed(
        self, unit: Unit, rollouts: Rollouts, part: Sequence[tuple[Noise, Paths, float]]
    ) -> Tensor:
        """Sum the gradients of some rows, step by step."""
        noises, paths, weights = zip(*part, strict=True)
        whole, weight = Paths.joined(paths), torch.tensor(weights)
        candidate = unit.candidates[0]
        scales = self._bench.scaler.apply_rows(candidate, len(part), requires_grad=True)
        total = torch.zeros_like(scales)

        def told(index: int, step: Transition) -> None:
            likely = step.log_prob(whole.reached[index])
            gain = (likely * weight.to(likely.device)).sum() / (len(whole) - 1)
            # What all steps share, the way of the scales to the hooks, is kept; the step is not.
            (gradient,) = torch.autograd.grad(gain, scales, retain_graph=True)
            total.add_(gradient)

        rollouts.follow(noises, whole, told, candidate.shift)
        return total.sum(dim=0)


def _advantages_of(unit: Unit, scores: Tensor) -> Tensor:
    """Compare the images of each prompt; one that failed is compared with nothing."""
    found = torch.zeros(len(scores))
    places = range(len(unit.rows))
    for _, group in itertools.groupby(places, key=lambda place: unit.rows[place][1].prompt.id):
        kept = [place for place in group if bool(torch.isfinite(scores[place]))]
        if kept:
            found[kept] = advantages(scores[kept].cpu())
    return found

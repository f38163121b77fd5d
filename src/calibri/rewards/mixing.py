"""Several rewards as one objective.

A mixture is written ``"hpsv3:0.7,pickscore:0.3"``. Rewards have units of their own, so each is
measured in spreads of the uncalibrated model over the training prompts. Mean and spread are frozen
there: statistics that move with the search would change what is searched for.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from calibri.arrays import Scores
from calibri.config import RewardConfig, RunConfig
from calibri.errors import ConfigError, RewardError

Method = Literal["zscore", "rank", "min"]

# A constraint missed by a tenth of a spread outweighs a whole spread of objective.
PENALTY_PER_SPREAD = 10.0

# The name of a reward in a file has a colon of its own: PATH.py:NAME.
_PART = re.compile(r"(?P<name>[^:]*\.py:[A-Za-z_]\w*|[^:]*)(?::(?P<weight>.*))?", re.DOTALL)
_CONSTRAINT = re.compile(r"\s*(\S+)\s*>=\s*([0-9.eE+-]+)\s+of\s+baseline\s*")


@dataclass(frozen=True)
class Constraint:
    """A reward whose mean must stay at ``ratio`` times that of the original model, or above.

    Where the original's mean is negative, the same share of its size is allowed or asked for.
    """

    reward: str
    ratio: float

    def missed(self, tables: Mapping[str, Scores]) -> Scores:
        """By how much the mean of each row is below what is asked for, 0 where it is not: (rows,).

        Args:
            tables: reward to float64 (rows, noises); row 0 is the original model.
        """
        means = np.nanmean(tables[self.reward], axis=1)
        floor = means[0] + (self.ratio - 1) * abs(means[0])
        return np.asarray(np.maximum(0.0, floor - means))


@dataclass(frozen=True)
class Scale:
    """Mean and spread (standard deviation over images) of a reward for the original model."""

    mean: float
    spread: float


@dataclass(frozen=True)
class Mixture:
    """How the scores of several rewards become one.

    Attributes:
        weights: reward to its positive weight.
        method: ``"zscore"`` sums weighted z-scores; ``"rank"`` sums weighted ranks among the
            candidates, prompt by prompt; ``"min"`` takes for each candidate the reward whose
            weighted z-score is lowest on average.
        constraints: each costs ``PENALTY_PER_SPREAD`` times the spreads by which it is missed.
    """

    weights: Mapping[str, float]
    method: Method = "zscore"
    constraints: tuple[Constraint, ...] = ()

    @classmethod
    def of(cls, rewards: RewardConfig) -> Mixture:
        """Read the objective of a configuration; errors as of ``parse_mixture``."""
        return parse_mixture(rewards.objective, rewards.mixing, rewards.constraints)

    @property
    def names(self) -> tuple[str, ...]:
        """Everything that must be measured."""
        return tuple(dict.fromkeys((*self.weights, *(c.reward for c in self.constraints))))

    @property
    def is_plain(self) -> bool:
        """Whether it is a single reward in its own unit."""
        return len(self.weights) == 1 and self.method == "zscore" and not self.constraints

    def combine(self, tables: Mapping[str, Scores], scales: Mapping[str, Scale]) -> Scores:
        """Make one table of scores from one for each reward.

        Args:
            tables: reward to float64 (candidates, noises); row 0 is the original model; NaN in the
                columns of dropped noises.
            scales: reward to its frozen scale; not needed when ``is_plain``.

        Returns:
            float64 (candidates, noises); only means over noises are meaningful under a constraint
            or ``"min"``.
        """
        if self.is_plain:
            return tables[next(iter(self.weights))]
        change = _ranks if self.method == "rank" else _z_scores
        parts = np.stack(
            [weight * change(tables[name], scales[name]) for name, weight in self.weights.items()]
        )
        mixed = _lowest(parts) if self.method == "min" else parts.sum(axis=0)
        return np.asarray(mixed - self._penalty(tables, scales)[:, None])

    def _penalty(self, tables: Mapping[str, Scores], scales: Mapping[str, Scale]) -> Scores:
        count = len(next(iter(tables.values())))
        penalty = np.zeros(count)
        for constraint in self.constraints:
            missed = constraint.missed(tables) / scales[constraint.reward].spread
            penalty += PENALTY_PER_SPREAD * missed
        return penalty

    def derivatives(
        self, tables: Mapping[str, Scores], scales: Mapping[str, Scale]
    ) -> dict[str, float]:
        """How the mean objective of the last row changes with its mean of each reward.

        Where the lowest reward or a constraint decides, the decision is held.

        Args:
            tables: as of ``combine``; the first row is looked at for constraints alone.
            scales: the same.

        Raises:
            ConfigError: ranks have no derivative.
        """
        if self.method == "rank":
            raise ConfigError(
                "The mixing 'rank' has no gradient: ranks change in steps. Use zscore or min, or "
                "the black-box search."
            )
        if self.is_plain:
            return dict.fromkeys(self.weights, 1.0)
        last = {name: table[-1:] for name, table in tables.items()}
        found = dict.fromkeys(self.names, 0.0)
        for name in self._counted(last, scales):
            found[name] += self.weights[name] / scales[name].spread
        for constraint in self.constraints:
            if constraint.missed(tables)[-1] > 0:
                found[constraint.reward] += PENALTY_PER_SPREAD / scales[constraint.reward].spread
        return found

    def _counted(self, row: Mapping[str, Scores], scales: Mapping[str, Scale]) -> Sequence[str]:
        """Rewards that a row's objective depends on: all, or the one that is lowest."""
        if self.method != "min":
            return tuple(self.weights)

        def height(name: str) -> float:
            return self.weights[name] * float(np.nanmean(_z_scores(row[name], scales[name])))

        return (min(self.weights, key=height),)


def _z_scores(table: Scores, scale: Scale) -> Scores:
    return np.asarray((table - scale.mean) / scale.spread)


def _ranks(table: Scores, scale: Scale) -> Scores:
    """Share of the other candidates that are worse on the same noise; ties count half."""
    others = len(table) - 1
    below = (table[:, None] > table[None]).sum(axis=1)
    equal = (table[:, None] == table[None]).sum(axis=1) - 1
    return np.where(np.isfinite(table), (below + 0.5 * equal) / max(1, others), np.nan)


def _lowest(parts: Scores) -> Scores:
    worst = np.nanmean(parts, axis=2).argmin(axis=0)
    return np.asarray(parts[worst, np.arange(parts.shape[1])])


def scale_of(name: str, table: Scores) -> Scale:
    """Mean and spread of a reward over the images of the original model.

    Raises:
        RewardError: all scores are alike, so that the reward cannot be mixed or constrained.
    """
    scores = table[np.isfinite(table)]
    mean, spread = float(scores.mean()), float(scores.std())
    if not spread > 1e-9 * max(1.0, abs(mean)):
        raise RewardError(
            f"Reward '{name}' gives all {scores.size} images of the original model the score "
            f"{mean:g}, so it has no spread to be measured in. Leave it out of the mixture."
        )
    return Scale(mean, spread)


def used_rewards(config: RunConfig) -> tuple[str, ...]:
    """List what a run measures by name, the parts of its objective first."""
    return tuple(dict.fromkeys((*Mixture.of(config.rewards).names, *config.rewards.held_out)))


def parse_mixture(spec: str, method: Method = "zscore", constraints: Sequence[str] = ()) -> Mixture:
    """Read a mixture: ``"name"``, ``"name:weight,name:weight"``, and constraints.

    Raises:
        ConfigError: a part is malformed, a name occurs twice, or a weight is not positive.
    """
    weights: dict[str, float] = {}
    for name, text in split_mixture(spec):
        weight = 1.0 if text is None else _weight(text, f"{name}:{text}")
        if not name or name in weights:
            raise ConfigError(
                f"The objective '{spec}' has {'an empty name' if not name else f'{name!r} twice'}. "
                "Write for example hpsv3:0.7,pickscore:0.3."
            )
        weights[name] = weight
    return Mixture(weights, method, tuple(map(_constraint, constraints)))


def split_mixture(spec: str) -> list[tuple[str, str | None]]:
    """Split a mixture into names and the texts of their weights, None where there is none."""
    parts = (_PART.fullmatch(part.strip()) for part in spec.split(","))
    return [(m["name"].strip(), m["weight"]) for m in parts if m]


def constrained_name(text: str) -> str:
    """Name the reward of a constraint; empty where the constraint cannot be read."""
    match = _CONSTRAINT.fullmatch(text)
    return match[1] if match else ""


def _weight(text: str, part: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not (weight > 0 and math.isfinite(weight)):
        raise ConfigError(
            f"'{part.strip()}' has no positive weight after the colon. Write for example hpsv3:0.7."
        )
    return weight


def _constraint(text: str) -> Constraint:
    match = _CONSTRAINT.fullmatch(text)
    ratio = _number(match[2]) if match else math.nan
    if match is None or not math.isfinite(ratio):
        raise ConfigError(
            f"Cannot read the constraint '{text}'. Write for example 'diversity >= 0.95 of "
            "baseline'."
        )
    return Constraint(match[1], ratio)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan

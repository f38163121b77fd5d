"""Conditions on shared prompts and noise, and what was measured of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from calibri.arrays import Scores
from calibri.coefficients import Coefficients
from calibri.errors import RewardError
from calibri.progress import Progress
from calibri.results import FULL, Fidelity, Figure
from calibri.runs import Session
from calibri.scoring import Evaluator
from calibri.seeds import derive_seed
from calibri.statistics import bootstrap_mean


@dataclass(frozen=True)
class Condition:
    """One way of sampling.

    Attributes:
        label: names it, unlike all others.
        coefficients: what it is sampled with.
        fidelity: what differs from ``sampling``.
    """

    label: str
    coefficients: Coefficients
    fidelity: Fidelity = FULL


def with_scale(coefficients: Coefficients, name: str, value: float) -> Coefficients:
    """Set one coefficient, for all members and at every knot: 0 bypasses its branches."""
    scales = tuple({**knot, name: value} for knot in coefficients.scales)
    return coefficients.model_copy(update={"scales": scales})


@dataclass(frozen=True)
class Measured:
    """Scores of all conditions, on the same prompts and noise.

    Attributes:
        labels: of the conditions.
        scores: reward name to the mean score of each prompt, float64 (conditions, prompts). Prompts
            of which an image could not be scored under any condition are left out.
        objective: name of the reward that decides.
        seed: of the run.
    """

    labels: tuple[str, ...]
    scores: Mapping[str, Scores]
    objective: str
    seed: int

    def differences(self, label: str, base: str, reward: str | None = None) -> Scores:
        """Score of one condition minus that of another, prompt by prompt: float64 (prompts,)."""
        table = self.scores[reward or self.objective]
        return np.asarray(table[self.labels.index(label)] - table[self.labels.index(base)])

    def difference(self, label: str, base: str, reward: str | None = None) -> Figure:
        """Mean of ``differences`` with its interval."""
        return self.figure(self.differences(label, base, reward))

    def figure(self, by_prompt: Scores) -> Figure:
        """Mean over prompts with its 95% interval."""
        return bootstrap_mean(by_prompt, derive_seed(self.seed, "experiment"))


def measure(
    session: Session, evaluator: Evaluator, conditions: Sequence[Condition], progress: Progress
) -> Measured:
    """Score every condition on the test prompts of a session.

    Args:
        session: the model, its rewards and prompts.
        evaluator: samples, and keeps what was scored.
        conditions: with labels of their own.
        progress: is told what happens.

    Raises:
        RewardError: fewer than two prompts could be scored.
    """
    prompts, count = session.prompts.test, session.config.evaluation.images_per_prompt
    noises = session.noises("experiment", 0, prompts, count)
    rewards = list(session.bench.measures.rewards)
    progress.phase("conditions", len(conditions) * len(noises))
    found: dict[str, list[Scores]] = {name: [] for name in rewards}
    labels: list[str] = []
    for step, fidelity in enumerate(dict.fromkeys(c.fidelity for c in conditions)):
        own = [c for c in conditions if c.fidelity == fidelity]
        labels += [c.label for c in own]
        candidates = [c.coefficients for c in own]
        tables = evaluator.score("conditions", step, candidates, noises, rewards, fidelity)
        for name, table in tables.items():
            found[name].append(table)
    joined = {name: np.concatenate(tables) for name, tables in found.items()}
    return Measured(
        tuple(labels),
        _by_prompt(joined, len(prompts), count),
        session.config.rewards.objective,
        session.config.seed,
    )


def _by_prompt(tables: Mapping[str, Scores], prompts: int, count: int) -> dict[str, Scores]:
    """Average the images of each prompt, and leave out prompts that were not scored throughout."""
    means = {name: t.reshape(len(t), prompts, count).mean(axis=2) for name, t in tables.items()}
    kept = np.all([np.isfinite(table).all(axis=0) for table in means.values()], axis=0)
    if kept.sum() < 2:
        raise RewardError(
            f"{int(kept.sum())} of {prompts} prompts could be scored under every condition; "
            "intervals need at least 2. Check the reward and the pipeline."
        )
    return {name: table[:, kept] for name, table in means.items()}

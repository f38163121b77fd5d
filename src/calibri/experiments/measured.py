"""Conditions on shared prompts and noise, and what was measured of them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from calibri.arrays import Scores
from calibri.coefficients import Coefficients
from calibri.errors import ConfigError, RewardError
from calibri.progress import Progress
from calibri.results import DIVERSITY, FEATURES, FULL, Fidelity, Figure
from calibri.runs import Journal, Session, open_journal
from calibri.scoring import Evaluator, Ledger, feature_diversity
from calibri.seeds import derive_seed
from calibri.statistics import bootstrap_mean

ORIGINAL = "original"
"""Label of the model as it was trained."""


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


def check_several(session: Session) -> None:
    """Refuse to look at the parts of a network that has only one.

    Raises:
        ConfigError: there is one coefficient at the granularity.
    """
    if len(session.space.names) < 2:
        unit = session.config.space.granularity
        raise ConfigError(
            f"This pipeline has one {unit}, '{session.space.names[0]}', so there is nothing to "
            "compare it with. Choose a finer --granularity, or another pipeline."
        )


class Place(NamedTuple):
    """Where an experiment keeps what it computes, and who is told.

    Attributes:
        path: a folder.
        again: the command that goes on with it.
    """

    path: Path
    again: str
    progress: Progress


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


def _alike(condition: Condition) -> Hashable:
    """What conditions have in common that can be sampled in one batch."""
    c = condition.coefficients
    shape = (c.granularity, len(c.scales), c.knots, c.output_knots, c.branches, c.start_weights)
    return condition.fidelity, shape


def measure(
    session: Session,
    evaluator: Evaluator,
    conditions: Sequence[Condition],
    progress: Progress,
    *,
    with_diversity: bool = False,
) -> Measured:
    """Score every condition on the test prompts of a session.

    Args:
        session: the model, its rewards and prompts.
        evaluator: samples, and keeps what was scored.
        conditions: with labels of their own.
        progress: is told what happens.
        with_diversity: measure how much the images of a prompt differ, too.

    Raises:
        RewardError: fewer than two prompts could be scored.
    """
    prompts, count = session.prompts.test, session.config.evaluation.images_per_prompt
    noises = session.noises("experiment", 0, prompts, count)
    rewards = list(session.bench.measures.rewards)
    if with_diversity:
        rewards.append(DIVERSITY if session.bench.measures.feature_reward is None else FEATURES)
    progress.phase("conditions", len(conditions) * len(noises))
    found: dict[str, list[Scores]] = {name: [] for name in rewards}
    labels: list[str] = []
    for step, kind in enumerate(dict.fromkeys(map(_alike, conditions))):
        own = [c for c in conditions if _alike(c) == kind]
        labels += [c.label for c in own]
        candidates = [c.coefficients for c in own]
        tables = evaluator.score("conditions", step, candidates, noises, rewards, own[0].fidelity)
        for name, table in tables.items():
            found[name].append(table)
    joined = {name: np.concatenate(tables) for name, tables in found.items()}
    if FEATURES in joined:
        joined[DIVERSITY] = _distances(joined.pop(FEATURES), count)
    return Measured(
        tuple(labels),
        _by_prompt(joined, len(prompts), count),
        session.config.rewards.objective,
        session.config.seed,
    )


class Scored(NamedTuple):
    """What was measured, and what it took.

    Attributes:
        measured: of all conditions.
        images: sampled for it.
        seconds: of computing, interruptions excluded.
    """

    measured: Measured
    images: int
    seconds: float


def scored(
    session: Session,
    conditions: Sequence[Condition],
    place: Place,
    *,
    with_diversity: bool = False,
) -> Scored:
    """Score conditions, and keep every score in a journal; what is there already is not sampled.

    Args:
        session: see ``measure``, as for conditions and diversity.
        conditions: with labels of their own.
        place: of the journal.
        with_diversity: measure how much the images of a prompt differ, too.

    Raises:
        RewardError: fewer than two prompts could be scored.
        RunError: the journal is damaged, or of other settings.
    """
    count = session.config.evaluation.images_per_prompt
    images = len(conditions) * len(session.prompts.test) * count
    progress = place.progress
    with Journal.open(place.path / "journal.jsonl", place.again) as journal:
        open_journal(journal, session.config, progress)
        with session.evaluator(Ledger(journal), progress, images) as evaluator:
            found = measure(session, evaluator, conditions, progress, with_diversity=with_diversity)
            return Scored(found, evaluator.images, evaluator.seconds)


def _distances(features: Scores, count: int) -> Scores:
    """Distance of the images of each prompt in features (conditions, noises, D), for each image."""
    rows = [feature_diversity(row.reshape(-1, count, row.shape[-1])) for row in features]
    return np.repeat(np.stack(rows), count, axis=1)


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

"""What a search is told by Flow-GRPO: the policy gradient at its mean, over groups of images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from calibri.arrays import Vector
from calibri.config import SearchConfig
from calibri.errors import ConfigError
from calibri.results import FULL
from calibri.runs.feedback import Compared, Feedback, Objective
from calibri.runs.gradients import mean_gradient
from calibri.runs.session import Session
from calibri.sampling import Noise, Rollouts
from calibri.scoring import Evaluator
from calibri.seeds import derive_seed


def check_policy_search(session: Session) -> None:
    """Refuse what Flow-GRPO cannot search, before any work.

    Raises:
        ConfigError: the objective is a mixture, a factor on the sampling is searched, the images of
            a prompt are too few or do not fit into a batch, or there is one step only.
        UnsupportedModelError: the steps of the sampler cannot be random.
    """
    config = session.config
    search, group = config.search, config.search.population(session.space.size)
    Rollouts(session.bench.sampler, search.noise_level)
    if not session.mixture.is_plain or session.mixture.constraints:
        raise ConfigError(
            "The policy gradient is of one reward, and the objective "
            f"'{config.rewards.objective}' is a mixture or has constraints. Name one reward, or "
            "use another search."
        )
    if session.space.factors:
        raise ConfigError(
            f"The policy gradient says nothing of a factor on the {session.space.factors[0]}. Set "
            "space.guidance and space.shift to false, or use another search."
        )
    if not 2 <= group <= config.sampling.batch_size:
        raise ConfigError(
            f"The {group} images of a prompt are compared in one batch, and sampling.batch_size is "
            f"{config.sampling.batch_size}. Set search.popsize to 2 or more and at most that."
        )
    if search.fidelity != FULL:
        raise ConfigError(
            "The policy is the sampler as in sampling; search.fidelity asks for "
            f"{search.fidelity.label}. Leave it out."
        )


class Policy:
    """Samples groups of images at a candidate, and says which way the better ones lie.

    Args:
        session: what is searched.
        evaluator: has units computed and keeps what comes of it.
        objective: scores the original beside them.
        config: how to search.

    Raises:
        ConfigError: Flow-GRPO cannot search that.
        UnsupportedModelError: the steps of the sampler cannot be random.
    """

    def __init__(
        self,
        session: Session,
        evaluator: Evaluator,
        objective: Objective,
        config: SearchConfig,
    ) -> None:
        check_policy_search(session)
        self._session = session
        self._evaluator = evaluator
        self._objective = objective
        self._config = config
        self._group = config.population(session.space.size)

    def __call__(
        self, number: int, candidates: Sequence[Vector], noises: Sequence[Noise]
    ) -> Feedback:
        """Tell the gradient at the one candidate; the mean of its images is below what it would be
        without noise in the steps, with which the original is sampled.

        Raises:
            RewardError: a score is not finite, or all images of an update were dropped.
            NoMemoryError: one image alone does not fit into memory.
        """
        (vector,) = candidates
        (name,) = self._session.objective
        records = self._evaluator.explore(
            "policy",
            number,
            self._session.space.coefficients(vector),
            [one for noise in noises for one in self._images_of(noise)],
            name,
            self._config.noise_level,
        )
        scores, gradient = mean_gradient(self._session, name, records)
        self._evaluator.dropped += int(np.isnan(scores).sum())

        def compare() -> Compared:
            start = self._session.space.start
            original = self._objective.means(
                self._objective.tables("search", number, [start], noises)
            )
            mean = float(np.nanmean(scores))
            return Compared(np.array([original[0], mean]), mean)

        return Feedback(gradient[None], compare)

    def expect(self, number: int, candidates: Sequence[Vector], noises: Sequence[Noise]) -> None:
        """Begin nothing: the images of one candidate are a few units."""

    def _images_of(self, noise: Noise) -> list[Noise]:
        seeds = (derive_seed(noise.seed, "image", index) for index in range(self._group))
        return [Noise(noise.prompt, seed) for seed in seeds]

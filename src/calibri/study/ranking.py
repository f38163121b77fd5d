"""Bradley-Terry strengths of more than two conditions, by evalica."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibri.results import Record
from calibri.seeds import derive_seed
from calibri.study.extra import of_the_extra
from calibri.study.preference import Ballot

_RESAMPLES = 400
_PRIOR = 1.0  # ties that every two conditions begin with: strengths stay finite


class Rank(Record):
    """One condition.

    Attributes:
        strength: log of its Bradley-Terry score; those of all conditions sum to 0. A difference of
            log 3 means that three in four votes are for the stronger.
        low: of the 95% interval.
        high: of the 95% interval.
    """

    condition: str
    strength: float
    low: float
    high: float


def ranking(
    conditions: Sequence[str], compared: Sequence[tuple[str, str]], ballot: Ballot, seed: int
) -> tuple[Rank, ...]:
    """Rank conditions, the strongest first.

    Intervals are percentiles of a bootstrap that draws participants and prompts, both with
    replacement, and keeps the votes that they share (Owen, *Annals of Applied Statistics* 1, 2007):
    it is never too narrow for crossed clusters, and too wide where votes are nearly independent.

    Args:
        conditions: all of them.
        compared: the two that each vote is about, in the order of the ballot.
        ballot: 1 for the second, 0 for the first.
        seed: of the bootstrap.

    Raises:
        StudyError: evalica is missing.
    """
    evalica = of_the_extra("evalica", "Ranking more than two conditions")
    tallies = _Tallies(evalica, conditions, compared, ballot)
    strengths = tallies.strengths(np.ones(ballot.values.size))
    rng = np.random.default_rng(derive_seed(seed, "study", "ranking"))
    drawn = np.array([tallies.strengths(_weights(ballot, rng)) for _ in range(_RESAMPLES)])
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    ranks = [
        Rank(condition=name, strength=float(s), low=float(a), high=float(b))
        for name, s, a, b in zip(conditions, strengths, low, high, strict=True)
    ]
    return tuple(sorted(ranks, key=lambda rank: -rank.strength))


def _weights(ballot: Ballot, rng: np.random.Generator) -> NDArray[np.float64]:
    result = np.ones(ballot.values.size)
    for cluster in (ballot.participants, ballot.prompts):
        _, codes = np.unique(cluster, return_inverse=True)
        size = int(codes.max()) + 1
        result *= np.bincount(rng.integers(size, size=size), minlength=size)[codes]
    return result


class _Tallies:
    """Votes summed by the two that are compared and by who won."""

    def __init__(
        self,
        evalica: Any,
        conditions: Sequence[str],
        compared: Sequence[tuple[str, str]],
        ballot: Ballot,
    ) -> None:
        self._evalica, self._conditions = evalica, list(conditions)
        winner = evalica.Winner
        kinds = {0.0: winner.X, 0.5: winner.Draw, 1.0: winner.Y}
        twos = list(itertools.combinations(conditions, 2))
        self._rows = [(a, b, kind) for a, b in twos for kind in kinds.values()]
        places = {(two, v): i for i, (two, v) in enumerate(itertools.product(twos, kinds))}
        values = ballot.values.tolist()
        self._of_vote = [places[key] for key in zip(compared, values, strict=True)]
        self._prior = np.array([_PRIOR * (kind == winner.Draw) for *_, kind in self._rows])

    def strengths(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Log scores, shape (conditions,), with a weight for each vote."""
        sums = np.bincount(self._of_vote, weights, minlength=len(self._rows)) + self._prior
        first, second, winners = map(list, zip(*self._rows, strict=True))
        found = self._evalica.bradley_terry(first, second, winners, weights=sums, limit=1000)
        scores = np.log(found.scores.loc[self._conditions].to_numpy(dtype=np.float64))
        result: NDArray[np.float64] = scores - scores.mean()
        return result

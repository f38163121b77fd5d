"""The search loop: ask, score, tell; and its vectors validated on the way (spec section 3)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from calibri.arrays import Vector
from calibri.config import SearchConfig
from calibri.planning import images_beside, updates_per_generation
from calibri.progress import Progress
from calibri.prompts import Buckets
from calibri.results import Generation, SearchResult
from calibri.rewards import Scale
from calibri.runs.basis import make_search, share_shifts
from calibri.runs.checkpoints import Checkpoints
from calibri.runs.feedback import Compared, Feedback, Judge, Objective, Race, Slopes
from calibri.runs.gradients import Gradients
from calibri.runs.policy import Policy
from calibri.runs.session import Session
from calibri.sampling import Noise
from calibri.scoring import Evaluator
from calibri.search import MethodInfo, bucket_size


@dataclass(frozen=True)
class Step:
    """A search after one of its generations.

    Attributes:
        vector: what it would return now, before any validation, float64 (n,).
        generation: its record.
    """

    vector: Vector
    generation: Generation

    @property
    def images(self) -> int:
        """Images that the search has taken so far."""
        return self.generation.images


class _Begun(NamedTuple):
    """An update that has candidates and a bucket, and no scores yet."""

    candidates: list[Vector]
    noises: list[Noise]


class SearchLoop(Iterator[Step]):
    """One search, generation by generation, until its budget is used up.

    Every generation takes the candidates that the method asks for, scores or differentiates them on
    prompts of the training set, and tells the method. Nothing is validated. Everything that is
    scored goes through the evaluator, so that a search with the same journal repeats bit for bit.

    Args:
        session: what is searched, where from and on which prompts.
        evaluator: scores candidates and keeps the scores.
        progress: is told of every generation.
        config: how to search, when it is not the session's.
        method: None for the configured one.
        basis: columns are the first steps, float64 (n, n); None for the method's.

    Attributes:
        generations: records of the generations so far.

    Raises:
        ConfigError: the method needs gradients, and the objective or the search space has none.
        UnsupportedModelError: the pipeline cannot be run with gradients.
    """

    def __init__(
        self,
        session: Session,
        evaluator: Evaluator,
        progress: Progress,
        config: SearchConfig | None = None,
        *,
        method: MethodInfo | None = None,
        basis: NDArray[np.float64] | None = None,
    ) -> None:
        self._session = session
        self._evaluator = evaluator
        self._progress = progress
        self._config = config or session.config.search
        info = method or self._config.method_info
        self._buckets = Buckets(session.prompts.train, session.config.seed)
        self._objective = Objective(session, evaluator, self._config)
        self._judge = self._make_judge(info)
        own = session.config.model_copy(update={"search": self._config})
        self._method = make_search(session.space, own, session.start, method=info, basis=basis)
        beside = images_beside(session.config)
        self._updates = updates_per_generation(self._config, session.space.size, info, beside)
        self._begun: _Begun | None = None
        self.generations: list[Generation] = []

    def _make_judge(self, info: MethodInfo) -> Judge:
        original = self._session.space.start
        if info.by_policy:
            return Policy(self._session, self._evaluator, self._objective, self._config)
        if not info.uses_gradients:
            return Race(self._objective, original, self._config)
        gradients = Gradients(self._session, self._evaluator, self._config.last_steps)
        return Slopes(self._objective, original, gradients)

    @property
    def scales(self) -> dict[str, Scale]:
        """Mean and spread of each reward of a mixture, measured before the first generation."""
        return self._objective.scales

    @property
    def is_finished(self) -> bool:
        """Whether the budget is used up."""
        return len(self.generations) >= self._config.generations

    def __next__(self) -> Step:
        """Run one generation."""
        if self.is_finished:
            raise StopIteration
        _ = self.scales  # the first images of a search
        done = len(self.generations)
        for number in range(done * self._updates, (done + 1) * self._updates):
            feedback = self._update(number)
        generation = self._record(feedback.compare())
        return Step(self._method.result(), generation)

    def expect(self) -> None:
        """Have the next generation begun by workers that would idle; its results wait for it."""
        if not self.is_finished:
            number = len(self.generations) * self._updates
            self._begun = self._begin(number)
            self._judge.expect(number, *self._begun)

    def _begin(self, number: int) -> _Begun:
        asked = share_shifts(self._session.space, self._method.ask())
        candidates = self._evaluator.pin("search", number, asked)
        return _Begun(candidates, self._bucket(number))

    def _update(self, number: int) -> Feedback:
        candidates, noises = self._begun or self._begin(number)
        self._begun = None
        feedback = self._judge(number, candidates, noises)
        self._method.tell(candidates, feedback.told)
        return feedback

    def _bucket(self, number: int) -> list[Noise]:
        """Draw prompts of the training set, as many as this generation's bucket has."""
        session, config = self._session, self._config
        last = config.final_bucket_size
        size = bucket_size(config.bucket_size, last, len(self.generations), config.generations)
        prompts = self._buckets.draw(size)
        return session.noises("search", number, prompts, config.images_per_prompt)

    def _record(self, compared: Compared) -> Generation:
        generation = Generation(
            generation=len(self.generations),
            mean=float(compared.scores[1:].mean()),
            best=compared.best,
            baseline=float(compared.scores[0]),
            sigma=self._method.sigma,
            images=self._evaluator.images,
            seconds=self._evaluator.seconds,
        )
        self.generations.append(generation)
        self._progress.generation(generation)
        return generation


class ValidatedSearch:
    """A search whose vectors are validated on the way, and the choice among them.

    Iterating runs it: every generation is given after its checkpoint, if it has one, until the
    budget, a plateau or the guard ends the search.

    Args:
        session: what is searched.
        evaluator: scores candidates and keeps the scores.
        progress: is told of every generation and checkpoint.
        config: how to search, when it is not the session's.
        method: None for the configured one.
        basis: columns are the first steps, float64 (n, n); None for the method's.

    Raises:
        ConfigError: the method needs gradients, and the objective or the search space has none.
        UnsupportedModelError: the pipeline cannot be run with gradients.
    """

    def __init__(
        self,
        session: Session,
        evaluator: Evaluator,
        progress: Progress,
        config: SearchConfig | None = None,
        *,
        method: MethodInfo | None = None,
        basis: NDArray[np.float64] | None = None,
    ) -> None:
        self._space = session.space
        self._evaluator = evaluator
        self._config = config or session.config.search
        self._loop = SearchLoop(
            session, evaluator, progress, self._config, method=method, basis=basis
        )
        self._checkpoints = Checkpoints(session, evaluator, progress)
        self._stopped = ""

    def __iter__(self) -> Iterator[Step]:
        """Go on with the search."""
        self._checkpoints.expect()
        while not self._stopped:
            step = next(self._loop)
            if self._loop.is_finished:
                self._stopped = f"the budget of {self._config.generations} generations is used up"
            done = len(self._loop.generations)
            if self._stopped or done % self._config.validate_every == 0:
                (vector,) = self._evaluator.pin("validation", done, [step.vector])
                self._loop.expect()  # a checkpoint is computed beside the next generation
                self._checkpoints.add(vector, done, self._loop.scales)
                self._stopped = self._stopped or self._checkpoints.stop_reason
            yield step

    def run(self) -> tuple[Vector, SearchResult]:
        """Search to the end and choose.

        Returns:
            The chosen flat vector and the record of the search.
        """
        for _ in self:
            pass
        return self.result()

    def result(self) -> tuple[Vector, SearchResult]:
        """Choose the vector to return, once there is a checkpoint.

        Returns:
            The chosen flat vector and the record of the search.

        Raises:
            RewardError: fewer than two prompts were dropped at no checkpoint.
        """
        vector, checkpoints = self._checkpoints.choose()
        return vector, SearchResult(
            coefficients=dict(self._space.named(vector)),
            generations=self._loop.generations,
            checkpoints=checkpoints,
            stopped=self._stopped,
            images=self._evaluator.images,
            seconds=self._evaluator.seconds,
            dropped=self._evaluator.dropped,
            batch_size=self._evaluator.batch_size,
        )

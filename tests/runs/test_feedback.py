"""How a generation is scored: a race on the first prompts, the rest for those that stay."""

import numpy as np
import pytest

from calibri.config import load_config
from calibri.errors import NothingScoredError
from calibri.progress import Progress
from calibri.results import FULL
from calibri.runs.loop import SearchLoop
from calibri.runs.session import Session
from calibri.search.method import MethodInfo
from calibri.search.methods.random import RandomSearch

POPSIZE, FIRST, BUCKET = 8, 2, 8


@pytest.fixture(scope="module")
def session():
    values = {
        "device": "cpu",
        "space.granularity": "block",
        "search.popsize": POPSIZE,
        "search.bucket_size": BUCKET,
        "search.bucket_growth": 1,
        "search.num_validation_prompts": 5,
        "evaluation.num_prompts": 4,
        "rewards.held_out": (),
    }
    return Session(load_config(values=values))


class Recorded:
    """Scores by a table: one row for each different candidate, one column for each prompt."""

    def __init__(self, table):
        self.table, self.calls = table, []
        self.images, self.seconds, self.dropped = 0, 0.0, 0
        self._rows, self._columns = {}, {}

    def pin(self, name, step, vectors):
        return vectors

    def score(self, phase, step, candidates, noises, measures, fidelity=FULL):
        rows = [self._rows.setdefault(repr(c), len(self._rows)) for c in candidates]
        columns = [self._columns.setdefault(n, len(self._columns)) for n in noises]
        self.calls.append((phase, step, rows, columns))
        if np.isnan(self.table[:, columns]).all():
            raise NothingScoredError("nothing")
        return {name: self.table[np.ix_(rows, columns)] for name in measures}


class Listening(RandomSearch):
    """A method that keeps what it is told."""

    def __init__(self, setup, told):
        super().__init__(setup)
        self.told = told

    def tell(self, candidates, scores, /):
        super().tell(candidates, scores)
        self.told.append(scores)


def raced(session, keep=0.5, seed=0, dropped=()):
    """One generation: the table, the calls of the evaluator, what was told, and the record."""
    table = np.random.default_rng(seed).normal(size=(POPSIZE + 1, BUCKET))
    table[:, list(dropped)] = np.nan
    evaluator, told = Recorded(table), []
    method = MethodInfo("listening", lambda setup: Listening(setup, told))
    config = session.config.search.model_copy(update={"race_keep": keep})
    step = next(SearchLoop(session, evaluator, Progress(), config, method=method))
    return table, evaluator.calls, told[0], step.generation


def assert_compared(generation, told, table):
    """The record compares the original, the first row, with the candidates in the others."""
    assert generation.baseline == pytest.approx(table[0].mean())
    assert generation.mean == pytest.approx(table[1:].mean())
    assert generation.best == told.max()


@pytest.mark.parametrize("seed", range(5))
def test_the_better_half_on_the_first_prompts_is_scored_on_the_others(session, seed):
    table, calls, told, generation = raced(session, seed=seed)
    first = table[1:, :FIRST].mean(axis=1)
    kept = sorted(np.argsort(-first)[: POPSIZE // 2])
    assert calls == [
        ("search", 0, list(range(POPSIZE + 1)), list(range(FIRST))),
        ("race", 0, [0, *(k + 1 for k in kept)], list(range(FIRST, BUCKET))),
    ]
    np.testing.assert_allclose(told[kept], table[1:][kept].mean(axis=1))
    lost = sorted(set(range(POPSIZE)) - set(kept))
    assert max(told[lost]) <= min(told[kept])
    assert list(np.argsort(told[lost])) == list(np.argsort(first[lost]))
    # Compared with the original on prompts that had no part in who stayed.
    assert_compared(generation, told, table[[0, *(k + 1 for k in kept)], FIRST:])


def test_without_a_race_everything_is_scored_at_once(session):
    table, calls, told, generation = raced(session, keep=1.0)
    assert [call[0] for call in calls] == ["search"]
    np.testing.assert_allclose(told, table[1:].mean(axis=1))
    assert_compared(generation, told, table)


def test_when_the_first_prompts_were_dropped_the_others_score_all(session):
    table, calls, told, generation = raced(session, dropped=range(FIRST))
    assert calls[1] == ("race", 0, list(range(POPSIZE + 1)), list(range(FIRST, BUCKET)))
    np.testing.assert_allclose(told, table[1:, FIRST:].mean(axis=1))
    assert_compared(generation, told, table[:, FIRST:])


def test_when_the_other_prompts_were_dropped_the_first_decide(session):
    table, _, told, generation = raced(session, dropped=range(FIRST, BUCKET))
    np.testing.assert_allclose(told, table[1:, :FIRST].mean(axis=1))
    assert_compared(generation, told, table[:, :FIRST])


def test_when_all_prompts_were_dropped_the_search_stops(session):
    for keep in (0.5, 1.0):
        with pytest.raises(NothingScoredError):
            raced(session, keep=keep, dropped=range(BUCKET))

"""Checkpoints of a search: when they end it, and which of them is returned."""

import numpy as np
import pytest

from calibri.config import load_config
from calibri.errors import RewardError
from calibri.progress import Progress
from calibri.runs.checkpoints import Checkpoints
from calibri.runs.session import Session

PROMPTS = 40
FEATURES = 64  # of the judge's image tower


@pytest.fixture(scope="module")
def session():
    values = {
        "device": "cpu",
        "space.granularity": "block",
        "search.num_validation_prompts": PROMPTS,
        "search.plateau": 4,
        "evaluation.num_prompts": 4,
    }
    return Session(load_config(values=values))


class Told:
    """Gains of every vector over the original, which scores 0 but for the noise of a prompt.

    The prompts in ``missing`` are dropped at all steps, those in ``lost`` at the step they are for.
    """

    def __init__(self, gains, judged=0.0, missing=(), spread=0.1, lost=()):
        self.gains, self.judged = [0.0, *gains], judged
        self.missing, self.lost = [*missing], dict(lost)
        self.noise = np.random.default_rng(0).normal(size=(len(self.gains), PROMPTS)) * spread

    def expect(self, asked):
        pass

    def score(self, phase, step, candidates, noises, measures, fidelity):
        if phase == "diversity":
            return {name: np.ones((1, len(noises), FEATURES)) for name in measures}
        scores = self.gains[step] + self.noise[step][None]
        missing = [*self.missing, *self.lost.get(step, ())]
        scores[:, missing] = np.nan
        judge = np.full_like(scores, self.judged * (step > 0))
        judge[:, missing] = np.nan
        found = {"shapes-judge": judge, "features": np.ones((1, PROMPTS, FEATURES))}
        return {name: found.get(name, scores) for name in measures}


def added(session, told):
    checkpoints = Checkpoints(session, told, Progress())
    for step in range(1, len(told.gains)):
        checkpoints.add(session.space.start + step, step, {})
    return checkpoints


@pytest.mark.parametrize(
    ("gains", "chosen"), [([0.1, 0.5, 0.2], 2), ([0.2, 0.5, 0.51], 3), ([0.0, -0.3, 0.0], None)]
)
def test_what_is_surely_better_than_the_original_is_returned_or_else_the_original(
    session, gains, chosen
):
    vector, listed = added(session, Told(gains)).choose()
    np.testing.assert_array_equal(vector, session.space.start + (chosen or 0))
    assert [c.chosen for c in listed] == [i == chosen for i in range(1, len(gains) + 1)]


def test_a_vetoed_checkpoint_is_never_returned(session):
    vector, listed = added(session, Told([0.3, 0.5], judged=-0.2)).choose()
    np.testing.assert_array_equal(vector, session.space.start)
    assert [c.vetoed_by for c in listed] == [["shapes-judge"]] * 2


def test_prompts_that_were_dropped_once_are_left_out_of_the_choice(session):
    told = Told([0.3, 0.5], missing=[3, 4])
    vector, listed = added(session, told).choose()
    np.testing.assert_array_equal(vector, session.space.start + 2)
    kept = np.delete(told.noise, [3, 4], axis=1)
    assert listed[1].difference.mean == pytest.approx(0.5 + (kept[2] - kept[0]).mean())
    with pytest.raises(RewardError, match="1 of 40 prompts are left"):
        added(session, Told([0.3], missing=range(PROMPTS - 1)))


def test_too_few_prompts_that_no_checkpoint_dropped_are_refused_in_words(session):
    checkpoints = added(session, Told([0.3, 0.5], lost={1: range(20), 2: range(19, PROMPTS)}))
    with pytest.raises(RewardError, match="0 of 40 validation prompts .* all 2 checkpoints"):
        checkpoints.choose()


def test_a_flat_reward_ends_the_search_and_a_rising_one_does_not(session):
    flat = added(session, Told([0.5] * 8, spread=0.01))
    assert flat.stop_reason == "the reward has reached its plateau"
    assert added(session, Told([0.5] * 7, spread=0.01)).stop_reason == ""
    assert added(session, Told([0.1 * i for i in range(8)], spread=0.01)).stop_reason == ""

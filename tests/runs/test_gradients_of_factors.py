"""Slopes along the guidance that a model embeds and along the shift, on a tiny FLUX."""

from __future__ import annotations

import numpy as np
import pytest

from calibri.planning import images_beside
from calibri.progress import Progress
from calibri.rewards.reward import BatchedReward, RewardInfo
from calibri.runs.gradients import Gradients
from calibri.runs.loop import SearchLoop
from calibri.runs.session import Session
from calibri.scoring.ledger import Ledger, MemoryRecords
from tests.sampling.conditioned import kl
from tests.sampling.pipelines import CASES
from tests.tiny import FEW_PROMPTS, tiny_run

FLUX = next(case for case in CASES if case.id == "Flux")
VALUES = FEW_PROMPTS | {
    "rewards.objective": "bright",
    "sampling.height": 16,
    "sampling.width": 16,
    "sampling.num_inference_steps": 3,
    "sampling.guidance_scale": 3.5,
    "space.guidance": True,
    "space.shift": True,
    "search.method": "gradient",
    "search.generations": 1,
    "search.popsize": 14,
    "search.bucket_size": 4,
    "search.bucket_growth": 1,
    "search.race_keep": 1,
}


class Bright(BatchedReward):
    info = RewardInfo("bright", "mean of the pixels", unit="0 to 1", differentiable=True)

    def score_batch(self, images, prompts):
        return self.score_float(images.float() / 255, prompts)

    def score_float(self, images, prompts):
        return images.mean((1, 2, 3))


@pytest.fixture
def session():
    made = Session(tiny_run(VALUES), pipe=FLUX.build(vae=kl(1)), rewards={"bright": Bright()})
    yield made
    made.close()


def evaluator_of(session, records=None):
    return session.evaluator(Ledger(MemoryRecords() if records is None else records))


def test_slopes_are_those_of_the_mean_reward_and_the_scales_are_differentiated_there(session):
    noises = session.noises("test", 0, session.prompts.train[:3])
    vector = session.space.start.copy()
    vector[-2:] = 1.3, 0.7
    found = Gradients(session, evaluator_of(session))("gradient", 0, vector, noises)["bright"]

    def mean(at):
        images = session.sample(session.space.coefficients(at), noises)
        return float(images.double().mean() / 255)

    for place in (-2, -1):
        step = 0.1 * np.eye(session.space.size)[place]
        slope = (mean(vector + step) - mean(vector - step)) / 0.2
        assert found.gradient[place] == pytest.approx(slope, abs=1e-6)
        assert abs(slope) > 1e-5
    # The other images are sampled with the same factors.
    assert found.scores.mean() == pytest.approx(mean(vector), abs=1e-6)
    assert images_beside(session.config) == 4


def test_a_search_moves_both_and_resumes(session):
    def moved(records):
        return next(SearchLoop(session, evaluator_of(session, records), Progress())).vector

    records = MemoryRecords()
    vector = moved(records)
    assert session.space.labels[-2:] == ("guidance", "shift")
    assert (np.abs(vector[-2:] - 1) > 0.01).all()
    phases = [r["phase"] for r in records.records if r["kind"] == "unit"]
    # Two updates of 7 images a prompt for the 14 candidates, then the original.
    assert phases == ["gradient", "guidance", "shift"] * 2 + ["search"]
    records.records = records.records[: len(records.records) // 2]
    assert np.array_equal(moved(records), vector)

"""The reference procedure is an independent check of ours: same coefficients, same images."""

import numpy as np
import pytest
import torch
from benchmarks.reference import Procedure, Search, Settings
from diffusers import DiffusionPipeline

from calibri.coefficients.coefficients import Coefficients
from calibri.config import load_config
from calibri.runs.session import Session
from calibri.shapes.paths import PIPELINE_PATH


@pytest.fixture(scope="module", params=[1.0, 3.0])
def pair(request):
    """Our session, and the reference procedure on a pipeline of its own."""
    session = Session(
        load_config(
            values={
                "device": "cpu",
                "sampling.num_inference_steps": 3,
                "sampling.guidance_scale": request.param,
                "space.branches": "separate" if request.param > 1 else "shared",
            }
        )
    )
    pipe = DiffusionPipeline.from_pretrained(PIPELINE_PATH)
    pipe.set_progress_bar_config(disable=True)
    texts = [prompt.text for prompt in session.prompts.train]
    settings = Settings(num_inference_steps=3, guidance_scale=request.param)

    def reward(images, prompts):
        return session.bench.measures.rewards["shapes"].score(pixels(images), prompts).tolist()

    return session, Procedure(pipe, reward, texts, texts[:4], settings)


def pixels(images):
    arrays = np.stack([np.asarray(image) for image in images])
    return torch.from_numpy(arrays).permute(0, 3, 1, 2).contiguous()


def coefficients(procedure, vector):
    gates = procedure.gates
    return Coefficients(
        granularity="gate",
        scales=tuple(gates.named(vector)),
        output_weights=tuple(vector[gates.is_output]),
        start_weights=procedure.settings.start_weights,
    )


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_images_equal_ours(pair, seed):
    session, procedure = pair
    rng = np.random.default_rng(seed)
    start = procedure.gates.start
    vector = start + 0.25 * rng.standard_normal(start.size)
    noises = session.noises("check", seed, session.prompts.train[:4])
    ours = session.sample(coefficients(procedure, vector), noises)
    images = procedure.sample(vector, [n.prompt.text for n in noises], [n.seed for n in noises])
    difference = (pixels(images).int() - ours.int()).abs()
    assert difference.max() <= 1
    assert (difference == 0).float().mean() > 0.999
    original = procedure.sample(start, [n.prompt.text for n in noises], [n.seed for n in noises])
    assert (pixels(original).int() - ours.int()).abs().float().mean() > 1


class Scored(Procedure):
    """Scores vectors by their distance to a point, without images, and notes what it was asked."""

    def __init__(self, procedure, top, train, **settings):
        guidance_scale = procedure.settings.guidance_scale
        held_out = ["held out"] * 3
        changed = Settings(guidance_scale=guidance_scale, **settings)
        super().__init__(procedure.pipe, None, train, held_out, changed)
        self.gates.remove()
        self.top, self.calls = top, []

    def score(self, vector, prompts, seeds):
        self.calls.append((vector, tuple(prompts), tuple(seeds)))
        return float(-np.square(vector - self.top).sum())


def test_a_generation_scores_every_candidate_on_one_bucket(pair):
    session, procedure = pair
    procedure = Scored(procedure, 0.5, [prompt.text for prompt in session.prompts.train])
    before = procedure.search.sigma
    generation = procedure.step()
    n = procedure.gates.start.size
    assert len(procedure.calls) == 4 + int(3 * np.log(n))
    ((prompts, seeds),) = {(prompts, seeds) for _, prompts, seeds in procedure.calls}
    assert len(set(prompts)) == len(set(seeds)) == 16
    assert generation.best_reward == procedure.search.best[1] >= generation.mean_reward
    assert before == 0.25


def test_the_luckiest_candidate_is_validated(pair):
    other = Scored(pair[1], 0.0, ["a"] * 16, validate_every=2)
    vector, history = other.run(4)
    validated = [tested for tested, prompts, _ in other.calls if prompts[0] == "held out"]
    candidates = [tested for tested, prompts, _ in other.calls if prompts[0] == "a"]
    assert len(validated) == 2
    assert len(history) == 4
    norms = [np.square(candidate).sum() for candidate in candidates]
    assert np.square(vector).sum() == min(norms)


def test_candidates_stay_within_the_bounds_of_the_authors():
    start = np.array([1.0] * 6 + [1.0])
    search = Search(start, np.arange(7) == 6, Settings(seed=3))
    for _ in range(60):
        candidates = search.ask()
        search.tell(candidates, [-vector.sum() for vector in candidates])
        scales, outputs = np.split(np.array([*candidates, search.mean]), [6], axis=1)
        assert scales.min() >= -1
        assert outputs.min() >= -10
    assert scales.max() < -0.9
    assert outputs.max() < -9


def test_a_search_follows_from_its_seed():
    start, outputs = np.ones(5), np.arange(5) == 4
    first, same, other = (Search(start, outputs, Settings(seed=s)).ask()[0] for s in (0, 0, 1))
    assert (first == same).all()
    assert (first != other).any()


def test_rewards_are_those_of_the_images(pair):
    session, procedure = pair
    start = procedure.gates.start
    noises = session.noises("check", 0, session.prompts.train[:6])
    texts = [n.prompt.text for n in noises]
    theirs = procedure.score(start, texts, [n.seed for n in noises])
    images = session.sample(coefficients(procedure, start), noises)
    ours = session.bench.measures.rewards["shapes"].score(images, texts).mean()
    assert theirs == pytest.approx(float(ours), abs=1e-3)

"""What no score of a single image shows: sets that lose their diversity, or leave real images."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from calibri.config import validate_config
from calibri.planning import diversity_prompts, images_by_phase
from calibri.progress import Progress
from calibri.results import DIVERSITY, FEATURES, Figure, ImageSets
from calibri.rewards.reward import RewardInfo
from calibri.runs.checkpoints import Checkpoints
from calibri.runs.comparison import verdict
from calibri.runs.image_sets import ImageSetComparer, lost_diversity
from calibri.runs.session import Session
from calibri.scoring import feature_diversity, frechet_distance, frechet_influence
from tests.runs.test_comparison import comparison, evaluation

PROMPTS = 40


class Real:
    """A reward whose features are given by the test, and whose real images are a Gaussian's."""

    info = RewardInfo("real", "1", kind="pointwise", unit="none")

    def score(self, images, prompts):
        return torch.zeros(len(prompts))

    def features(self, images):
        return images.float().mean(dim=(2, 3))

    def reference_features(self, prompts, seed):
        rng = np.random.default_rng(0)
        return torch.tensor(rng.normal(size=(400, 3)))


class Plain:
    """A reward that sees single images only."""

    info = RewardInfo("plain", "1", kind="pointwise", unit="none")

    def score(self, images, prompts):
        return torch.zeros(len(prompts))


class Sets:
    """A back-end's stand-in: the objective always rises, ``spread`` scales the images' variety.

    Args:
        spread: of images of one prompt, of the vector; the original has 1.
        shift: of all features of the vector.
    """

    def __init__(self, spread=1.0, shift=0.0):
        self.spread, self.shift = spread, shift
        self.images = 0

    def expect(self, asked):
        pass

    def score(self, phase, step, candidates, noises, measures, fidelity):
        self.images += len(noises)
        rng = np.random.default_rng(len(noises))
        scale = self.spread if step else 1.0
        of_prompts, of_images = rng.normal(size=(2, len(noises), 3)) * 0.7
        if noises[0].prompt == noises[1].prompt:
            of_prompts = of_prompts[::2].repeat(2, axis=0)
        features = of_prompts + scale * of_images + (self.shift if step else 0.0)
        found = {
            FEATURES: features[None],
            DIVERSITY: np.abs(of_images[None, :, 0]) * scale,
        }
        gain = rng.normal(size=(1, len(noises))) * 0.01 + step
        return {name: found.get(name, gain) for name in measures}


def checkpoint_of(backend, rewards, **sections):
    config = validate_config(
        {
            "device": "cpu",
            "space": {"granularity": "block"},
            "search": {"num_validation_prompts": PROMPTS, **sections.pop("search", {})},
            "rewards": {"objective": rewards[0].info.name, "held_out": [], **sections},
        }
    )
    session = Session(config, rewards={reward.info.name: reward for reward in rewards})
    checkpoints = Checkpoints(session, backend, Progress())
    checkpoints.add(session.space.start + 1, 1, {})
    vector, (checkpoint,) = checkpoints.choose()
    session.close()
    return checkpoint, bool((vector != session.space.start).any())


@pytest.mark.parametrize("reward", [Real, Plain])
@pytest.mark.parametrize("images", [1, 2])
def test_one_picture_for_every_seed_is_never_returned(reward, images):
    search = {"images_per_prompt": images}
    alike, returned = checkpoint_of(Sets(spread=0.01), [reward()], search=search)
    assert alike.vetoed_by[0] == "diversity"
    assert not returned
    assert alike.image_sets.diversity.mean == pytest.approx(-0.99, abs=0.005)
    fine, returned = checkpoint_of(Sets(spread=0.95), [reward()], search=search)
    assert (fine.vetoed_by, returned) == ([], True)
    assert fine.image_sets.diversity.mean == pytest.approx(-0.05, abs=0.01)


def test_images_that_leave_the_real_ones_are_never_returned():
    away, returned = checkpoint_of(Sets(shift=2.0), [Real()])
    assert away.vetoed_by == ["Frechet distance"]
    assert away.image_sets.frechet.low > 0
    assert not returned
    same, returned = checkpoint_of(Sets(), [Real()])
    assert same.image_sets.frechet.mean == 0.0
    assert returned


@pytest.mark.parametrize("changed", [{"guard": "off"}, {"least_diversity": 0.0}])
def test_whoever_asks_for_it_may_lose_diversity(changed):
    checkpoint, returned = checkpoint_of(Sets(spread=0.01), [Plain()], **changed)
    assert (checkpoint.vetoed_by, returned) == ([], True)
    assert (checkpoint.image_sets.diversity is None) == ("guard" in changed)


@given(
    generations=st.integers(1, 400),
    every=st.integers(1, 20),
    validation=st.integers(5, 300),
    test=st.integers(2, 400),
    size=st.integers(1, 500),
)
def test_it_costs_at_most_a_twentieth_of_the_images(generations, every, validation, test, size):
    sections = {
        "search": {
            "generations": generations,
            "validate_every": every,
            "num_validation_prompts": validation,
        },
        "evaluation": {"num_prompts": test},
    }
    config = validate_config(sections)
    off = validate_config({**sections, "rewards": {"guard": "off"}})
    with_it, without = (sum(images_by_phase(c, size).values()) for c in (config, off))
    assert with_it <= 1.05 * without
    prompts = diversity_prompts(config, size)
    assert prompts <= validation
    assert (with_it > without) == (prompts > 0)
    assert prompts == 0 or prompts >= 5


def test_as_many_images_are_sampled_as_are_planned():
    backend = Sets()
    checkpoint_of(backend, [Plain()], search={"validate_every": 20})
    config = validate_config(
        {
            "search": {"num_validation_prompts": PROMPTS, "validate_every": 20},
            "space": {"granularity": "block"},
            "rewards": {"objective": "plain", "held_out": []},
        }
    )
    session = Session(config, rewards={"plain": Plain()})
    assert backend.images == images_by_phase(session.config, session.space.size)["validation"]
    session.close()


def test_the_distance_of_features_is_the_mean_over_pairs():
    features = np.random.default_rng(0).normal(size=(5, 4, 3))
    pairs = [(i, j) for i in range(4) for j in range(i)]
    expected = [
        np.mean([np.sqrt(np.mean((prompt[i] - prompt[j]) ** 2)) for i, j in pairs])
        for prompt in features
    ]
    np.testing.assert_allclose(feature_diversity(features), expected)


@pytest.mark.parametrize("size", [2, 6])
def test_influences_are_those_of_the_jackknife(size):
    rng = np.random.default_rng(size)
    a, b = rng.normal(size=(300, size)), rng.normal(size=(500, size)) * 1.5 + 0.3
    distance, influence = frechet_influence(a, b)
    assert distance == frechet_distance(a, b)
    assert influence.mean() == pytest.approx(0, abs=1e-9)
    left_out = np.array([frechet_distance(np.delete(a, i, axis=0), b) for i in range(len(a))])
    jackknife = (len(a) - 1) * (left_out.mean() - left_out)
    np.testing.assert_allclose(influence, jackknife, atol=0.1 * np.abs(jackknife).max())


def test_influences_do_without_features_that_never_change():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(50, 3)), rng.normal(size=(60, 3))
    a[:, 2] = 1.0
    assert np.isfinite(frechet_influence(a, b)[1]).all()


def test_dropped_images_take_their_prompt_with_them():
    session = SimpleNamespace(config=SimpleNamespace(seed=0))
    comparer = ImageSetComparer(session, (), 2)
    theirs = np.array([1.0, 1.0, 1.0, 1.0, 2.0, 2.0])
    ours = theirs * 0.5
    ours[4] = np.nan
    assert comparer.diversity({DIVERSITY: ours}, {DIVERSITY: theirs}).n == 2
    assert comparer.diversity({DIVERSITY: ours}, {DIVERSITY: theirs * 0}) is None


def figure(mean, half=0.01):
    return Figure(mean=mean, low=mean - half, high=mean + half, n=8)


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (ImageSets(diversity=figure(-0.9)), "diversity -90% [-91%, -89%]"),
        (ImageSets(frechet=figure(1.5)), "farther from real ones"),
    ],
)
def test_the_verdict_says_what_was_lost(sets, words):
    found = evaluation(comparison("objective", 6, 0.1), held_out=())
    assert words in verdict(found.model_copy(update={"image_sets": sets}))
    better = ImageSets(diversity=figure(0.1), frechet=figure(-1.0))
    assert "But" not in verdict(found.model_copy(update={"image_sets": better}))


def test_what_may_be_lost_is_a_share_of_the_original():
    assert lost_diversity(ImageSets(diversity=figure(-0.3)), 0.75)
    assert not lost_diversity(ImageSets(diversity=figure(-0.25)), 0.75)
    assert not lost_diversity(ImageSets(), 0.75)

import math

import numpy as np
import pytest
from benchmarks.landscapes import BOUNDED, HIGH, LANDSCAPES, LOW, NO_NOISE, NOISES, POOL, Problem
from benchmarks.synthetic import OURS, REFERENCE, plan, run, validate

from benchmarks import bounds, synthetic
from calibri.config import SearchConfig
from calibri.search.racing import images_of_generation


@pytest.mark.parametrize("landscape", LANDSCAPES)
def test_the_original_is_at_minus_two_and_the_optimum_at_zero(landscape):
    problem = Problem(landscape, 12, 0)
    ones = np.ones((1, 12))
    ripples = 0.6 if landscape == "rippled" else 0.0
    assert -2 - ripples - 1e-9 <= problem.truth(ones)[0] <= -2 + 1e-9
    assert problem.truth(problem.optimum[None])[0] == 0
    anywhere = np.random.default_rng(0).uniform(-1, 2, size=(500, 12))
    assert problem.truth(anywhere).max() < 0
    assert problem.truth(1000 * anywhere).min() >= -10 - ripples


@pytest.mark.parametrize("landscape", BOUNDED)
def test_the_best_point_of_a_bounded_landscape_is_on_its_border(landscape):
    problem, rng = Problem(landscape, 12, 0), np.random.default_rng(0)
    assert problem.truth(np.ones((1, 12)))[0] == pytest.approx(-2)
    assert problem.truth(problem.optimum[None])[0] == pytest.approx(0, abs=1e-12)
    assert np.isin(problem.optimum, (LOW, HIGH)).sum() >= (12 if landscape == "corner" else 3)
    near = problem.optimum + 0.01 * rng.normal(size=(500, 12))
    anywhere = rng.uniform(LOW, HIGH, size=(500, 12))
    assert problem.truth(np.clip(np.concatenate([near, anywhere]), LOW, HIGH)).max() < 0
    scores = problem.scores(anywhere, np.arange(2), NO_NOISE, rng)
    np.testing.assert_allclose(scores[:, 0] - scores[0, 0], scores[:, 1] - scores[0, 1])


def test_a_long_search_keeps_an_optimum_on_the_bounds_as_pycma_does():
    problem = Problem("bounded", 20, 0)
    for search in (bounds.ours, bounds.pycma):
        truth = problem.truth(search(problem.truth, 20, 0, 200))
        assert truth[100:].min() > -1e-3
        assert truth[-1] > -1e-5


def test_optima_are_as_far_as_stated():
    distances = {
        name: np.linalg.norm(Problem(name, 12, 0).optimum - 1) / math.sqrt(12)
        for name in LANDSCAPES
    }
    expected = {"rotated": 0.2, "near": 0.1, "far": 0.4, "isotropic": 0.2, "rippled": 0.2}
    assert distances == pytest.approx(expected)


@pytest.mark.parametrize("noise", NOISES)
def test_the_mean_over_the_pool_is_the_truth(noise):
    problem, rng = Problem("rotated", 12, 0), np.random.default_rng(0)
    x = 1 + 0.3 * rng.normal(size=(3, 12))
    table = problem.scores(x, np.arange(POOL), noise, rng)
    # Only the noise of images is left: 6 standard errors of it.
    allowed = 6 * NOISES[noise][1] / math.sqrt(POOL)
    np.testing.assert_allclose(table.mean(axis=1), problem.truth(x), atol=allowed)


def test_candidates_of_a_bucket_share_its_prompts():
    problem, rng = Problem("rotated", 12, 0), np.random.default_rng(0)
    twice = np.repeat(1 + 0.3 * rng.normal(size=(1, 12)), 2, axis=0)
    table = problem.scores(twice, np.arange(POOL), "mid", rng)
    assert (table[0] - table[1]).std() == pytest.approx(math.sqrt(2) * NOISES["mid"][1], rel=0.05)
    # Ease has SD 2.5; taste and chaos come on top.
    assert table.std() > 2.5


@pytest.mark.parametrize(("settings", "unpaid"), [(OURS, 0), (REFERENCE, 1)])
def test_images_are_those_that_were_scored(settings, unpaid):
    scored, buckets = [], []

    class Counted(Problem):
        def scores(self, x, prompts, noise, rng):
            scored.append(len(x) * len(prompts))
            buckets.append(len(prompts))
            return super().scores(x, prompts, noise, rng)

    trace = run(Counted("rotated", 12, 0), "mid", 0, settings, 5_000)
    # The reference does not pay for the original's row.
    assert trace.images[-1] == sum(scored) - unpaid * sum(buckets)
    assert trace.images[-1] <= 5_000
    assert len(trace.images) == len(trace.means) == len(plan(settings, 12, 5_000))


def test_a_plan_spends_the_budget():
    for settings in (OURS, REFERENCE):
        images = [settings.images(58, bucket) for bucket in plan(settings, 58, 51_200)]
        assert 51_200 - max(images) < sum(images) <= 51_200
    assert plan(REFERENCE, 58, 51_200) == [16] * 200


def test_runs_repeat():
    one, other = (run(Problem("far", 12, 3), "mid", 3, OURS, 3_000) for _ in range(2))
    assert np.array_equal(one.means, other.means)


def test_worse_checkpoints_are_not_returned():
    problem = Problem("rotated", 12, 0)
    away = 1 - 2 * (problem.optimum - 1)
    validation = validate(problem, "mid", 0, np.tile(away, (40, 1)))
    assert np.array_equal(validation.returned, np.ones(12))
    toward = validate(problem, "mid", 0, np.tile(problem.optimum, (40, 1)))
    assert np.array_equal(toward.returned, problem.optimum)


def test_fractions_are_the_first_crossing_of_the_mean_curve():
    seeds = synthetic.SEEDS
    curves = np.tile([0.0, 1.0, 2.0, 3.0], (seeds, 1))
    draws = np.zeros((synthetic.RESAMPLES, seeds), dtype=int)
    shares = np.array([0.25, 0.5, 0.75, 1.0])
    assert synthetic.fraction(shares, curves, np.full(seeds, 1.5), draws) == [0.75] * 3
    assert synthetic.fraction(shares, curves, np.full(seeds, 3.5), draws) == [None] * 3


@pytest.mark.parametrize("settings", [OURS, REFERENCE])
def test_what_is_measured_is_what_the_product_does(settings):
    config = SearchConfig.model_validate({"method": settings.method})
    assert settings.sigma0 == config.sigma0
    assert settings.tail == config.tail
    assert settings.buckets == (config.bucket_size, config.final_bucket_size)
    assert settings.race[1] == config.race_keep
    assert settings is REFERENCE or settings.race[0] == config.race_first
    images = images_of_generation(config.population(58), 16, config.race_first, config.race_keep)
    assert settings.images(58, 16) == images - (0 if settings.scores_original else 16)

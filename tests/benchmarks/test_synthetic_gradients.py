"""Gradients of the synthetic rewards are those of their truth, and noisy as was measured."""

import numpy as np
import pytest
from benchmarks.landscapes import LANDSCAPES, NO_NOISE, NOISES, POOL, SCALED, Problem
from benchmarks.synthetic_gradients import CONFIG, run

from calibri.planning.generations import bucket_sizes, updates_per_generation


@pytest.mark.parametrize("landscape", [*LANDSCAPES, SCALED])
def test_a_slope_is_the_finite_difference_of_the_truth(landscape):
    problem, rng = Problem(landscape, 12, 0), np.random.default_rng(0)
    x = 1 + 0.2 * rng.normal(size=12)
    ends = np.concatenate([x + 1e-5 * np.eye(12), x - 1e-5 * np.eye(12)])
    high, low = np.split(problem.truth(ends), 2)
    np.testing.assert_allclose(problem.slope(x), (high - low) / 2e-5, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("noise", NOISES)
def test_gradients_of_all_prompts_average_to_the_slope_with_their_scatter(noise):
    problem, rng = Problem("rotated", 12, 0), np.random.default_rng(0)
    x = np.ones(12)
    found = np.concatenate([problem.gradients(x, np.arange(POOL), noise, rng) for _ in range(8)])
    error = found.std(axis=0) / np.sqrt(len(found))
    assert (np.abs(found.mean(axis=0) - problem.slope(x)) < 6 * error).all()
    lengths = np.linalg.norm(found, axis=1)
    typical, long = np.quantile(lengths, [0.5, 0.99])
    assert 8 < long / typical < 30  # 17 on the shipped pipeline
    exact = problem.gradients(x, np.arange(3), NO_NOISE, rng)
    slope = problem.slope(x)
    lengths = np.linalg.norm(exact, axis=1, keepdims=True)
    np.testing.assert_allclose(exact / lengths, np.tile(slope / np.linalg.norm(slope), (3, 1)))


def test_a_run_is_counted_as_it_is_planned_and_climbs():
    images, truth = run(Problem("rotated", 12, 0), "low", 0)
    prompts = np.cumsum(bucket_sizes(CONFIG))
    np.testing.assert_array_equal(images, prompts * (3 * updates_per_generation(CONFIG, 12) + 1))
    assert truth[-1] > truth[0] > -2
    again = run(Problem("rotated", 12, 0), "low", 0)[1]
    np.testing.assert_array_equal(truth, again)

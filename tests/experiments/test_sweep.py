"""Where the reward is best, and whether that is surely not 1."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibri.experiments.sweep import VALUES, cross_fitted, optimum, slopes
from calibri.statistics import holm, sign_flip_test

GRID = np.array(VALUES)
BASE = VALUES.index(1.0)


def scores(best, noise, prompts, seed):
    """A parabola with its top at ``best``, and noise for each value and prompt."""
    rng = np.random.default_rng(seed)
    table = np.repeat(-((GRID - best) ** 2)[:, None], prompts, axis=1)
    return table + noise * rng.standard_normal(table.shape)


@given(best=st.floats(0.0, 2.0))
def test_without_noise_the_top_of_a_parabola_is_found(best):
    found = optimum(GRID, scores(best, 0.0, 8, 0), 0)
    # At an end of the grid the end itself is taken, at most half a step away.
    tolerance = 0.25 if best < 0.25 or best > 1.75 else 1e-6
    assert found.mean == pytest.approx(best, abs=tolerance + 1e-6)
    assert found.low == pytest.approx(found.mean)
    assert found.high == pytest.approx(found.mean)


@given(seed=st.integers(0, 2**32), best=st.sampled_from(VALUES))
def test_an_optimum_lies_on_the_grid_and_depends_on_nothing_but_its_arguments(seed, best):
    table = scores(best, 1.0, 12, seed)
    found = optimum(GRID, table, seed)
    assert GRID[0] <= found.low <= found.high <= GRID[-1]
    assert found == optimum(GRID, table, seed)


def test_intervals_of_the_optimum_mostly_hold_it():
    held = 0
    for seed in range(60):
        found = optimum(GRID, scores(1.2, 0.2, 60, seed), seed)
        held += found.low <= 1.2 <= found.high
    assert held >= 50


def test_a_gain_that_is_only_luck_is_not_found_on_other_prompts():
    """The best of nine equal values looks better on the prompts that chose it, and is not."""
    flat = [np.random.default_rng(seed).standard_normal((len(GRID), 40)) for seed in range(200)]
    naive = [(table.mean(axis=1).max() - table[BASE].mean()) for table in flat]
    honest = [cross_fitted(table, BASE).mean() for table in flat]
    assert np.mean(naive) > 0.15
    assert abs(np.mean(honest)) < 0.05


def test_a_gain_is_judged_by_what_judges():
    table = scores(1.5, 0.01, 20, 0)
    gains = cross_fitted(table, BASE, judge=np.arange(len(GRID))[:, None] * np.ones((1, 20)))
    assert gains.tolist() == [VALUES.index(1.5) - BASE] * 20


@given(
    powers=st.lists(st.floats(-3, 3), min_size=5, max_size=5),
)
def test_the_slope_at_1_is_exact_for_polynomials_of_degree_4(powers):
    polynomial = np.polynomial.Polynomial(powers)
    found = slopes(polynomial(GRID)[:, None])
    assert found == pytest.approx(polynomial.deriv()(1.0), abs=1e-9)


def test_the_slope_of_a_reward_that_is_best_at_1_is_none_however_lopsided_it_is():
    lopsided = -((GRID - 1) ** 2) * (1 - 0.8 * (GRID - 1))
    assert lopsided.argmax() == BASE
    assert slopes(lopsided[:, None]) == pytest.approx(0, abs=1e-12)


def test_optima_that_are_not_1_are_found_and_one_at_1_is_not():
    tables = [scores(best, 0.05, 60, 1) for best in (1.3, 1.0, 0.8)]
    p = holm(sign_flip_test([slopes(table) for table in tables], 0))
    assert p[0] < 0.05 < p[1]
    assert p[2] < 0.05

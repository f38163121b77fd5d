import itertools

import numpy as np
import pytest

from calibri.results import Figure
from calibri.runs.probe.agreement import bias_slope, kendall_tau, rank_correlation, refusal


def plain_tau(a, b):
    """Tau-b by its definition, pair by pair."""
    concordant = discordant = ties_a = ties_b = 0
    for (a1, b1), (a2, b2) in itertools.combinations(zip(a, b, strict=True), 2):
        product = (a1 - a2) * (b1 - b2)
        concordant += product > 0
        discordant += product < 0
        ties_a += a1 == a2
        ties_b += b1 == b2
    pairs = len(a) * (len(a) - 1) / 2
    return (concordant - discordant) / np.sqrt((pairs - ties_a) * (pairs - ties_b))


@pytest.mark.parametrize("seed", range(10))
def test_tau_is_that_of_its_definition_ties_included(seed):
    rng = np.random.default_rng(seed)
    a = rng.integers(0, 6, size=15).astype(float)
    b = a + rng.integers(-2, 3, size=15)
    assert kendall_tau(a, b) == pytest.approx(plain_tau(a, b))


def test_tau_of_equal_and_reversed_rankings():
    a = np.array([3.0, 1.0, 2.0, 5.0])
    assert kendall_tau(a, np.exp(a)) == 1.0
    assert kendall_tau(a, -a) == -1.0
    assert kendall_tau(a, np.zeros(4)) == 0.0


@pytest.mark.parametrize("b", [np.zeros(3), np.zeros((4, 1))])
def test_rankings_of_other_candidates_are_refused(b):
    with pytest.raises(ValueError, match="same candidates"):
        kendall_tau(np.zeros(4), b)


def tables(rng, noise, candidates=20, prompts=32):
    true = rng.normal(size=(candidates, 1)) + rng.normal(size=(1, prompts))
    full = true + 0.1 * rng.normal(size=(candidates, prompts))
    return full + noise * rng.normal(size=full.shape), full


def test_the_interval_of_tau_holds_the_tau_and_falls_with_noise():
    rng = np.random.default_rng(0)
    figures = [rank_correlation(*tables(rng, noise), seed=1) for noise in (0.01, 1.0, 20.0)]
    assert all(f.low <= f.mean <= f.high and f.n == 32 for f in figures[:2])
    assert figures[0].low > 0.9
    assert figures[0].mean > figures[1].mean > figures[2].mean
    assert figures[2].low < 0.2


def test_intervals_depend_on_the_seed_alone():
    cheap, full = tables(np.random.default_rng(1), 1.0)
    assert rank_correlation(cheap, full, 3) == rank_correlation(cheap, full, 3)
    assert rank_correlation(cheap, full, 3) != rank_correlation(cheap, full, 4)


def test_the_slope_of_the_bias_is_that_of_a_line():
    rng = np.random.default_rng(2)
    distances = np.array([0.0, 1.0, 1.1, 0.9, 2.0])
    full = rng.normal(size=(5, 200))
    cheap = full + 0.3 - 0.7 * distances[:, None] + 0.1 * rng.normal(size=full.shape)
    figure = bias_slope(cheap, full, distances, seed=0)
    assert figure.low < -0.7 < figure.high
    assert figure.high - figure.low < 0.1
    line = np.polyfit(distances, (cheap - full).mean(axis=1), 1)[0]
    assert figure.mean == pytest.approx(line)


def figure(low, high):
    return Figure(mean=(low + high) / 2, low=low, high=high, n=32)


@pytest.mark.parametrize(
    ("tau", "bias", "reason"),
    [
        ((0.8, 0.95), (-0.1, 0.1), ""),
        ((0.79, 0.99), (-0.1, 0.1), "lower end of tau"),
        ((0.8, 0.95), (0.51, 0.9), "error changes"),
        ((0.8, 0.95), (-0.9, -0.51), "error changes"),
        ((0.8, 0.95), (-0.9, 0.9), ""),
    ],
)
def test_a_fidelity_is_refused_for_a_low_tau_or_a_bias_that_changes(tau, bias, reason):
    found = refusal(figure(*tau), figure(*bias), spread=1.0)
    assert reason in found
    assert bool(reason) == bool(found)

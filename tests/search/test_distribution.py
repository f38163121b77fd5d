import numpy as np
import pytest
from cmaes import CMA
from hypothesis import given, settings
from hypothesis import strategies as st

from calibri.search.distribution import Distribution, Rates


@settings(max_examples=25, deadline=None)
@given(
    dimension=st.integers(2, 12),
    popsize=st.integers(4, 40),
    sigma=st.floats(0.01, 2.0),
    seed=st.integers(0, 2**32 - 1),
)
def test_moves_as_an_independent_implementation_does(dimension, popsize, sigma, seed):
    rng = np.random.default_rng(seed)
    theirs = CMA(np.zeros(dimension), sigma, population_size=popsize)
    ours = Distribution(dimension, sigma)
    optimum = rng.normal(size=dimension)
    for _ in range(8):
        candidates = ours.sample(rng.standard_normal((popsize, dimension)))
        losses = ((candidates - optimum) ** 2).sum(axis=1) + rng.normal(size=popsize)
        theirs.tell(list(zip(candidates, losses, strict=True)))
        ours.update(candidates[np.argsort(losses)])
        np.testing.assert_allclose(ours.mean, theirs.mean, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(ours.sigma, theirs._sigma, rtol=1e-6)
        np.testing.assert_allclose(ours.covariance, theirs._C, rtol=1e-5, atol=1e-9)


def test_candidates_have_the_covariance_that_was_learnt():
    rng = np.random.default_rng(0)
    distribution = Distribution(5, 0.3)
    for _ in range(20):
        candidates = distribution.sample(rng.standard_normal((20, 5)))
        losses = (candidates**2) @ np.geomspace(1, 100, 5)
        distribution.update(candidates[np.argsort(losses)])
    candidates = distribution.sample(rng.standard_normal((200_000, 5)))
    expected = distribution.sigma**2 * distribution.covariance
    np.testing.assert_allclose(
        np.cov(candidates.T), expected, rtol=0.05, atol=1e-3 * expected.max()
    )
    np.testing.assert_allclose(candidates.mean(axis=0), distribution.mean, atol=0.01)


def test_a_covariance_that_is_decomposed_rarely_is_learnt_all_the_same():
    # 200 dimensions and 12 candidates: several updates pass between two decompositions.
    rng = np.random.default_rng(0)
    distribution = Distribution(200, 0.3)
    start = float(np.linalg.norm(distribution.mean - 1))
    for _ in range(700):
        candidates = distribution.sample(rng.standard_normal((12, 200)))
        distribution.update(candidates[np.argsort(((candidates - 1) ** 2).sum(axis=1))])
    assert np.linalg.norm(distribution.mean - 1) < 0.05 * start
    np.testing.assert_allclose(distribution.covariance, distribution.covariance.T, atol=1e-12)


@settings(deadline=None)
@given(dimension=st.integers(1, 1000), popsize=st.integers(4, 300))
def test_weights_keep_the_size_of_the_distribution_under_a_random_order(dimension, popsize):
    rates = Rates.of(dimension, popsize)
    positive = rates.weights[: popsize // 2]
    assert positive.sum() == pytest.approx(1)
    assert (np.diff(rates.weights) < 0).all()
    assert 1 <= rates.mu_eff <= popsize / 2 + 1e-9
    assert 0 < rates.c_1 + rates.c_mu <= 1
    # C stays positive definite: what the negative weights can take away is bounded (eq. 52).
    negative = -rates.weights[rates.weights < 0].sum()
    assert rates.c_mu * dimension * negative <= 1 - rates.c_1 - rates.c_mu + 1e-12


def test_a_population_may_change_its_size():
    rng = np.random.default_rng(0)
    distribution = Distribution(6, 0.3)
    for generation in range(80):
        candidates = distribution.sample(rng.standard_normal((8 + generation % 5, 6)))
        distribution.update(candidates[np.argsort(((candidates - 1) ** 2).sum(axis=1))])
    np.testing.assert_allclose(distribution.mean, 1, atol=1e-3)


def test_three_candidates_are_no_population():
    with pytest.raises(ValueError, match="at least 4"):
        Distribution(6, 0.3).update(np.zeros((3, 6)))


def test_a_covariance_with_a_negative_variance_is_mended():
    rng = np.random.default_rng(0)
    distribution = Distribution(3, 1.0)
    distribution.covariance = np.diag([1.0, 2.0, -0.5])
    distribution.update(distribution.sample(rng.standard_normal((10, 3))))
    variances = np.linalg.eigvalsh(distribution.covariance)
    assert 0 < variances[0] < 1e-11
    assert variances[-1] > 0.5

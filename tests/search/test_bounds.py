import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibri.search.bounds import BoundPenalty
from calibri.search.cma import CMASearch
from calibri.search.distribution import Distribution
from calibri.search.method import Setup
from calibri.seeds import derive_seed

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of matplotlib, which it does without
    import cma


def make(start, bounds, *, popsize, basis=None, seed=0, sigma0=0.15):
    n = len(start)
    return CMASearch(
        Setup(
            start=np.asarray(start, dtype=np.float64),
            basis=np.eye(n) if basis is None else basis,
            bounds=np.broadcast_to(np.asarray(bounds, dtype=np.float64), (n, 2)),
            seed=seed,
            popsize=popsize,
            sigma0=sigma0,
            learning_rate=0.0,
            tail=1.0,
        )
    )


def run(search, score, generations, noise=0.0, seed=0):
    """Search, and give the means; every candidate is seen to be within its bounds."""
    rng, means = np.random.default_rng(seed), []
    for _ in range(generations):
        candidates = np.array(search.ask())
        search.tell(list(candidates), score(candidates) + noise * rng.normal(size=len(candidates)))
        means.append(search.mean)
    return np.array(means)


def five_beyond(seed):
    """A quadratic of 58 numbers, five of whose optima lie beyond [-1, 2], worth 2 at most."""
    optimum = 1 + 0.2 * np.random.default_rng(seed).normal(size=58)
    optimum[:5] = [2.5, -1.5, 2.5, -1.5, 2.5]
    best = np.clip(optimum, -1, 2)

    def loss(x):
        return np.square(x - optimum).sum(axis=-1)

    scale = 2 / (loss(np.ones(58)) - loss(best))
    return lambda x: 2 - scale * (loss(x) - loss(best))


@pytest.mark.parametrize("seed", range(4))
def test_optima_beyond_the_bounds_are_found_and_kept(seed):
    score = five_beyond(seed)
    search = make(np.ones(58), (-1, 2), popsize=64, seed=seed)
    values = score(run(search, score, 300))
    assert values[150:].min() > 1.999
    assert values[-1] == pytest.approx(2, abs=1e-8)


@pytest.mark.parametrize("seed", range(4))
def test_the_step_size_does_not_run_away_in_a_corner(seed):
    search = make(np.ones(30), (-1, 2), popsize=40, seed=seed)
    sums, largest = [], 0.0
    for _ in range(150):
        candidates = np.array(search.ask())
        search.tell(list(candidates), candidates.sum(axis=1))
        sums.append(search.mean.sum())
        largest = max(largest, search.sigma)
    assert min(sums[65:]) > 59.5
    assert sums[-1] == pytest.approx(60)
    assert largest < 2


@pytest.mark.parametrize("noise", [0.05, 0.5])
def test_noise_does_not_drive_the_search_off_its_bounds(noise):
    score = five_beyond(0)
    search = make(np.ones(58), (-1, 2), popsize=64)
    values = score(run(search, score, 300, noise))
    assert values[150:].min() > {0.05: 1.85, 0.5: 1.2}[noise]
    assert search.sigma < 1


# Of each coordinate: where its optimum is between its bounds, or beyond them by how much.
places = st.one_of(st.floats(0.05, 0.95), st.sampled_from([0.0, 1.0]), st.floats(1.1, 2.0))


@settings(max_examples=25, deadline=None)
@given(
    low=st.lists(st.floats(-3, 0), min_size=4, max_size=4),
    width=st.lists(st.floats(0.5, 4), min_size=4, max_size=4),
    place=st.lists(places, min_size=4, max_size=4),
    condition=st.floats(1, 30),
    seed=st.integers(0, 2**32 - 1),
)
def test_ends_at_the_optimum_within_any_box_and_stays(low, width, place, condition, seed):
    # Separable, so that the optimum within the box is the optimum, clipped.
    low, width = np.array(low), np.array(width)
    optimum, high = low + width * np.array(place), low + width
    curvature = np.geomspace(1, condition, 4)
    constrained = np.clip(optimum, low, high)
    search = make(low + 0.6 * width, np.stack([low, high], axis=1), popsize=16, seed=seed)

    def score(x):
        assert (x >= low).all()
        assert (x <= high).all()
        return -(np.square(x - optimum) @ curvature)

    means = run(search, score, 300)
    assert np.abs(means[-100:] - constrained).max() < 1e-3
    variances = np.linalg.eigvalsh(search.covariance)
    assert variances[0] > 0
    assert search.sigma < width.max()


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), sigma0=st.floats(0.05, 50), popsize=st.integers(4, 20))
def test_scores_without_meaning_do_not_blow_up_the_distribution(seed, sigma0, popsize):
    search = make(np.zeros(5), (-1, 1), popsize=popsize, seed=seed, sigma0=sigma0)
    rng, sigmas = np.random.default_rng(seed), []
    for _ in range(200):
        candidates = search.ask()
        search.tell(candidates, rng.normal(size=popsize))
        sigmas.append(search.sigma)
        variances = np.linalg.eigvalsh(search.covariance)
        assert variances[0] > 0
        assert sigmas[-1] * np.sqrt(np.median(np.diag(search.covariance))) < 10
    assert np.isfinite(sigmas).all()


def test_within_the_bounds_it_is_plain_cma_es_bit_for_bit():
    # What it was before bounds had a penalty.
    n, popsize, basis = 6, 12, np.diag([1.0, 2.0, 1.0, 0.5, 1.0, 1.0])
    basis[0, 3] = 0.25
    search = make(np.ones(n), (-9, 9), popsize=popsize, basis=basis, seed=5)
    plain, inverse = Distribution(n, 0.15), np.linalg.inv(basis)
    rng = np.random.default_rng(0)
    for generation in range(60):
        draws = np.random.default_rng(derive_seed(5, "search", generation))
        expected = 1 + plain.sample(draws.standard_normal((popsize, n))) @ basis.T
        candidates = search.ask()
        assert np.array_equal(candidates, expected)
        scores = -np.square(expected).sum(axis=1) + rng.normal(size=popsize)
        search.tell(candidates, scores)
        order = np.argsort(-scores, kind="stable")
        plain.update((expected[order] - 1) @ inverse.T)
        assert search.sigma == plain.sigma
        assert np.array_equal(search.mean, 1 + plain.mean @ basis.T)


def test_replaying_scores_beyond_the_bounds_asks_the_same():
    score, stored = five_beyond(0), []
    first = make(np.ones(58), (-1, 2), popsize=64)
    for _ in range(60):
        candidates = np.array(first.ask())
        stored.append(score(candidates).tolist())
        first.tell(list(candidates), stored[-1])
    assert (np.array(first.ask()) == 2).any()
    replayed = make(np.ones(58), (-1, 2), popsize=64)
    for scores in stored:
        replayed.ask()
        replayed.tell(replayed.ask(), scores)
    assert np.array_equal(first.ask(), replayed.ask())
    assert first.sigma == replayed.sigma


def test_candidates_may_be_told_in_another_order_and_moved_a_little():
    rng = np.random.default_rng(0)
    one, other = (make(np.full(8, 1.9), (-1, 2), popsize=24, sigma0=0.3) for _ in range(2))
    for _ in range(20):
        candidates = np.array(one.ask())
        scores = candidates.sum(axis=1)
        one.tell(list(candidates), scores)
        order = rng.permutation(24)
        moved = candidates[order] + 1e-9 * rng.normal(size=candidates.shape)
        other.tell(list(moved), scores[order])
    np.testing.assert_allclose(other.mean, one.mean, atol=1e-4)
    np.testing.assert_allclose(other.sigma, one.sigma, rtol=1e-3)


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(2, 8),
    popsize=st.integers(4, 30),
    outside=st.floats(0.1, 8),
    seed=st.integers(0, 2**32 - 1),
)
def test_pays_what_an_independent_library_lets_it_pay(n, popsize, outside, seed):
    rng, bounds = np.random.default_rng(seed), np.tile((-1.0, 2.0), (n, 1))
    theirs = cma.BoundPenalty([[-1.0] * n, [2.0] * n])
    ours = BoundPenalty(bounds, np.ones(n))
    identity = SimpleNamespace(
        geno=lambda x: x, pheno=lambda x: x, isidentity=True, fixed_values={}
    )
    for generation in range(40):
        # Before a mean is beyond a bound, theirs has weights of 1, whatever the scores; ours none.
        mean = np.full(n, 2.0) + outside * rng.uniform(-0.5 if generation else 0.1, 1, size=n)
        deviations = rng.uniform(0.2, 1, size=n)
        draws = mean + deviations * rng.normal(size=(popsize, n))
        scores, mu_eff = rng.normal(size=popsize), popsize / 4
        state = SimpleNamespace(
            N=n,
            sigma=1.0,
            sm=SimpleNamespace(variances=deviations**2),
            mean=mean,
            gp=identity,
            popsize=popsize,
            sp=SimpleNamespace(weights=SimpleNamespace(mueff=mu_eff)),
            countiter=generation + 1,
            more_to_write=[],
        )
        expected = theirs.update(list(-scores), state)(list(draws), None, identity)
        paid = scores - ours.penalised(draws, scores, mean, deviations, mu_eff)
        np.testing.assert_allclose(paid, expected, rtol=1e-7, atol=1e-11)


def test_distances_are_in_units_of_the_first_steps():
    # Ten times the scale of every coordinate is the same search.
    small = make(np.full(4, 0.9), (-1, 1), popsize=10, sigma0=0.3)
    large = make(np.full(4, 9.0), (-10, 10), popsize=10, sigma0=0.3, basis=10 * np.eye(4))
    for _ in range(30):
        candidates = np.array(small.ask())
        np.testing.assert_allclose(np.array(large.ask()), 10 * candidates, rtol=1e-8)
        scores = candidates @ np.array([1.0, -0.3, 0.6, 0.2])
        small.tell(list(candidates), scores)
        large.tell(large.ask(), scores)


def test_a_range_of_no_width_leaves_the_step_size_alone():
    penalty = BoundPenalty(np.array([[1.0, 1.0], [0.0, 3.0]]), np.ones(2))
    assert penalty.shrinkage(0.1, np.array([5.0, 2.0])) == pytest.approx(0.5)
    assert penalty.shrinkage(0.1, np.array([5.0, 0.1])) == 1
    fixed = BoundPenalty(np.array([[1.0, 1.0]]), np.ones(1))
    assert penalty.shrinkage(2.0, np.array([5.0, 0.1])) == pytest.approx(0.5)
    assert fixed.shrinkage(5.0, np.array([5.0])) == 1

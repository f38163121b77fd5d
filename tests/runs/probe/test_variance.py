import math

import numpy as np
import pytest

from calibri.results import VarianceComponents
from calibri.runs.probe.agreement import kendall_tau
from calibri.runs.probe.variance import (
    expected_gain,
    expected_tau,
    recommend,
    reliability,
    variance_components,
)

TRUE = {"candidate": 0.5, "prompt": 4.0, "noise": 1.5, "candidate_prompt": 0.8, "residual": 2.0}


def simulated(rng, c, p, s, true=TRUE):
    sd = {name: math.sqrt(value) for name, value in true.items()}
    return (
        7.0
        + sd["candidate"] * rng.normal(size=(c, 1, 1))
        + sd["prompt"] * rng.normal(size=(1, p, 1))
        + sd["noise"] * rng.normal(size=(1, p, s))
        + sd["candidate_prompt"] * rng.normal(size=(c, p, 1))
        + sd["residual"] * rng.normal(size=(c, p, s))
    )


@pytest.mark.parametrize("shape", [(6, 5, 2), (4, 8, 3)])
def test_estimates_are_unbiased(shape):
    rng = np.random.default_rng(0)
    found = [variance_components(simulated(rng, *shape)).model_dump() for _ in range(1500)]
    for name, value in TRUE.items():
        estimates = np.array([components[name] for components in found])
        error = estimates.std() / math.sqrt(len(estimates))
        assert abs(estimates.mean() - value) < 4 * error, name
        assert error < 0.1 * value + 0.02


def test_estimates_solve_the_expected_mean_squares_of_plain_nested_sums():
    table = simulated(np.random.default_rng(1), 4, 3, 2)
    c, p, s = table.shape
    mean = table.mean()
    a = [table[i].mean() - mean for i in range(c)]
    b = [table[:, j].mean() - mean for j in range(p)]
    d = [[table[:, j, k].mean() - table[:, j].mean() for k in range(s)] for j in range(p)]
    ab = [[table[i, j].mean() - mean - a[i] - b[j] for j in range(p)] for i in range(c)]
    squares = dict.fromkeys(TRUE, 0.0)
    for i in range(c):
        for j in range(p):
            for k in range(s):
                rest = table[i, j, k] - mean - a[i] - b[j] - d[j][k] - ab[i][j]
                effects = (a[i], b[j], d[j][k], ab[i][j], rest)
                for name, effect in zip(TRUE, effects, strict=True):
                    squares[name] += effect**2
    freedom = (c - 1, p - 1, p * (s - 1), (c - 1) * (p - 1), (c - 1) * p * (s - 1))
    ms = {name: squares[name] / df for name, df in zip(TRUE, freedom, strict=True)}
    # What each mean square is on average, in the components in the order of TRUE.
    expected = np.array(
        [
            [p * s, 0, 0, s, 1],
            [0, c * s, c, s, 1],
            [0, 0, c, 0, 1],
            [0, 0, 0, s, 1],
            [0, 0, 0, 0, 1],
        ]
    )
    solved = np.linalg.solve(expected, list(ms.values()))
    found = variance_components(table).model_dump()
    np.testing.assert_allclose(list(found.values()), solved, rtol=1e-10)


def test_what_all_candidates_share_does_not_change_what_a_search_sees():
    rng = np.random.default_rng(2)
    table = simulated(rng, 5, 4, 3)
    shared = table + 10 * rng.normal(size=(1, 4, 3))
    for name in ("candidate", "candidate_prompt", "residual"):
        found = getattr(variance_components(table), name)
        assert getattr(variance_components(shared), name) == pytest.approx(found)


@pytest.mark.parametrize("shape", [(1, 4, 2), (3, 1, 2), (3, 4, 1), (3, 4)])
def test_too_small_tables_are_refused(shape):
    with pytest.raises(ValueError, match="at least 2"):
        variance_components(np.zeros(shape))


def test_scores_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="finite"):
        variance_components(np.full((2, 2, 2), np.nan))


@pytest.mark.parametrize(("bucket", "seeds"), [(4, 1), (16, 1), (8, 3)])
def test_reliability_is_the_squared_correlation_of_bucket_means_with_the_truth(bucket, seeds):
    rng = np.random.default_rng(3)
    c = 40_000
    true = math.sqrt(TRUE["candidate"]) * rng.normal(size=c)
    crossed = math.sqrt(TRUE["candidate_prompt"] / bucket) * rng.normal(size=c)
    residual = math.sqrt(TRUE["residual"] / (bucket * seeds)) * rng.normal(size=c)
    seen = true + crossed + residual
    found = reliability(VarianceComponents(**TRUE), bucket, seeds)
    assert found == pytest.approx(np.corrcoef(true, seen)[0, 1] ** 2, abs=0.02)
    tau = kendall_tau(true[:2000], seen[:2000])
    assert expected_tau(found) == pytest.approx(tau, abs=0.03)


def test_candidates_that_do_not_differ_have_no_reliability():
    components = VarianceComponents(**TRUE | {"candidate": -0.1})
    assert reliability(components, 16, 1) == 0.0
    assert expected_gain(components, 32, 16, 1, 50) == 0.0


@pytest.mark.parametrize(("popsize", "bucket"), [(8, 16), (32, 16), (128, 2), (64, 8)])
def test_the_gain_is_the_squared_cosine_of_a_linear_step(popsize, bucket):
    rng = np.random.default_rng(4)
    n, seeds = 60, 1
    cosines = []
    for _ in range(400):
        gradient = rng.normal(size=n) * math.sqrt(TRUE["candidate"] / n)
        own = rng.normal(size=(bucket, n)) * math.sqrt(TRUE["candidate_prompt"] / n)
        x = rng.normal(size=(popsize, n))
        noise = math.sqrt(TRUE["residual"] / seeds) * rng.normal(size=(popsize, bucket))
        scores = (x @ (gradient + own).T + noise).mean(axis=1)
        step = (scores[:, None] * x).sum(axis=0)
        cosine = step @ gradient / np.linalg.norm(step) / np.linalg.norm(gradient)
        cosines.append(cosine**2)
    found = expected_gain(VarianceComponents(**TRUE), popsize, bucket, seeds, n)
    assert found == pytest.approx(np.mean(cosines), rel=0.12, abs=0.01)


def split(num_prompts=1000, dimension=60, **changed):
    return recommend(
        VarianceComponents(**TRUE | changed),
        popsize=32,
        bucket_size=16,
        seeds=1,
        dimension=dimension,
        num_prompts=num_prompts,
    )


def test_prompts_that_disagree_ask_for_larger_buckets():
    agreeing = split(candidate_prompt=0.01, residual=0.01)
    disagreeing = split(dimension=8, candidate_prompt=30.0, residual=0.1)
    assert agreeing[1] < 16 < disagreeing[1]
    assert agreeing[0] > 32 > disagreeing[0]


def test_a_split_never_costs_more_and_never_needs_more_prompts_than_there_are():
    rng = np.random.default_rng(5)
    for _ in range(200):
        changed = dict(zip(TRUE, 10 ** rng.uniform(-3, 2, size=5), strict=True))
        popsize, bucket = split(num_prompts=20, **changed)
        assert popsize * bucket <= 32 * 16
        assert bucket <= 20
        assert popsize >= 8


def test_what_promises_little_more_is_left_as_configured():
    assert split(candidate=-1.0) == (32, 16)
    components = VarianceComponents(**TRUE)
    best = split()
    gains = [expected_gain(components, *s, 1, 60) for s in (best, (32, 16))]
    assert best == (32, 16) or gains[0] > 1.1 * gains[1]

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibri.search.averaging import tail_mean
from calibri.search.cma import CMASearch
from calibri.search.method import Setup
from calibri.search.popsize import default_popsize, large_popsize
from calibri.search.racing import race_scores, survivors


def make(n=6, *, seed=0, sigma0=0.25, start=None, basis=None, bounds=(-5.0, 5.0), popsize=10):
    return CMASearch(
        Setup(
            start=np.ones(n) if start is None else start,
            basis=np.eye(n) if basis is None else basis,
            bounds=np.array([bounds] * n),
            seed=seed,
            popsize=popsize,
            sigma0=sigma0,
            learning_rate=0.0,
            tail=1.0,
        )
    )


def run(search, score, generations):
    for _ in range(generations):
        candidates = search.ask()
        search.tell(candidates, [score(x) for x in candidates])
    return search


def test_population_of_the_paper():
    # 57, 76, 114 and 216 parameters (spec section 3).
    assert [default_popsize(n) for n in (57, 76, 114, 216)] == [16, 16, 18, 20]


def test_large_populations_grow_with_the_root_of_the_dimension():
    assert [large_popsize(n) for n in (1, 23, 58, 115, 216, 482)] == [8, 40, 64, 88, 120, 176]


def test_finds_the_closed_form_optimum_of_a_rotated_ill_conditioned_quadratic():
    rng = np.random.default_rng(1)
    rotation = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    hessian = rotation @ np.diag(np.geomspace(1, 100, 6)) @ rotation.T
    optimum = np.ones(6) + rng.normal(size=6) * 0.3
    search = run(make(), lambda x: -(x - optimum) @ hessian @ (x - optimum), 150)
    np.testing.assert_allclose(search.mean, optimum, atol=1e-3)
    assert search.sigma < 0.01


def test_higher_scores_are_better():
    up = run(make(), lambda x: x.sum(), 5).mean.sum()
    down = run(make(), lambda x: -x.sum(), 5).mean.sum()
    assert down < 6 < up


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**40), generations=st.integers(1, 6))
def test_replaying_stored_scores_gives_the_same_distribution(seed, generations):
    rng = np.random.default_rng(seed)
    first, stored = make(seed=seed), []
    for _ in range(generations):
        candidates = first.ask()
        scores = rng.normal(size=len(candidates)).tolist()
        stored.append(scores)
        first.tell(candidates, scores)
    replay = make(seed=seed)
    for scores in stored:
        replay.ask()  # an interrupted run asked before
        replay.tell(replay.ask(), scores)
    assert np.array_equal(first.mean, replay.mean)
    assert first.sigma == replay.sigma
    assert np.array_equal(first.ask(), replay.ask())


def test_replaying_the_scores_of_races_gives_the_same_races():
    def race(search, stored, score):
        races = []
        for generation in range(8):
            candidates = search.ask()
            if len(stored) == generation:
                stored.append((score(candidates), score(candidates)))
            partial, whole = stored[generation]
            kept = survivors(partial, 0.5)
            search.tell(candidates, race_scores(partial, kept, whole[kept]).tolist())
            races.append(kept)
        return races, search.mean

    rng, stored = np.random.default_rng(0), []
    races, mean = race(make(), stored, lambda candidates: rng.normal(size=len(candidates)))
    again, replayed = race(make(), stored, None)
    assert again == races
    assert np.array_equal(mean, replayed)


def test_three_candidates_are_no_population():
    with pytest.raises(ValueError, match="at least 4"):
        make(popsize=3)


def test_generations_and_seeds_draw_differently():
    one, other = make(seed=0), make(seed=1)
    assert not np.array_equal(one.ask(), other.ask())
    before = one.ask()
    one.tell(before, [0.0] * 10)
    assert not np.array_equal(one.ask(), before)


def test_global_random_state_has_no_say():
    np.random.seed(0)
    first = make().ask()
    np.random.seed(1)
    assert np.array_equal(first, make().ask())


def test_candidates_stay_inside_the_bounds():
    search = make(sigma0=2.0, bounds=(0.9, 1.1), popsize=30)
    candidates = np.array(search.ask())
    assert candidates.min() >= 0.9
    assert candidates.max() <= 1.1


def test_scale_sets_the_step_of_each_coordinate():
    scale = np.array([0.1, 1.0, 4.0])
    candidates = np.array(make(3, basis=np.diag(scale), bounds=(-99.0, 99.0), popsize=400).ask())
    np.testing.assert_allclose(candidates.std(axis=0), 0.25 * scale, rtol=0.15)
    np.testing.assert_allclose(candidates.mean(axis=0), 1.0, atol=0.2)


def test_a_mixed_basis_shapes_the_first_population_and_stays_inside_the_bounds():
    basis = np.array([[1.0, 0.0, 0.0], [0.0, 3.0, 3.0], [0.0, -2.0, -3.0]])
    wide = np.array(make(3, basis=basis, bounds=(-99.0, 99.0), popsize=4000).ask())
    np.testing.assert_allclose(np.cov(wide.T), 0.25**2 * basis @ basis.T, atol=0.08)
    narrow = np.array(make(3, basis=basis, bounds=(0.5, 1.5), popsize=50, sigma0=1.0).ask())
    assert narrow.min() >= 0.5
    assert narrow.max() <= 1.5


def test_the_basis_does_not_move_the_optimum():
    basis = np.array([[1.0, 0.0, 0.0], [0.0, 3.0, 3.0], [0.0, -2.0, -3.0]])
    optimum = np.array([1.2, 0.7, 1.1])
    search = run(make(3, basis=basis), lambda x: -((x - optimum) @ (x - optimum)), 120)
    np.testing.assert_allclose(search.mean, optimum, atol=1e-3)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_are_refused_and_change_nothing(bad):
    search = make()
    candidates = search.ask()
    with pytest.raises(ValueError, match="finite"):
        search.tell(candidates, [bad] + [0.0] * 9)
    assert search.generation == 0
    assert np.array_equal(search.ask(), candidates)


def test_the_wrong_number_of_scores_is_refused():
    search = make()
    with pytest.raises(ValueError, match="Expected 10"):
        search.tell(search.ask(), [0.0] * 3)


def test_tail_mean_averages_the_last_part():
    means = [np.array([float(i)]) for i in range(8)]
    assert tail_mean(means, 0.25) == 6.5
    assert tail_mean(means, 0.01) == 7.0
    assert tail_mean(means, 1.0) == 3.5


def test_tail_mean_is_closer_to_the_optimum_than_the_last_mean_under_noise():
    errors = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        search, means = make(seed=seed, start=np.full(6, 1.3)), []
        for _ in range(60):
            candidates = search.ask()
            noisy = [-((x - 1) @ (x - 1)) + rng.normal() * 0.3 for x in candidates]
            search.tell(candidates, noisy)
            means.append(search.mean)
        errors.append([np.linalg.norm(tail_mean(means, 0.25) - 1), np.linalg.norm(means[-1] - 1)])
    averaged, last = np.mean(errors, axis=0)
    assert averaged < last

"""What holds for every registered method, whatever it does."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibri.errors import ConfigError
from calibri.search import METHODS, Setup, method_info, methods
from calibri.search.averaging import tail_mean

N = 5
BASIS = np.array(
    [
        [1.0, 0.5, 0.0, 0.0, 0.0],
        [0.0, 1.0, 0.0, 0.0, 0.0],
        [0.0, 0.0, 2.0, 1.5, 0.0],
        [0.0, 0.0, -1.0, -1.5, 0.0],
        [0.0, 0.0, 0.0, 0.0, 0.3],
    ]
)
every_method = pytest.mark.parametrize("name", METHODS)


def make(name, *, seed=0, bounds=(-1.0, 2.0), sigma0=0.15, tail=0.25):
    info = method_info(name)
    search = info.make(
        Setup(
            start=np.ones(N),
            basis=BASIS,
            bounds=np.tile(bounds, (N, 1)),
            seed=seed,
            popsize=info.popsize(N),
            sigma0=sigma0,
            learning_rate=sigma0 / 3,
            tail=tail,
        )
    )
    return info, search


def random_feedback(info, candidates, rng):
    shape = (len(candidates), N) if info.uses_gradients else len(candidates)
    return rng.normal(size=shape)


@every_method
@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**40),
    low=st.floats(-3.0, 0.99),
    width=st.floats(0.02, 4.0),
    sigma0=st.floats(0.01, 2.0),
    generations=st.integers(0, 6),
)
def test_what_it_asks_for_and_returns_lies_within_the_bounds(
    name, seed, low, width, sigma0, generations
):
    high = max(1.0, low + width)
    info, search = make(name, seed=seed, bounds=(low, high), sigma0=sigma0)
    rng = np.random.default_rng(seed)
    for generation in range(generations + 1):
        candidates = search.ask()
        for vector in (*candidates, search.mean, search.result()):
            assert vector.shape == (N,)
            assert vector.dtype == np.float64
            # Averages of numbers at a bound round.
            assert low - 1e-12 <= vector.min() <= vector.max() <= high + 1e-12
        assert search.sigma > 0
        if generation < generations:
            search.tell(candidates, random_feedback(info, candidates, rng))


@every_method
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**40), generations=st.integers(1, 6))
def test_what_it_was_told_and_its_seed_decide_everything(name, seed, generations):
    info, first = make(name, seed=seed)
    rng, stored = np.random.default_rng(seed), []
    for _ in range(generations):
        candidates = first.ask()
        stored.append(random_feedback(info, candidates, rng))
        first.tell(candidates, stored[-1])
    _, again = make(name, seed=seed)
    for feedback in stored:
        again.ask()  # an interrupted run asked before
        again.tell(again.ask(), feedback)
    assert np.array_equal(first.ask(), again.ask())
    assert np.array_equal(first.mean, again.mean)
    assert np.array_equal(first.result(), again.result())
    assert first.sigma == again.sigma


@every_method
def test_methods_that_draw_draw_by_their_seed_and_anew_in_every_generation(name):
    info, search = make(name)
    before = search.ask()
    other = make(name, seed=1)[1].ask()
    search.tell(before, np.zeros((1, N)) if info.uses_gradients else np.zeros(len(before)))
    # What follows gradients has no random state, and stays where they vanish.
    assert np.array_equal(before, other) == info.uses_gradients
    assert np.array_equal(before, search.ask()) == info.uses_gradients


@every_method
@pytest.mark.parametrize("seed", range(3))
def test_it_climbs_a_smooth_hill(name, seed):
    top = np.array([1.5, 0.6, 1.8, 0.2, 1.3])
    info, search = make(name, seed=seed)

    def height(vector):
        return -float((vector - top) @ (vector - top))

    for _ in range(60 * info.updates(8 * info.popsize(N), 8, 0)):
        candidates = search.ask()
        slopes = np.array([2 * (top - vector) for vector in candidates])
        scores = np.array([height(vector) for vector in candidates])
        search.tell(candidates, slopes if info.uses_gradients else scores)
    # Nothing but luck helps the one that does not learn.
    left = 0.9 if name == "random" else 0.05
    assert height(search.result()) > left * height(np.ones(N))


@every_method
def test_before_it_is_told_anything_it_returns_its_start(name):
    np.testing.assert_array_equal(make(name)[1].result(), np.ones(N))


@every_method
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_feedback_that_is_not_finite_is_refused_and_changes_nothing(name, bad):
    info, search = make(name)
    candidates = search.ask()
    feedback = random_feedback(info, candidates, np.random.default_rng(0))
    feedback.flat[-1] = bad
    with pytest.raises(ValueError, match="finite"):
        search.tell(candidates, feedback)
    np.testing.assert_array_equal(search.ask(), candidates)
    np.testing.assert_array_equal(search.result(), np.ones(N))


@every_method
def test_the_wrong_amount_of_feedback_is_refused(name):
    _, search = make(name)
    candidates = search.ask()
    with pytest.raises(ValueError, match="Expected"):
        search.tell(candidates, np.zeros(len(candidates) + 1))


@pytest.mark.parametrize("name", ["reference", "random"])
def test_the_best_candidate_of_the_last_generation_is_returned(name):
    _, search = make(name)
    for best in (3, 1):
        candidates = search.ask()
        search.tell(candidates, np.arange(len(candidates)) == best)
        np.testing.assert_array_equal(search.result(), candidates[best])


@pytest.mark.parametrize("name", ["calibri", "gradient"])
def test_the_average_of_the_last_means_is_returned(name):
    info, search = make(name, tail=0.5)
    rng, means = np.random.default_rng(0), []
    for _ in range(6):
        candidates = search.ask()
        search.tell(candidates, random_feedback(info, candidates, rng))
        means.append(search.mean)
        np.testing.assert_array_equal(search.result(), tail_mean(means, 0.5))


def test_a_parent_stays_until_a_child_is_no_worse_and_steps_grow_and_shrink():
    _, search = make("one_plus_one")
    parent, child = search.ask()
    search.tell([parent, child], [1.0, 0.5])
    np.testing.assert_array_equal(search.result(), parent)
    shorter = search.sigma
    assert shorter < 0.15
    _, child = search.ask()
    search.tell([parent, child], [0.5, 0.5])
    np.testing.assert_array_equal(search.result(), child)
    assert search.sigma > shorter
    # One success in five leaves the step as it is.
    for won in (True, False, False, False, False):
        search.tell(search.ask(), [0.0, 1.0 if won else -1.0])
    before = search.sigma
    for won in (False, True, False, False, False):
        search.tell(search.ask(), [0.0, 1.0 if won else -1.0])
    assert search.sigma == pytest.approx(before)


def test_nothing_moves_a_random_search():
    _, search = make("random", bounds=(-9.0, 9.0))
    drawn = []
    for generation in range(200):
        candidates = search.ask()
        drawn += candidates
        search.tell(candidates, np.full(len(candidates), generation))
    assert search.sigma == 0.15
    np.testing.assert_allclose(np.mean(drawn, axis=0), 1.0, atol=0.05)
    np.testing.assert_allclose(np.cov(np.transpose(drawn)), 0.15**2 * BASIS @ BASIS.T, atol=0.01)


def test_every_file_is_a_registered_method():
    files = {path.stem for path in Path(methods.__file__).parent.glob("[!_]*.py")}
    assert files == set(METHODS)
    assert [method_info(name).name for name in METHODS] == list(METHODS)


def test_an_unknown_method_is_refused_with_the_known_ones():
    with pytest.raises(
        ConfigError, match=r"'genetic'.*calibri, reference, gradient, grpo, random, one_plus_one"
    ):
        method_info("genetic")

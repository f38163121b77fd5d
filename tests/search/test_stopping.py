import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibri.search.error_rate import fewest_prompts
from calibri.search.stopping import _t_quantile, reached_plateau, select


def stop(gains, window=10, **options):
    return next(
        (g for g in range(1, len(gains) + 1) if reached_plateau(gains[:g], window, **options)), None
    )


def test_quantiles_are_those_of_the_t_distribution():
    # Tables of Student's t: (probability, degrees of freedom).
    table = {(0.95, 18): 1.7341, (0.995, 18): 2.8784, (0.9995, 18): 3.9216, (0.999, 60): 3.2317}
    for (probability, freedom), expected in table.items():
        assert _t_quantile(probability, freedom) == pytest.approx(expected, rel=1e-3)


@pytest.mark.slow
def test_a_rise_at_the_tolerance_ends_a_search_as_rarely_as_stated():
    # The hardest case that is not a plateau: over any half, the line rises by exactly a fifth of
    # the mean gain, whatever the number of generations. A power of time does so.
    exponent = _power_with_rise(0.2)
    truth = np.arange(1, 301) ** exponent
    ended = 0
    for seed in range(400):
        noise = np.random.default_rng(seed).normal(size=300) * 0.3
        ended += stop((truth + noise).tolist()) is not None
    # 5% are allowed; 400 searches put 3.3 standard errors at 8.6%.
    assert ended / 400 < 0.086


def _power_with_rise(share):
    x = np.linspace(0.5, 1, 2001)
    centred = x - x.mean()

    def rise(exponent):
        y = x**exponent
        return (centred @ y) / (centred @ centred) * 0.5 / y.mean()

    grid = np.linspace(0.01, 1, 1000)
    return grid[int(np.argmin([abs(rise(exponent) - share) for exponent in grid]))]


def test_a_plateau_ends_a_search_and_a_rise_does_not():
    rng = np.random.default_rng(0)
    flat, rising = [], []
    for _ in range(40):
        noise = rng.normal(size=200) * 0.1
        flat.append(stop((1 - np.exp(-np.arange(200) / 8) + noise).tolist()))
        rising.append(stop((np.arange(200) / 100 + noise).tolist()))
    assert all(generation is not None for generation in flat)
    assert all(generation is None for generation in rising)


def test_no_look_before_twice_the_window_nor_between_looks():
    flat = [1.0 + 1e-3 * (g % 2) for g in range(100)]
    looks = [g for g in range(1, 101) if reached_plateau(flat[:g], 10)]
    assert looks == [20, 24, 29, 35, 42, 51, 62, 75, 90]


def test_a_search_without_gain_is_no_plateau():
    rng = np.random.default_rng(1)
    ended = [stop((rng.normal(size=150)).tolist()) for _ in range(100)]
    assert sum(generation is not None for generation in ended) <= 10


@settings(max_examples=30, deadline=None)
@given(scale=st.floats(0.01, 100), seed=st.integers(0, 999))
def test_units_of_the_reward_do_not_matter(scale, seed):
    gains = 1 + np.random.default_rng(seed).normal(size=60) * 0.2
    assert stop((gains * scale).tolist()) == stop(gains.tolist())


def test_the_best_of_many_worthless_checkpoints_is_not_returned():
    # Thirty checkpoints, all alike in truth to the original, on prompts they share.
    returned = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        shared = rng.normal(size=(1, 60))
        table = 0.6 * shared + 0.8 * rng.normal(size=(30, 60))
        returned += select(table, seed, resamples=400) is not None
    # 5% are stated; 300 draws put 3.3 standard errors at 9.2%. Uncorrected it would be over half.
    assert returned / 300 < 0.092


def test_a_real_gain_is_returned_and_the_largest_of_them():
    rng = np.random.default_rng(0)
    truth = np.array([0.0, 0.4, 1.0, 0.5])[:, None]
    chosen = [select(truth + rng.normal(size=(4, 100)), seed) for seed in range(20)]
    assert chosen == [2] * 20


def test_a_lucky_outlier_is_no_gain():
    # Its mean is the largest, but one prompt makes all of it.
    steady = np.full(50, 0.2) + np.random.default_rng(0).normal(size=50) * 0.1
    lucky = np.zeros(50)
    lucky[0] = 100.0
    assert select(np.stack([lucky, steady]), 0) == 1


def test_vetoed_checkpoints_are_not_returned():
    table = np.full((3, 20), 1.0) + np.random.default_rng(0).normal(size=(3, 20)) * 0.1
    table[2] += 1
    assert select(table, 0) == 2
    table[2] = -np.inf
    assert select(table, 0) in (0, 1)
    assert select(np.full((3, 20), -np.inf), 0) is None
    assert select(np.zeros((0, 20)), 0) is None


def test_equal_vectors_are_no_gain():
    assert select(np.zeros((2, 20)), 0) is None


def test_what_is_not_eligible_does_not_excuse_a_worse_one():
    # The outlier's mean is the largest, and its error so large that anything is within it.
    noise = np.random.default_rng(0).normal(size=(3, 50)) * 0.1
    outlier = np.zeros(50)
    outlier[0] = 100.0
    assert select(np.stack([outlier, 1 + noise[1], 0.2 + noise[2]]), 0) == 1


def test_a_choice_depends_on_its_arguments_alone():
    # Close to the threshold, and with few draws, so that other draws would often decide otherwise.
    table = np.random.default_rng(3).normal(size=(5, 40)) + 0.03
    choices = [select(table, seed, resamples=20) for seed in range(40)]
    assert choices == [select(table.copy(), seed, resamples=20) for seed in range(40)]
    assert len(set(choices)) > 1


def test_one_prompt_is_refused():
    with pytest.raises(ValueError, match="2 or more prompts"):
        select(np.zeros((3, 1)), 0)


def test_a_later_checkpoint_is_preferred_while_it_is_not_clearly_behind():
    prompts = np.random.default_rng(0).normal(size=(3, 400))
    close = prompts + np.array([[0.55], [0.56], [0.53]])
    far = prompts + np.array([[0.55], [0.86], [0.53]])
    assert (select(close, 0), select(far, 0)) == (2, 1)


@pytest.mark.parametrize(("error_rate", "fewest"), [(0.05, 5), (0.2, 3)])
def test_the_fewest_prompts_can_choose_and_fewer_cannot(error_rate, fewest):
    assert fewest_prompts(error_rate) == fewest
    chosen = {count: 0 for count in range(2, fewest + 1)}
    for seed in range(40):
        # Whole numbers, whose sums are exact: ties with chance stay ties.
        gains = np.random.default_rng(seed).integers(8, 16, size=fewest).astype(np.float64)
        for count in chosen:
            chosen[count] += select(gains[None, :count], seed, error_rate=error_rate) is not None
    assert chosen.pop(fewest) == 40
    # The chance of all signs alike is estimated, by draws: rarely it seems rarer than it is.
    assert max(chosen.values()) <= 4

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from calibri.errors import RewardError
from calibri.results import Figure
from calibri.seeds import derive_seed
from calibri.statistics import (
    bootstrap_mean,
    crossed_mean,
    holm,
    paired_difference,
    sign_flip_test,
)

T_QUANTILE_99 = 1.984217  # 97.5% quantile of Student's t with 99 degrees of freedom

tables = hnp.arrays(
    np.float64,
    hnp.array_shapes(min_dims=1, max_dims=2, min_side=2, max_side=12),
    elements=st.floats(-1e6, 1e6),
)


def test_the_interval_of_normal_data_is_the_t_interval() -> None:
    for seed in range(20):
        values = np.random.default_rng(seed).normal(3.0, 2.0, size=100)
        figure = bootstrap_mean(values, seed, resamples=20_000)
        half = T_QUANTILE_99 * values.std(ddof=1) / math.sqrt(100)
        assert figure.mean == pytest.approx(values.mean(), abs=1e-12)
        assert figure.n == 100
        assert figure.low == pytest.approx(values.mean() - half, abs=0.1 * half)
        assert figure.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def coverage(prompt_spread: float, image_spread: float, cluster: bool) -> float:
    """Share of 300 simulated data sets (60 prompts, 8 images) whose interval holds the truth."""
    hits = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        values = 1.5 + prompt_spread * rng.normal(size=(60, 1))
        values = values + image_spread * rng.normal(size=(60, 8))
        figure = bootstrap_mean(values if cluster else values.ravel(), seed, resamples=1000)
        hits += figure.low <= 1.5 <= figure.high
    return hits / 300


def test_intervals_cover_the_truth_about_95_times_in_100() -> None:
    assert 0.90 <= coverage(0.0, 1.0, cluster=False) <= 0.99
    assert 0.90 <= coverage(1.0, 0.5, cluster=True) <= 0.99


def test_resampling_images_instead_of_prompts_would_not_cover() -> None:
    # The oracle for the test above: images of one prompt are alike and must not count as many.
    assert coverage(1.0, 0.5, cluster=False) < 0.70


def test_a_table_counts_as_its_prompt_means() -> None:
    table = np.random.default_rng(0).normal(size=(30, 4))
    assert bootstrap_mean(table, 5) == bootstrap_mean(table.mean(axis=1), 5)


def test_figures_depend_on_the_seed_alone() -> None:
    values = np.random.default_rng(0).normal(size=50)
    state = np.random.get_state()[1].copy()
    assert bootstrap_mean(values, 1) == bootstrap_mean(values, 1)
    assert bootstrap_mean(values, 1) != bootstrap_mean(values, 2)
    assert np.array_equal(np.random.get_state()[1], state)


def test_many_prompts_are_resampled_in_blocks_as_well() -> None:
    values = np.random.default_rng(0).normal(size=30_000)
    figure = bootstrap_mean(values, 0, resamples=200)
    half = 1.96 * values.std() / math.sqrt(values.size)
    assert (figure.high - figure.low) / 2 == pytest.approx(half, rel=0.25)


@given(values=tables, shift=st.floats(-1e3, 1e3))
@settings(deadline=None)
def test_intervals_move_with_the_data_and_stay_within_it(values: np.ndarray, shift: float) -> None:
    figure = bootstrap_mean(values, 0, resamples=50)
    moved = bootstrap_mean(values + shift, 0, resamples=50)
    near = {"abs": 1e-8 * (1 + np.abs(values).max() + abs(shift))}
    assert values.min() - near["abs"] <= figure.low <= figure.high <= values.max() + near["abs"]
    assert moved.mean - shift == pytest.approx(figure.mean, **near)
    assert moved.low - shift == pytest.approx(figure.low, **near)
    assert moved.high - shift == pytest.approx(figure.high, **near)


@given(values=tables)
@settings(deadline=None)
def test_paired_differences_change_sign_with_the_order(values: np.ndarray) -> None:
    other = np.sin(values)
    forward = paired_difference(values, other, 3, resamples=50)
    backward = paired_difference(other, values, 3, resamples=50)
    near = {"abs": 1e-8 * (1 + np.abs(values).max())}
    assert forward.mean == pytest.approx(-backward.mean, **near)
    assert (forward.low, forward.high) == pytest.approx((-backward.high, -backward.low), **near)
    assert forward.mean == pytest.approx(values.mean() - other.mean(), **near)


def test_pairing_removes_what_both_share() -> None:
    rng = np.random.default_rng(0)
    shared, noise = rng.normal(0, 10, size=(64, 2)), rng.normal(0, 0.1, size=(64, 2))
    figure = paired_difference(shared + 0.5 + noise, shared, 0)
    assert 0.4 < figure.low < 0.5 < figure.high < 0.6


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (1.0, "shape"),
        (np.ones((3, 2, 2)), "shape"),
        ([], "at least 2 prompts; got 0"),
        ([1.0], "at least 2 prompts; got 1"),
        (np.ones((1, 9)), "at least 2 prompts; got 1"),
        (np.ones((4, 0)), "at least one image"),
        ([1.0, math.nan, math.inf], "2 of 3 are not"),
    ],
)
def test_values_without_an_interval_are_refused(values: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        bootstrap_mean(values, 0)


def test_pairs_of_two_shapes_are_refused() -> None:
    # (3, 1) and (3,) would broadcast silently.
    with pytest.raises(ValueError, match=r"\(3, 1\) and \(3,\)"):
        paired_difference(np.ones((3, 1)), np.ones(3), 0)


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_pairs_that_are_not_finite_are_refused_without_a_warning(bad: float) -> None:
    with pytest.raises(ValueError, match="1 of 2 are not"):
        paired_difference([1.0, bad], [1.0, bad], 0)


@pytest.mark.filterwarnings("error")
@given(hnp.arrays(np.float64, (6, 2), elements=st.floats(-1.79e308, 1.79e308)))
@settings(deadline=None)
def test_means_of_any_finite_scores_are_finite(table) -> None:
    figure = bootstrap_mean(table, 0, resamples=50)
    assert np.isfinite([figure.mean, figure.low, figure.high]).all()
    rounding = 1e-12 * (np.abs(table).max() / 2)
    assert table.min() / 2 - rounding <= figure.low / 2 <= figure.high / 2
    assert figure.high / 2 <= table.max() / 2 + rounding
    exact = sum(map(Fraction, table.ravel().tolist())) / table.size
    assert figure.mean == pytest.approx(float(exact), rel=1e-9, abs=1e-9 * np.abs(table / 12).max())


@pytest.mark.filterwarnings("error")
def test_differences_beyond_all_numbers_are_refused_in_words() -> None:
    huge = [1.7e308, 1.6e308, 1.7e308]
    assert paired_difference(huge, np.zeros(3), 0).mean == pytest.approx(5 / 3 * 1e308)
    with pytest.raises(RewardError, match="Check the reward"):
        paired_difference(huge, np.negative(huge), 0)


@settings(max_examples=30, deadline=None)
@given(hnp.arrays(np.float64, (5, 2), elements=st.floats(-1e6, 1e6)))
def test_scores_of_ordinary_size_are_not_scaled(table) -> None:
    rng = np.random.default_rng(derive_seed(3, "bootstrap"))
    means = table.mean(axis=1)
    expected = means[rng.integers(5, size=(40, 5))].mean(axis=1)
    figure = bootstrap_mean(table, 3, resamples=40)
    assert figure.mean == means.mean()
    assert [figure.low, figure.high] == np.quantile(expected, [0.025, 0.975]).tolist()


@given(p=hnp.arrays(np.float64, st.integers(1, 8), elements=st.floats(0.001, 1)))
def test_holm_rejects_what_its_steps_reject(p):
    """Oracle: the procedure of the paper, step by step at each level."""
    adjusted = holm(p)
    for level in (0.01, 0.05, 0.2, 0.7):
        rejected = set()
        for step, index in enumerate(np.argsort(p, kind="stable")):
            if p[index] * (len(p) - step) > level:
                break
            rejected.add(int(index))
        assert set(np.flatnonzero(adjusted <= level)) == rejected
    assert (adjusted >= p).all()
    assert (adjusted <= 1).all()


def test_sign_flips_of_few_prompts_are_counted_as_all_of_them_would_be():
    """Oracle: every one of the 2^8 flips."""
    rng = np.random.default_rng(3)
    table = rng.standard_normal((4, 8)) + 0.4
    signs = np.array(list(itertools.product((-1, 1), repeat=8)))
    exact = (np.abs(signs @ table.T) >= np.abs(table.sum(axis=1)) - 1e-9).mean(axis=0)
    assert sign_flip_test(table, 0) == pytest.approx(exact, abs=0.015)


@given(seed=st.integers(0, 2**32))
def test_nothing_but_zeros_is_no_difference(seed):
    assert sign_flip_test(np.zeros((2, 5)), seed, flips=100).tolist() == [1.0, 1.0]


def test_p_values_are_never_zero_and_small_enough_to_correct_for_their_number():
    table = np.ones((1000, 64))
    p = sign_flip_test(table, 0)
    assert (p > 0).all()
    assert (holm(p) < 0.05).all()


def test_differences_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="finite"):
        sign_flip_test([[1.0, np.nan]], 0)


@given(
    searches=st.integers(2, 6),
    prompts=st.integers(2, 30),
    seed=st.integers(0, 2**32),
    shift=st.floats(-100, 100),
)
def test_a_crossed_mean_moves_with_its_values_and_depends_on_no_order(
    searches, prompts, seed, shift
):
    rng = np.random.default_rng(seed)
    table = rng.standard_normal((searches, prompts))
    found, moved = crossed_mean(table), crossed_mean(table + shift)
    assert found.mean == pytest.approx(table.mean(), abs=1e-9)
    assert moved.low - shift == pytest.approx(found.low, abs=1e-6)
    mixed = table[rng.permutation(searches)][:, rng.permutation(prompts)]
    assert crossed_mean(mixed).high == pytest.approx(found.high)
    wider = crossed_mean(table, error_rate=0.01)
    assert wider.low <= found.low <= found.high <= wider.high


@pytest.mark.parametrize("spreads", [(1.0, 0.0, 0.1), (0.0, 1.0, 0.1), (0.5, 1.0, 2.0)])
def test_crossed_intervals_mostly_hold_the_mean_whatever_varies(spreads):
    of_search, of_prompt, rest = spreads
    rng, held = np.random.default_rng(1), 0
    for _ in range(300):
        table = (
            of_search * rng.standard_normal((3, 1))
            + of_prompt * rng.standard_normal((1, 40))
            + rest * rng.standard_normal((3, 40))
        )
        found = crossed_mean(table)
        held += found.low <= 0.0 <= found.high
    assert held >= 275


def test_a_crossed_mean_of_one_search_is_that_over_prompts():
    values = np.random.default_rng(0).standard_normal(20)
    half = 2.09302 * values.std(ddof=1) / 20**0.5  # table of the t distribution: 19 degrees, 0.975
    found = crossed_mean([values])
    assert found.n == 20
    assert found.high - found.mean == pytest.approx(half, rel=1e-4)
    assert crossed_mean(np.ones((3, 4))) == Figure(mean=1.0, low=1.0, high=1.0, n=4)


@pytest.mark.parametrize("bad", [[1.0, 2.0], [[1.0], [2.0]], [[1.0, np.nan]], np.ones((0, 3))])
def test_values_without_a_crossed_mean_are_refused(bad):
    with pytest.raises(ValueError, match=r"finite|2 prompts"):
        crossed_mean(bad)

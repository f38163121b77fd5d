"""Gains over search seeds and prompts, and what is concluded from them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibri.experiments.trials import every, judged, over_searches, surely
from calibri.results import Figure

CLAIMS = st.lists(st.sampled_from([True, False, None]), min_size=1, max_size=6)


@given(CLAIMS)
def test_all_is_true_only_where_all_are_and_false_where_one_is_not(claims):
    found = every(iter(claims))
    assert (found is True) == all(claim is True for claim in claims)
    assert (found is False) == any(claim is False for claim in claims)


@given(CLAIMS)
def test_nothing_is_confirmed_that_is_not_sure(claims):
    answer = judged(*claims)
    assert (answer == "confirmed") == all(claims)
    assert ("confirmed" in answer.split()) == any(claims) or answer == "not confirmed"
    assert (answer == "not decidable") == all(claim is None for claim in claims)


@given(st.lists(st.floats(-10, 10), min_size=3, max_size=3).map(sorted), st.integers(2, 9))
def test_a_difference_is_sure_where_its_interval_leaves_out_0(bounds, n):
    low, mean, high = bounds
    found = surely(Figure(mean=mean, low=low, high=high, n=n))
    assert found is (True if low > 0 else False if high < 0 else None)


def test_one_search_alone_says_nothing_for_sure():
    figure = over_searches([0.5])
    assert (figure.mean, figure.n) == (0.5, 1)
    assert surely(figure) is None


@pytest.mark.parametrize("count", [2, 3, 10])
def test_the_interval_over_searches_is_that_of_students_t(count):
    values = np.random.default_rng(0).standard_normal(count)
    quantiles = {2: 12.7062, 3: 4.30265, 10: 2.26216}  # tables of the t distribution, 0.975
    half = quantiles[count] * values.std(ddof=1) / count**0.5
    found = over_searches(values)
    assert found.high - found.mean == pytest.approx(half, rel=1e-4)
    assert found.mean - found.low == pytest.approx(half, rel=1e-4)

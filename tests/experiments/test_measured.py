"""Conditions on shared prompts and noise."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibri.coefficients.coefficients import Coefficients
from calibri.errors import RewardError
from calibri.experiments.measured import Measured, _by_prompt, with_scale

NAMES = ("a.0", "a.1", "b.0")


@given(name=st.sampled_from(NAMES), value=st.floats(-1, 2), members=st.integers(1, 3))
def test_a_scale_is_set_for_every_member_and_no_other_scale_changes(name, value, members):
    ones = dict.fromkeys(NAMES, 1.0)
    original = Coefficients(
        granularity="block",
        scales=tuple(dict(ones) for _ in range(members)),
        output_weights=(1.0,) * members,
        start_weights=(1.0,) * members,
    )
    changed = with_scale(original, name, value)
    assert all(knot == ones | {name: value} for knot in changed.scales)
    assert with_scale(changed, name, 1.0) == original


def test_a_prompt_that_failed_anywhere_is_left_out_everywhere():
    table = np.arange(24.0).reshape(2, 12)
    other = table.copy()
    other[1, 5] = np.nan  # the third of six prompts
    kept = _by_prompt({"one": table, "two": other}, 6, 2)
    assert kept["one"].shape == kept["two"].shape == (2, 5)
    assert kept["one"][0].tolist() == [0.5, 2.5, 6.5, 8.5, 10.5]


def test_one_prompt_that_is_left_is_too_few_for_an_interval():
    table = np.full((2, 3), np.nan)
    table[:, 0] = 1.0
    with pytest.raises(RewardError, match="1 of 3 prompts"):
        _by_prompt({"one": table}, 3, 1)


def test_differences_are_of_the_same_prompts():
    scores = {"one": np.array([[1.0, 2.0, 3.0], [1.5, 2.5, 3.5]]), "two": np.zeros((2, 3))}
    measured = Measured(("original", "other"), scores, "one", seed=0)
    found = measured.difference("other", "original")
    assert (found.mean, found.low, found.high, found.n) == (0.5, 0.5, 0.5, 3)
    assert measured.difference("original", "other").mean == -0.5
    assert measured.difference("other", "original", "two").mean == 0.0

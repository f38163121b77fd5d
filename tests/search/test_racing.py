import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibri.search.buckets import bucket_size
from calibri.search.racing import first_prompts, images_of_generation, race_scores, survivors

scores = st.lists(st.floats(-100, 100), min_size=4, max_size=40).map(np.array)
shares = st.floats(0.01, 1.0)


@settings(deadline=None)
@given(partial=scores, keep=shares)
def test_no_one_who_leaves_was_better_than_one_who_stays(partial, keep):
    kept = survivors(partial, keep)
    left = np.setdiff1d(np.arange(len(partial)), kept)
    assert kept == sorted(set(kept))
    assert len(kept) >= keep * len(partial) - 1e-6
    assert len(kept) - 1 < keep * len(partial)
    assert len(left) == 0 or partial[left].max() <= partial[kept].min()


@settings(deadline=None)
@given(partial=scores, keep=shares, shift=st.floats(-50, 50), data=st.data())
def test_told_scores_rank_survivors_first_and_the_others_as_they_were(partial, keep, shift, data):
    kept = survivors(partial, keep)
    full = np.array(
        data.draw(st.lists(st.floats(-100, 100), min_size=len(kept), max_size=len(kept)))
    )
    told = race_scores(partial, kept, full)
    left = np.setdiff1d(np.arange(len(partial)), kept)
    assert np.array_equal(told[kept], full)
    if len(left):
        assert told[left].max() < full.min()
        assert told[left].max() == pytest.approx(full.min(), abs=1e-9)
        np.testing.assert_allclose(np.diff(told[left]), np.diff(partial[left]), atol=1e-9)
    # A harder bucket is harder for all, so who leaves and the order do not depend on it.
    np.testing.assert_allclose(
        race_scores(partial, kept, full + shift), told + shift, rtol=1e-9, atol=1e-9
    )


def test_of_equal_candidates_the_first_stay():
    assert survivors(np.zeros(8), 0.5) == [0, 1, 2, 3]
    # 0.07 * 100 is a hair above 7 in floating point.
    assert len(survivors(np.zeros(100), 0.07)) == 7


def test_without_a_race_scores_are_told_as_they_are():
    partial = np.array([3.0, 1.0, 2.0])
    assert survivors(partial, 1.0) == [0, 1, 2]
    assert np.array_equal(race_scores(partial, [0, 1, 2], partial), partial)
    assert first_prompts(16, 0.25, 1.0) == 16


@pytest.mark.parametrize("keep", [0.0, -0.5, 1.01])
def test_a_share_out_of_range_is_refused(keep):
    with pytest.raises(ValueError, match="share"):
        survivors(np.zeros(8), keep)


def test_bad_scores_are_refused():
    with pytest.raises(ValueError, match="finite"):
        survivors(np.array([1.0, np.nan]), 0.5)
    with pytest.raises(ValueError, match="Expected 2"):
        race_scores(np.zeros(4), [0, 1], np.zeros(3))


@settings(deadline=None)
@given(
    popsize=st.integers(4, 100),
    bucket=st.integers(1, 64),
    first=st.floats(0.01, 1.0),
    keep=shares,
)
def test_images_are_those_of_both_stages_and_of_the_original(popsize, bucket, first, keep):
    before = first_prompts(bucket, first, keep)
    assert 1 <= before <= bucket
    kept = len(survivors(np.zeros(popsize), keep))
    counted = popsize * before + kept * (bucket - before) + bucket
    assert images_of_generation(popsize, bucket, first, keep) == counted
    assert counted <= (popsize + 1) * bucket


def test_the_race_of_the_default_costs_three_fifths():
    # 64 candidates on 2 of 8 prompts, 32 on the other 6, the original on all 8.
    assert images_of_generation(64, 8, 0.25, 0.5) == 328
    assert images_of_generation(64, 8, 0.25, 1.0) == 520


@settings(deadline=None)
@given(first=st.integers(1, 64), more=st.integers(0, 64), generations=st.integers(1, 300))
def test_buckets_grow_from_the_first_to_the_last(first, more, generations):
    sizes = [bucket_size(first, first + more, g, generations) for g in range(generations + 5)]
    assert sizes[0] == first or generations == 1
    assert sizes[generations - 1 if generations > 1 else 1] == first + more
    assert sizes == sorted(sizes)
    assert set(sizes[generations:]) == {first + more}


def test_buckets_grow_by_the_same_factor():
    sizes = [bucket_size(100, 1600, g, 5) for g in range(5)]
    assert sizes == [100, 200, 400, 800, 1600]


def test_a_race_has_a_survivor_however_small_the_share():
    assert survivors(np.arange(4.0), 1e-12) == [3]

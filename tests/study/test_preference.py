"""Intervals, agreement and votes still needed, against simulations and published figures."""

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from calibri.study.preference import Ballot, agreement, further_participants, share


def ballot(values, people, prompts):
    return Ballot(
        np.asarray(values, dtype=np.float64),
        np.asarray(people, dtype=np.int64),
        np.asarray(prompts, dtype=np.int64),
    )


def simulated(rng, people, prompts, of_people, of_prompts, mean=0.0, ties=0.2, answered=1.0):
    """Votes of crossed participants and prompts with effects of both, in logits."""
    logits = (
        mean + of_people * rng.normal(size=(people, 1)) + of_prompts * rng.normal(size=(1, prompts))
    )
    won = rng.random((people, prompts)) < 1 / (1 + np.exp(-logits))
    values = np.where(rng.random(won.shape) < ties, 0.5, won)
    there = rng.random(won.shape) < answered
    return ballot(values[there], *np.nonzero(there))


@pytest.mark.parametrize(
    ("people", "prompts", "of_people", "of_prompts", "answered"),
    [(20, 20, 0, 0, 1), (20, 30, 1, 1, 0.5), (12, 40, 1.5, 0.3, 1), (60, 15, 0.2, 1, 0.5)],
)
def test_intervals_hold_the_truth_as_often_as_they_say(
    people, prompts, of_people, of_prompts, answered
):
    """At 0.5, where symmetry tells the truth; within three standard errors of 95%, or above."""
    rng, trials = np.random.default_rng(0), 500
    found = [
        share(simulated(rng, people, prompts, of_people, of_prompts, answered=answered))
        for _ in range(trials)
    ]
    held = np.mean([s.low <= 0.5 <= s.high for s in found])
    assert held > 0.95 - 3 * math.sqrt(0.95 * 0.05 / trials)
    if of_people + of_prompts > 1:  # and not by being wide
        assert held < 0.99
        assert np.mean([s.design_effect for s in found]) > 1.5


# On a busy machine a single input may take seconds.
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 5), st.integers(0, 5)),
        min_size=1,
    )
)
def test_a_share_is_in_its_interval_and_mirrors(votes):
    here = ballot(*zip(*votes, strict=True))
    there = ballot(1 - here.values, here.participants, here.prompts)
    a, b = share(here), share(there)
    assert 0 <= a.low <= a.mean <= a.high <= 1
    assert a.high - a.low > 0
    assert a.design_effect >= 1
    assert (1 - b.high, 1 - b.low) == pytest.approx((a.low, a.high))
    swapped = share(ballot(here.values, here.prompts, here.participants))
    assert (swapped.low, swapped.high) == pytest.approx((a.low, a.high))


def test_repeating_what_one_person_says_adds_nothing():
    """Ten prompts judged by two people who say the same of all of them."""
    values = [1.0] * 10 + [0.0] * 10
    few = share(ballot(values, [0] * 10 + [1] * 10, list(range(10)) * 2))
    assert few.low < 0.05
    assert few.high > 0.95


def test_nobody_has_no_share():
    assert share(ballot([], [], [])) is None


def test_so_many_participants_do_make_it_as_narrow():
    """On average over first waves, which know only roughly how much people differ."""
    rng, ratios = np.random.default_rng(1), []
    for _ in range(40):
        now = simulated(rng, 40, 60, 1, 0.3)
        width = 0.75 * (share(now).high - share(now).low)
        needed = further_participants(now, width)
        later = share(simulated(rng, 40 + needed, 60, 1, 0.3))
        ratios.append((later.high - later.low) / width)
        assert further_participants(now, 0.999) == 0
    assert np.mean(ratios) == pytest.approx(1, abs=0.1)


def test_few_prompts_are_not_made_up_for_by_participants():
    votes = simulated(np.random.default_rng(0), 50, 5, 0, 2)
    assert further_participants(votes, 0.05) is None
    assert further_participants(ballot([1, 0], [0, 0], [0, 1]), 0.1) is None
    same = ballot([1, 1, 1, 1], [0, 0, 1, 1], [0, 1, 0, 1])
    assert further_participants(same, 0.1) is None


# Krippendorff, "Computing Krippendorff's Alpha-Reliability", 2011, part C: four observers, twelve
# units; 0 stands for no value.
PUBLISHED = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, 0, 0, 0],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, 0, 3],
        [0, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, 0],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, 0],
    ]
)


def test_alpha_is_the_published_one():
    people, units = np.nonzero(PUBLISHED)
    values = ballot(PUBLISHED[people, units], people, units)
    assert agreement(values, units) == pytest.approx(0.849, abs=5e-4)


def test_alpha_is_that_of_evalica():
    evalica = pytest.importorskip("evalica", reason="needs the extra calibri[study]")
    import pandas

    rng = np.random.default_rng(2)
    table = rng.choice([0.0, 0.5, 1.0, np.nan], size=(7, 15))
    people, units = np.nonzero(~np.isnan(table))
    ours = agreement(ballot(table[people, units], people, units), units)
    theirs = evalica.alpha(pandas.DataFrame(table), distance="interval", solver="naive").alpha
    assert ours == pytest.approx(theirs)


def test_alpha_is_unknown_where_nothing_can_be_compared():
    for values, pairs in (([1, 0], [0, 1]), ([1, 1], [0, 0]), ([], [])):
        some = ballot(values, range(len(values)), pairs)
        assert agreement(some, np.asarray(pairs, dtype=np.int64)) is None

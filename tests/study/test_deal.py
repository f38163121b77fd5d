"""Order and sides are balanced whoever comes, and a function of the seed."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from calibri.study.deal import deal
from calibri.study.records import Pair, Study


def made(pairs, each, checks, seed=0):
    def pair(i, check):
        return Pair(
            id=f"{check}{i}", prompt="p", conditions=("a", "b"), images=("x", "y"), check=check
        )

    return Study(
        calibri_version="0", title="t", consent="c", conditions=("a", "b"), pairs_each=each,
        checks_each=checks, seed=seed,
        pairs=(*(pair(i, False) for i in range(pairs)), *(pair(i, True) for i in range(checks))),
    )  # fmt: skip


@st.composite
def studies(draw):
    pairs = draw(st.integers(1, 12))
    each = draw(st.integers(1, pairs))
    return made(pairs, each, draw(st.integers(0, min(each, 3))), draw(st.integers(0, 2**40)))


@settings(deadline=None)
@given(studies(), st.integers(0, 50))
def test_a_participant_sees_each_pair_once_and_every_check(study, place):
    dealt = deal(study, place)
    checks = {pair.id for pair in study.pairs if pair.check}
    seen = [d.pair for d in dealt]
    assert len(seen) == len(set(seen)) == study.pairs_each + study.checks_each
    assert checks <= set(seen)
    assert seen[0] not in checks
    assert deal(study, place) == dealt


@settings(deadline=None)
@given(studies(), st.integers(0, 20))
def test_sides_are_balanced_in_each_participant_and_between_twins(study, twins):
    first, second = deal(study, 2 * twins), deal(study, 2 * twins + 1)
    flipped = {d.pair: d.flipped for d in first}
    assert {d.pair: not d.flipped for d in second} == flipped
    checks = {pair.id for pair in study.pairs if pair.check}
    for group in (checks, flipped.keys() - checks):
        left = sum(flipped[pair] for pair in group)
        assert abs(2 * left - len(group)) <= 1


@settings(deadline=None)
@given(studies(), st.integers(1, 40))
def test_no_pair_is_shown_much_more_often_than_another(study, participants):
    counts = Counter(d.pair for place in range(participants) for d in deal(study, place))
    shown = [counts[pair.id] for pair in study.pairs if not pair.check]
    assert max(shown) - min(shown) <= 2


def test_orders_differ_between_participants_and_seeds():
    study = made(12, 12, 0)
    orders = {tuple(d.pair for d in deal(study, place)) for place in range(10)}
    assert len(orders) == 10
    assert deal(study, 0) != deal(made(12, 12, 0, seed=1), 0)

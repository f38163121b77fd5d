import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibri.errors import ConfigError, RewardError
from calibri.rewards.mixing import Constraint, Mixture, Scale, parse_mixture, scale_of


def tables(seed=0, candidates=5, noises=7, names="ab"):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(3, 2, size=(candidates, noises)) for name in names}


SCALES = {"a": Scale(3.0, 2.0), "b": Scale(-1.0, 0.5)}


@pytest.mark.parametrize(
    ("spec", "weights"),
    [
        ("hpsv3", {"hpsv3": 1.0}),
        ("hpsv3:0.7,pickscore:0.3", {"hpsv3": 0.7, "pickscore": 0.3}),
        (" a : 2 , b-c.1 ", {"a": 2.0, "b-c.1": 1.0}),
    ],
)
def test_specifications(spec, weights):
    assert parse_mixture(spec).weights == weights


@pytest.mark.parametrize(
    "spec", ["", "a,", "a:,b", "a:x", "a:0", "a:-1", "a:nan", "a:inf", "a,a:2"]
)
def test_malformed_specifications_are_refused(spec):
    with pytest.raises(ConfigError, match=r"hpsv3:0\.7"):
        parse_mixture(spec)


def test_constraints_are_read():
    mixture = parse_mixture("a", "min", ["diversity >= 0.95 of baseline", "b>=1 of baseline"])
    assert mixture.constraints == (Constraint("diversity", 0.95), Constraint("b", 1.0))
    assert mixture.names == ("a", "diversity", "b")


@pytest.mark.parametrize(
    "text",
    ["diversity > 0.9 of baseline", "diversity >= 0.9", "x >= e of baseline", ">= 1 of baseline"],
)
def test_malformed_constraints_are_refused(text):
    with pytest.raises(ConfigError, match="Cannot read the constraint"):
        parse_mixture("a", constraints=[text])


def test_one_reward_keeps_its_own_unit():
    found = tables(names="a")
    assert parse_mixture("a:5").combine(found, {}) is found["a"]


def test_zscores_are_in_frozen_spreads():
    found = tables()
    mixed = parse_mixture("a:0.7,b:0.3").combine(found, SCALES)
    for c in range(5):
        for n in range(7):
            z = 0.7 * (found["a"][c, n] - 3.0) / 2.0 + 0.3 * (found["b"][c, n] + 1.0) / 0.5
            assert mixed[c, n] == pytest.approx(z)


@given(st.floats(0.01, 100), st.floats(-50, 50), st.sampled_from(["zscore", "rank", "min"]))
@settings(deadline=None, max_examples=40)
def test_the_unit_of_a_reward_does_not_matter(gain, shift, method):
    found = tables()
    other = found | {"b": found["b"] * gain + shift}
    scaled = SCALES | {"b": Scale(-1.0 * gain + shift, 0.5 * gain)}
    mixture = Mixture({"a": 0.6, "b": 0.4}, method, (Constraint("a", 0.9),))
    one, two = mixture.combine(found, SCALES), mixture.combine(other, scaled)
    np.testing.assert_allclose(one, two, rtol=1e-6, atol=1e-6)


def test_ranks_are_shares_of_worse_candidates_on_the_same_noise():
    table = np.array([[1.0, 5.0], [2.0, 5.0], [3.0, 4.0]])
    mixed = parse_mixture("a", "rank").combine({"a": table}, {"a": Scale(0, 1)})
    assert mixed.tolist() == [[0.0, 0.75], [0.5, 0.75], [1.0, 0.0]]


def test_ranks_do_not_feel_outliers():
    found = tables()
    wild = {name: table.copy() for name, table in found.items()}
    best = wild["a"].argmax(axis=0)
    wild["a"][best, np.arange(7)] += 1e6
    mixture = parse_mixture("a,b", "rank")
    assert np.array_equal(mixture.combine(found, SCALES), mixture.combine(wild, SCALES))


def test_min_takes_each_candidates_worst_reward():
    found = tables()
    mixed = parse_mixture("a:1,b:2", "min").combine(found, SCALES).mean(axis=1)
    za = ((found["a"] - 3.0) / 2.0).mean(axis=1)
    zb = 2 * ((found["b"] + 1.0) / 0.5).mean(axis=1)
    np.testing.assert_allclose(mixed, [min(x, y) for x, y in zip(za, zb, strict=True)])


def test_min_prefers_balance_to_a_trade():
    a = np.array([0.0, 5.0, 1.0])[:, None].repeat(3, axis=1)
    b = np.array([0.0, -2.0, 0.5])[:, None].repeat(3, axis=1)
    scales = {"a": Scale(0, 1), "b": Scale(0, 1)}
    best = {
        method: int(parse_mixture("a,b", method).combine({"a": a, "b": b}, scales)[:, 0].argmax())
        for method in ("zscore", "min")
    }
    assert best == {"zscore": 1, "min": 2}


@pytest.mark.parametrize(("sign", "floor"), [(1.0, 9.5), (-1.0, -10.5)])
def test_a_constraint_costs_only_those_that_miss_it(sign, floor):
    base = 10.0 * sign
    means = np.array([base, floor, floor - 0.2, base + 5])
    found = {"a": np.zeros((4, 3)), "d": np.repeat(means[:, None], 3, axis=1)}
    mixture = parse_mixture("a", constraints=["d >= 0.95 of baseline"])
    mixed = mixture.combine(found, {"a": Scale(0, 1), "d": Scale(base, 2.0)})
    np.testing.assert_allclose(mixed.mean(axis=1), [0, 0, -10 * 0.2 / 2.0, 0], atol=1e-12)


@pytest.mark.parametrize("method", ["zscore", "rank", "min"])
def test_dropped_noises_stay_out(method):
    found = tables()
    for table in found.values():
        table[:, 2] = np.nan
    mixture = parse_mixture("a,b", method, ["b >= 1 of baseline"])
    mixed = mixture.combine(found, SCALES)
    assert np.isnan(mixed).any(axis=0).tolist() == [i == 2 for i in range(7)]
    kept = {name: np.delete(table, 2, axis=1) for name, table in found.items()}
    np.testing.assert_allclose(np.delete(mixed, 2, axis=1), mixture.combine(kept, SCALES))


def test_the_scale_is_that_of_the_finite_scores():
    scale = scale_of("a", np.array([[1.0, 3.0, np.nan, 5.0]]))
    assert scale.mean == pytest.approx(3.0)
    assert scale.spread == pytest.approx(np.sqrt(8 / 3))


@pytest.mark.parametrize("value", [0.0, 1e12])
def test_a_reward_without_a_spread_cannot_be_mixed(value):
    with pytest.raises(RewardError, match="'a' gives all 6 images"):
        scale_of("a", np.full((2, 3), value))


@pytest.mark.parametrize(
    ("spec", "weights"),
    [
        ("./a b/mine.py:Bright", {"./a b/mine.py:Bright": 1.0}),
        ("mine.py:Bright:0.7, b:0.3", {"mine.py:Bright": 0.7, "b": 0.3}),
        ("b:2,mine.py:_x1:1e-1", {"b": 2.0, "mine.py:_x1": 0.1}),
        ("odd.py:2", {"odd.py": 2.0}),
    ],
)
def test_a_reward_in_a_file_has_a_colon_of_its_own(spec, weights):
    assert parse_mixture(spec).weights == weights


@given(
    st.sampled_from(["zscore", "min"]),
    st.lists(st.tuples(st.sampled_from("ab"), st.floats(0.5, 1.5)), max_size=2),
    st.integers(0, 100),
)
@settings(deadline=None, max_examples=100)
def test_derivatives_are_finite_differences_of_the_mean_objective(method, constraints, seed):
    found = tables(seed, candidates=2)
    found["a"][1, 2] = np.nan
    parts = tuple(Constraint(name, ratio) for name, ratio in constraints)
    mixture = Mixture({"a": 0.6, "b": 0.4}, method, parts)

    def mean(tables):
        return float(np.nanmean(mixture.combine(tables, SCALES)[1]))

    # Every image of a reward dropped for all, as a search does.
    found = {name: np.where(np.isnan(found["a"]), np.nan, table) for name, table in found.items()}
    derivatives = mixture.derivatives(found, SCALES)
    assert derivatives.keys() == {"a", "b"}
    for name in "ab":
        moved = [found | {name: found[name] + [[0], [step]]} for step in (1e-6, -1e-6)]
        slope = (mean(moved[0]) - mean(moved[1])) / 2e-6
        assert derivatives[name] == pytest.approx(slope, abs=1e-6)


def test_the_derivative_of_one_reward_is_in_its_own_unit():
    assert parse_mixture("a:5").derivatives(tables(names="a"), {}) == {"a": 1.0}


def test_ranks_have_no_derivative():
    with pytest.raises(ConfigError, match="'rank' has no gradient"):
        parse_mixture("a,b", "rank").derivatives(tables(), SCALES)

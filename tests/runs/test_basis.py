"""The steps of a search: what a step along each column means."""

from dataclasses import replace

import numpy as np
import pytest

from calibri.coefficients.space import SearchSpace
from calibri.config import RunConfig
from calibri.pipelines.sites.find import find_sites
from calibri.runs.basis import make_search, search_basis, share_shifts, wake_members
from calibri.search.registry import METHODS, method_info


@pytest.fixture(scope="module")
def sites(shipped):
    return find_sites(shipped.transformer)


def column(space, label):
    return search_basis(space)[:, space.labels.index(label)]


def test_without_guidance_every_gate_and_the_output_take_the_same_step(sites):
    space = SearchSpace.build(sites, "gate")
    np.testing.assert_array_equal(search_basis(space), np.eye(space.size))


@pytest.mark.parametrize("branches", ["shared", "separate"])
@pytest.mark.parametrize("w", [2.0, 3.0, 7.0])
def test_under_guidance_outputs_step_along_scale_and_guidance_and_gates_less(sites, branches, w):
    space = SearchSpace.build(sites, "gate", guidance_scale=w, branches=branches)
    scaled = space.coefficients(space.start + column(space, "conditional/output"))
    ratio = np.divide(scaled.output_weights, space.start_weights)
    assert ratio[0] == pytest.approx(ratio[1])
    assert 1 < ratio[0] < 2
    guided = space.coefficients(space.start + 0.1 * column(space, "unconditional/output"))
    assert sum(guided.output_weights) == pytest.approx(1)
    assert abs(guided.output_weights[0] - w) == pytest.approx(0.1 * np.sqrt(w))
    gates = search_basis(space)[: space.num_scales, : space.num_scales]
    np.testing.assert_allclose(gates, np.eye(space.num_scales) / w)


def test_only_the_papers_loop_steps_alike_in_all_numbers(sites):
    space = SearchSpace.build(sites, "gate", guidance_scale=3.0)

    def basis(name):
        info = replace(method_info(name), make=lambda setup: setup)
        return make_search(space, RunConfig(), method=info).basis

    np.testing.assert_array_equal(basis("reference"), np.eye(space.size))
    for name in set(METHODS) - {"reference"}:
        np.testing.assert_array_equal(basis(name), search_basis(space))


def test_factors_take_longer_steps_and_every_basis_can_be_inverted(sites):
    space = SearchSpace.build(sites, "gate", guidance_scale=3.0, search_shift=True)
    np.testing.assert_array_equal(column(space, "shift")[-1:], [4.0])
    assert np.linalg.matrix_rank(search_basis(space)) == space.size


def test_candidates_share_shifts_in_groups_and_keep_the_rest(sites):
    space = SearchSpace.build(sites, "block", guidance_scale=3.0, search_shift=True)
    drawn = list(np.random.default_rng(0).normal(size=(40, space.size)))
    before = np.array(drawn)
    shared = np.array(share_shifts(space, drawn))
    np.testing.assert_array_equal(np.array(drawn), before)
    order = np.argsort(before[:, -1])
    np.testing.assert_array_equal(shared[:, :-1], before[order, :-1])
    assert len(set(shared[:, -1])) == 5
    assert shared[:, -1].mean() == pytest.approx(before[:, -1].mean())
    assert (np.diff(shared[:, -1]) >= 0).all()
    assert shared[:, -1].var() > 0.9 * before[:, -1].var()
    plain = SearchSpace.build(sites, "block", guidance_scale=3.0)
    assert share_shifts(plain, drawn)[1] is drawn[1]
    # A few groups of a small population would leave nothing to choose among.
    assert [vector is drawn[i] for i, vector in enumerate(share_shifts(space, drawn[:23]))] == (
        [True] * 23
    )
    assert len({vector[-1] for vector in share_shifts(space, drawn[:24])}) == 3


ENSEMBLES = {
    "without guidance": {},
    "with knots": {"output_knots": 2},
    "guided": {"guidance_scale": 3.0, "branches": "separate"},
}


@pytest.mark.parametrize("options", ENSEMBLES.values(), ids=ENSEMBLES)
def test_a_silent_member_wakes_against_the_first_and_the_sum_stays(sites, options):
    space = SearchSpace.build(sites, "block", members=2, **options)
    before = space.coefficients(space.start).members
    after = space.coefficients(wake_members(space, space.start)).members
    assert [m.scales for m in after] == [m.scales for m in before]
    assert max(after[-1].output_weights) < 0 < min(after[0].output_weights)
    for branch in {m.branch for m in before}:
        sums = [
            np.sum([m.output_weights for m in members if m.branch == branch], axis=0)
            for members in (before, after)
        ]
        np.testing.assert_allclose(sums[0], sums[1], atol=1e-12)


def test_members_that_differ_or_count_start_as_they_were_given(sites):
    space = SearchSpace.build(sites, "block", members=2)
    for label in (f"member2/{space.names[0]}", "member2/output"):
        vector = space.start.copy()
        vector[space.labels.index(label)] = 0.5
        assert wake_members(space, vector) is vector
    plain = SearchSpace.build(sites, "block")
    start = plain.start
    assert wake_members(plain, start) is start

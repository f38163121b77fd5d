"""Members are another view of the fields that an artifact holds: every shape survives the way."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibri.coefficients.coefficients import BRANCHES, Coefficients, Member
from calibri.pipelines.granularity import parameter_names
from calibri.pipelines.sites.find import find_sites
from tests.tiny import tiny_sd3

SITES = find_sites(tiny_sd3())
NAMES = parameter_names(SITES, "block")
WEIGHTS = st.floats(0.5, 4.0)
SCALES = st.floats(-2.0, 3.0)


@st.composite
def ensembles(draw):
    """Members of any shape, and whether they share their scales."""
    further = draw(st.lists(st.sampled_from(BRANCHES), max_size=3))
    knots = draw(st.integers(1, 3))
    output_knots = knots if knots > 1 and draw(st.booleans()) else 1
    output_knots = draw(st.integers(1, 3)) if knots == 1 else output_knots
    shared = draw(st.booleans())

    def scales():
        return tuple({name: draw(SCALES) for name in NAMES} for _ in range(knots))

    def weights():
        return tuple(draw(WEIGHTS) for _ in range(output_knots))

    common = scales()
    members = tuple(
        Member(branch, draw(WEIGHTS), weights(), common if shared else scales())
        for branch in ("conditional", *further)
    )
    return members, shared


@settings(max_examples=60, deadline=None)
@given(ensembles())
def test_members_survive_the_way_through_the_fields_and_json(made):
    members, shared = made
    found = Coefficients.from_members(members, "block", shared_scales=shared, shift=1.5)
    assert found.members == members
    assert not list(found.problems())
    assert found.shift == 1.5
    stored = Coefficients.model_validate_json(found.model_dump_json())
    assert stored == found
    assert stored.with_members(stored.members) == stored
    again = Coefficients.from_members(
        stored.members, "block", shared_scales=stored.shares_scales, shift=1.5
    )
    assert again.model_dump_json() == stored.model_dump_json()


@settings(max_examples=60, deadline=None)
@given(ensembles())
def test_the_fields_list_the_knots_of_each_member_in_their_order(made):
    """The format of artifacts, which were written before there were members."""
    members, shared = made
    dumped = json.loads(
        Coefficients.from_members(members, "block", shared_scales=shared).model_dump_json()
    )
    sets = 1 if shared else len(members)
    assert len(dumped["scales"]) == sets * dumped["knots"]
    for number, member in enumerate(members):
        for knot, weight in enumerate(member.output_weights):
            assert dumped["output_weights"][number * dumped["output_knots"] + knot] == weight
        for knot, scales in enumerate(member.scales[: dumped["knots"] if number < sets else 0]):
            assert list(dumped["scales"][number * dumped["knots"] + knot].items()) == [
                *scales.items()
            ]
    assert dumped["start_weights"] == [member.start_weight for member in members]
    named = dumped["branches"] or BRANCHES[: len(members)]
    assert [*named] == [member.branch for member in members]
    assert [*dumped] == [*Coefficients.model_fields]


@settings(max_examples=40, deadline=None)
@given(ensembles())
def test_the_table_has_the_scales_of_each_site_and_the_weight_behind_them(made):
    members, shared = made
    found = Coefficients.from_members(members, "block", shared_scales=shared)
    table = found.site_scales(SITES)
    if found.trajectory_knots == 1:
        table = table[:, None]
    assert table.shape == (len(members), found.trajectory_knots, len(SITES) + 1)
    for number, member in enumerate(members):
        formula = sum(m.start_weight for m in members if m.branch == member.branch)
        for knot in range(found.trajectory_knots):
            scales = member.scales[min(knot, found.knots - 1)]
            wanted = [scales[site.block] for site in SITES]
            wanted.append(member.output_weights[min(knot, found.output_knots - 1)] / formula)
            np.testing.assert_array_equal(table[number, knot], wanted)


@settings(max_examples=40, deadline=None)
@given(ensembles(), st.floats(0, 1))
def test_strength_blends_every_number_with_the_original(made, strength):
    members, shared = made
    full = Coefficients.from_members(members, "block", shared_scales=shared)
    for member, blended in zip(members, full.with_strength(strength).members, strict=True):
        np.testing.assert_allclose(
            blended.output_weights,
            [strength * w + (1 - strength) * member.start_weight for w in member.output_weights],
        )
        for knot, own in zip(member.scales, blended.scales, strict=True):
            np.testing.assert_allclose(
                [*own.values()], [1 + strength * (value - 1) for value in knot.values()], atol=1e-12
            )


@settings(max_examples=60, deadline=None)
@given(st.floats(1.5, 20), st.floats(-3, 3), st.floats(0, 1))
def test_branches_that_are_alike_stay_alike_at_every_strength(guidance, ratio, strength):
    """Nothing then has to tell them apart, whatever rounding does to the quotients."""
    scales = ({"a": 1.2},)
    members = [
        Member(branch, weight, (ratio * weight,), scales)
        for branch, weight in zip(BRANCHES, (guidance, 1 - guidance), strict=True)
    ]
    full = Coefficients.from_members(members, "block", shared_scales=True)
    assert not full.with_strength(strength).per_branch
    unlike = replace(members[1], output_weights=(ratio * (1 - guidance) + 1e-4,))
    assert Coefficients.from_members([members[0], unlike], "block", shared_scales=True).per_branch


def test_branches_are_named_only_where_they_are_not_those_of_guidance():
    one = Member("conditional", 3.0, (3.0,), ({"a": 1.0},))
    other = replace(one, branch="unconditional", start_weight=-2.0)
    assert Coefficients.from_members([one], "block").branches is None
    assert Coefficients.from_members([one, other], "block").branches is None
    assert Coefficients.from_members([one, one], "block").branches == ("conditional",) * 2


def test_coefficients_without_members_are_refused():
    with pytest.raises(ValueError, match="at least 1"):
        Coefficients.from_members([], "block")

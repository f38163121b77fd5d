import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from calibri.coefficients.coefficients import Coefficients
from calibri.coefficients.space import SearchSpace
from calibri.config import GRANULARITIES
from calibri.errors import CalibrationError, ConfigError
from calibri.pipelines.sites.find import find_sites
from calibri.pipelines.sites.site import Site
from tests.tiny import tiny_flux, tiny_sd3

SITES = find_sites(tiny_sd3())
SPACES = [
    SearchSpace.build(SITES, granularity, guidance_scale=w, branches=branches, search_output=out)
    for granularity in GRANULARITIES
    for w, branches in ((1.0, "shared"), (3.0, "shared"), (3.0, "separate"))
    for out in (True, False)
] + [
    SearchSpace.build(SITES, "block", guidance_scale=w, branches=branches, members=members)
    for w, branches in ((1.0, "shared"), (3.0, "separate"))
    for members in (2, 3)
]
SPACES.append(SearchSpace.build(SITES, "layer", guidance_scale=3.0, branches="separate", knots=3))
SPACES += [
    SearchSpace.build(
        SITES, "block", search_output=out, search_guidance=guidance, search_shift=shift
    )
    for out in (True, False)
    for guidance, shift in ((True, False), (False, True), (True, True))
]


@settings(max_examples=60, deadline=None)
@given(data=st.data(), space=st.sampled_from(SPACES))
def test_a_vector_survives_the_way_to_names_and_json_and_back(data, space):
    bounds = space.bounds((-10, 10), (-10, 10))
    vector = np.array(data.draw(st.tuples(*[st.floats(low, high) for low, high in bounds])))
    coefficients = space.coefficients(vector)
    stored = Coefficients.model_validate_json(coefficients.model_dump_json())
    assert stored == coefficients
    assert np.array_equal(space.vector(stored), vector)
    assert list(space.named(vector).values()) == vector.tolist()


@pytest.mark.parametrize("space", SPACES)
def test_the_start_scales_every_site_by_one(space):
    start = space.coefficients(space.start)
    scales = start.site_scales(SITES)
    knots = (space.knots,) if space.knots > 1 else ()
    assert scales.shape == (len(space.start_weights), *knots, len(SITES) + 1)
    assert (scales[..., :-1] == 1).all()
    # One member of each branch speaks, the others are silent.
    assert (scales[: start.num_branches, ..., -1] == 1).all()
    assert not scales[start.num_branches :, ..., -1].any()
    assert not list(start.problems())
    assert len(set(space.labels)) == space.size == len(space.start)


def test_sizes_follow_the_paper():
    # (scales + output weight) per member: 2 x (107 + 1) = 216 for SD3.5-medium.
    names = tuple(f"transformer_blocks.{i}.attn" for i in range(107))
    assert SearchSpace(names, "gate", members=2, start_weights=(7.0, -6.0)).size == 216


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_sites_of_one_parameter_share_its_value(granularity):
    space = SearchSpace.build(SITES, granularity)
    vector = np.arange(space.size, dtype=float) + 2
    scales = space.coefficients(vector).site_scales(SITES)[0]
    by_block: dict[str, set[float]] = {}
    for site, scale in zip(SITES, scales, strict=False):
        key = {"block": site.block, "layer": f"{site.block}.{site.layer}", "gate": site.name}
        by_block.setdefault(key[granularity], set()).add(scale)
    assert all(len(values) == 1 for values in by_block.values())
    assert len(by_block) == space.size - 1
    assert scales[-1] == vector[-1]


def test_output_weights_become_multiples_of_the_guidance_formula():
    space = SearchSpace.build(SITES, "block", guidance_scale=3.0)
    vector = space.start.copy()
    vector[-2:] = [4.5, -1.0]
    scales = space.coefficients(vector).site_scales(SITES)
    assert scales[:, -1].tolist() == [1.5, 0.5]
    assert space.coefficients(vector).per_branch
    assert not space.coefficients(space.start).per_branch


def test_separate_branches_have_their_own_rows():
    space = SearchSpace.build(SITES, "block", guidance_scale=3.0, branches="separate")
    assert space.labels[0] == "conditional/transformer_blocks.0"
    assert space.labels[-1] == "unconditional/output"
    vector = space.start.copy()
    vector[0] = 0.25
    scales = space.coefficients(vector).site_scales(SITES)
    first = [i for i, site in enumerate(SITES) if site.block == "transformer_blocks.0"]
    assert (scales[0, first] == 0.25).all()
    assert (scales[1] == 1).all()


def test_separate_branches_need_guidance():
    with pytest.raises(ConfigError, match="guidance_scale is 1"):
        SearchSpace.build(SITES, "gate", branches="separate")


def test_strength_blends_linearly_with_the_original():
    space = SearchSpace.build(SITES, "gate", guidance_scale=3.0)
    vector = space.start + np.linspace(-0.5, 0.5, space.size)
    full = space.coefficients(vector)
    assert full.with_strength(1.0) == full
    assert np.array_equal(space.vector(full.with_strength(0.0)), space.start)
    half = space.vector(full.with_strength(0.5))
    np.testing.assert_allclose(half, (vector + space.start) / 2)
    with pytest.raises(CalibrationError, match=r"got 1\.5"):
        full.with_strength(1.5)


def test_a_calibration_of_another_model_is_refused_with_both_numbers():
    other = SearchSpace.build(find_sites(tiny_flux()), "gate")
    with pytest.raises(CalibrationError, match=f"has {other.size - 1} .*needs {len(SITES)}"):
        other.coefficients(other.start).site_scales(SITES)


def test_a_vector_of_another_length_is_refused_with_both_numbers():
    space = SearchSpace.build(SITES, "gate")
    with pytest.raises(CalibrationError, match=f"3 entries, this search space has {space.size}"):
        space.coefficients([1.0, 1.0, 1.0])


def test_numbers_that_are_not_finite_are_refused():
    space = SearchSpace.build(SITES, "block")
    with pytest.raises(ValidationError, match="finite"):
        space.coefficients([float("nan")] * space.size)


def test_site_names():
    site = Site("a.attn", 1, "a", "attn", "text", ())
    assert site.name == "a.attn[1]"
    assert Site("a.ff", None, "a", "mlp", "visual", ()).name == "a.ff"


def test_members_of_an_ensemble_see_the_prompt_and_start_silent():
    space = SearchSpace.build(SITES, "block", members=3)
    assert space.start_weights == (1.0, 0.0, 0.0)
    assert space.labels[0] == "member1/transformer_blocks.0"
    assert space.labels[-1] == "member3/output"
    found = space.coefficients(space.start)
    assert found.member_branches == (0, 0, 0)
    assert (found.is_ensemble, found.num_branches) == (True, 1)


def test_an_ensemble_under_guidance_adds_members_to_the_prompt():
    space = SearchSpace.build(SITES, "block", guidance_scale=3.0, branches="separate", members=2)
    vector = space.start.copy()
    vector[-3:] = [4.5, -3.0, 1.5]
    found = space.coefficients(vector)
    assert found.member_branches == (0, 1, 0)
    assert space.labels[-3:] == (
        "conditional/output",
        "unconditional/output",
        "conditional2/output",
    )
    # The pipeline multiplies the branches by 3 and -2.
    assert found.site_scales(SITES)[:, -1].tolist() == [1.5, 1.5, 0.5]
    with pytest.raises(ConfigError, match="separate"):
        SearchSpace.build(SITES, "block", guidance_scale=3.0, members=2)


def test_coefficients_written_before_ensembles_still_load():
    old = {
        "granularity": "block",
        "scales": [{"a": 1.5}, {"a": 0.5}],
        "output_weights": [4.0, -3.0],
        "start_weights": [3.0, -2.0],
    }
    found = Coefficients.model_validate(old)
    assert found.member_branches == (0, 1)
    assert not found.is_ensemble
    assert found.per_branch


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"branches": None}, "branches must name"),
        ({"branches": ("conditional", "unconditional")}, "branches must name"),
        ({"branches": ("unconditional",) * 3}, "no member has the conditional"),
        ({"branches": ("conditional", "conditional", "unconditional")}, "start weight is zero"),
        ({"scales": ({"a": 1.0},) * 2}, "2 sets of scales for 3"),
        ({"scales": ({"a": 1.0}, {"a": 1.0}, {"b": 1.0})}, "different coefficients"),
        ({"start_weights": (1.0, 0.0)}, "differ in length"),
    ],
)
def test_members_that_contradict_each_other_are_told(change, said):
    good = Coefficients(
        granularity="block",
        scales=({"a": 1.0},) * 3,
        output_weights=(1.0, 0.5, -0.5),
        start_weights=(1.0, 0.0, 0.0),
        branches=("conditional",) * 3,
    )
    assert not list(good.problems())
    assert any(said in problem for problem in good.model_copy(update=change).problems())


def test_factors_on_the_sampling_follow_the_output_weights():
    space = SearchSpace.build(
        SITES, "block", guidance_scale=3.0, search_guidance=True, search_shift=True
    )
    assert space.labels[-4:] == ("conditional/output", "unconditional/output", "guidance", "shift")
    assert space.is_output[-4:].tolist() == [True, True, False, False]
    assert space.num_scales + space.num_outputs + len(space.factors) == space.size
    found = space.coefficients([*space.start[:-2], 1.5, 0.5])
    assert (found.guidance, found.shift) == (1.5, 0.5)
    assert found.factors == ("guidance", "shift")
    assert "guidance and the shift" in found.unfoldable
    half = found.with_strength(0.5)
    assert (half.guidance, half.shift) == (1.25, 0.75)
    original = space.coefficients(space.start)
    assert (original.factors, original.unfoldable) == ((), "")


@pytest.mark.parametrize("space", SPACES)
def test_the_start_lies_within_the_bounds_of_every_entry(space):
    bounds = space.bounds((-1, 2), (-10, 10))
    assert bounds.shape == (space.size, 2)
    assert (bounds[:, 0] < space.start).all()
    assert (space.start < bounds[:, 1]).all()
    assert (bounds[space.is_output] == (-10, 10)).all()
    assert (bounds[: space.num_scales] == (-1, 2)).all()


@pytest.mark.parametrize("change", [{"shift": 0.0}, {"shift": -1.0}, {"guidance": -0.5}])
def test_factors_without_a_meaning_are_refused(change):
    values = {"granularity": "block", "scales": [{"a": 1.0}], "output_weights": [1.0]}
    Coefficients.model_validate(values | {"start_weights": [1.0]})
    with pytest.raises(ValidationError, match="greater than"):
        Coefficients.model_validate(values | {"start_weights": [1.0]} | change)

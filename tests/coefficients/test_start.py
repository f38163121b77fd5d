import numpy as np
import pytest

from calibri.artifact.calibration import Calibration
from calibri.coefficients.space import SearchSpace
from calibri.coefficients.start import warm_start
from calibri.config import validate_config
from calibri.errors import ConfigError
from calibri.pipelines.sites.find import find_sites
from calibri.runs.session import Session


@pytest.fixture(scope="module")
def sites(shipped):
    return find_sites(shipped.transformer)


def drawn(space, seed=0):
    rng = np.random.default_rng(seed)
    return space.coefficients(space.start + 0.1 * rng.normal(size=space.size))


def scales(space, vector, sites):
    return space.coefficients(vector).site_scales(sites)


@pytest.mark.parametrize(
    ("coarse", "fine"), [("block", "layer"), ("block", "gate"), ("layer", "gate"), ("gate", "gate")]
)
def test_a_coarser_calibration_scales_every_site_as_it_did(sites, coarse, fine):
    found = drawn(SearchSpace.build(sites, coarse))
    space = SearchSpace.build(sites, fine)
    vector = warm_start(space, sites, found)
    np.testing.assert_array_equal(scales(space, vector, sites), found.site_scales(sites))


def test_one_set_of_scales_serves_both_branches_and_all_knots(sites):
    found = drawn(SearchSpace.build(sites, "gate"))
    space = SearchSpace.build(sites, "gate", guidance_scale=3.0, branches="separate", knots=3)
    vector = warm_start(space, sites, found)
    started = space.coefficients(vector)
    assert len(started.scales) == 6
    assert all(member == found.scales[0] for member in started.scales)
    ratio = found.output_weights[0]
    assert started.output_weights == pytest.approx((3.0 * ratio, -2.0 * ratio))


def test_output_weights_keep_their_ratio_at_another_guidance(sites):
    found = drawn(SearchSpace.build(sites, "gate", guidance_scale=3.0))
    space = SearchSpace.build(sites, "gate", guidance_scale=5.0)
    started = space.coefficients(warm_start(space, sites, found))
    ratios = np.divide(started.output_weights, started.start_weights)
    np.testing.assert_allclose(ratios, np.divide(found.output_weights, found.start_weights))


def test_what_the_space_cannot_hold_is_refused_in_words(sites):
    gate = SearchSpace.build(sites, "gate")
    separate = SearchSpace.build(sites, "gate", guidance_scale=3.0, branches="separate")
    with pytest.raises(ConfigError, match="finer"):
        warm_start(SearchSpace.build(sites, "block"), sites, drawn(gate))
    with pytest.raises(ConfigError, match="2 sets of scales"):
        warm_start(gate, sites, drawn(separate))
    with pytest.raises(ConfigError, match="output_weights to true"):
        warm_start(SearchSpace.build(sites, "gate", search_output=False), sites, drawn(gate))
    other = drawn(gate)
    renamed = tuple({f"x.{name}": v for name, v in member.items()} for member in other.scales)
    with pytest.raises(ConfigError, match="another model"):
        warm_start(gate, sites, other.model_copy(update={"scales": renamed}))


def test_a_calibration_of_a_deeper_model_is_refused(sites):
    found = drawn(SearchSpace.build(sites, "block"))
    last = max(site.block for site in sites)
    shallow = [site for site in sites if site.block != last]
    with pytest.raises(ConfigError, match=f"no place for, .*{last}.*another model"):
        warm_start(SearchSpace.build(shallow, "gate"), shallow, found)


def test_a_search_starts_where_a_run_ended(finished_run):
    config = {"device": "cpu", "space": {"start": str(finished_run / "calibration")}}
    session = Session(validate_config(config))
    found = Calibration.from_pretrained(finished_run / "calibration").coefficients
    assert session.space.coefficients(session.start) == found
    assert not np.array_equal(session.start, session.space.start) or found.output_weights == (1.0,)


def test_factors_are_carried_over_where_they_are_searched(sites):
    options = {"search_guidance": True, "search_shift": True}
    found = drawn(SearchSpace.build(sites, "gate", **options))
    space = SearchSpace.build(sites, "gate", **options)
    started = space.coefficients(warm_start(space, sites, found))
    assert (started.guidance, started.shift) == (found.guidance, found.shift) != (1.0, 1.0)
    plain = SearchSpace.build(sites, "gate", search_guidance=True)
    with pytest.raises(ConfigError, match=r"factor on the shift.*space\.shift to true"):
        warm_start(plain, sites, found)

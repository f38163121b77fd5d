"""Coefficients of candidates on a model, against tables set by hand."""

import pytest
import torch

from calibri.coefficients.coefficients import Coefficients
from calibri.coefficients.space import SearchSpace
from calibri.errors import CalibrationError
from calibri.pipelines.sites.find import find_sites
from calibri.sampling.scales.scaler import Scaler
from tests.tiny import flux_inputs, forward, sd3_inputs, tiny_flux, tiny_sd3

SPACES = {
    "plain": {},
    "guided": {"guidance_scale": 3.0},
    "separate": {"guidance_scale": 3.0, "branches": "separate"},
    "knots": {"guidance_scale": 3.0, "knots": 3},
    "ensemble": {"members": 2},
}


def drawn(count, **options):
    space = SearchSpace.build(find_sites(tiny_sd3()), "gate", **options)
    generator = torch.Generator().manual_seed(0)
    steps = torch.randn(count, space.size, generator=generator).double().numpy()
    return [space.coefficients(space.start + 0.2 * step) for step in steps]


def scaler_of(model):
    return Scaler(model, resolver=lambda arguments: (1, 0))


@pytest.mark.parametrize("kind", SPACES)
def test_each_image_has_the_scales_of_its_candidate(kind):
    candidates = drawn(2, **SPACES[kind])
    layout = 1 if kind in ("plain", "ensemble") else 2
    given = sd3_inputs(3 * layout)
    ours, plain = scaler_of(tiny_sd3()), scaler_of(tiny_sd3())
    images = [1, 0, 1]
    ours.apply(candidates, images)
    found = forward(ours.transformer, given)
    for image, candidate in enumerate(images):
        table = torch.from_numpy(candidates[candidate].site_scales(plain.sites))
        plain.set(table[None], candidates[candidate].member_branches)
        rows = [image + 3 * group for group in range(layout)]
        alone = forward(plain.transformer, {n: v[rows] for n, v in given.items()})
        torch.testing.assert_close(found[rows], alone, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found[0], found[1])


@pytest.mark.parametrize("kind", SPACES)
def test_one_candidate_serves_any_batch(kind):
    (candidate,) = drawn(1, **SPACES[kind])
    scaler = scaler_of(tiny_sd3())
    for images in (1, 2):
        given = sd3_inputs(2 * images)
        scaler.apply([candidate])
        found = forward(scaler.transformer, given)
        rows = images if kind not in ("plain", "ensemble") else 2 * images
        scaler.apply([candidate], [0] * rows)
        torch.testing.assert_close(forward(scaler.transformer, given), found, rtol=1e-5, atol=1e-6)


def test_a_candidate_is_expanded_once_for_all_its_batches():
    expanded = []

    class Counted(Coefficients):
        def site_scales(self, sites):
            expanded.append(self)
            return super().site_scales(sites)

    first, second, third = (Counted.model_validate(c.model_dump()) for c in drawn(3))
    scaler, given = Scaler(tiny_sd3()), sd3_inputs(2)
    batches = [([first, second], [0, 1]), ([first, second], [1, 1]), ([third, second], [0, 1])]
    found = []
    for candidates, images in batches:
        scaler.apply(candidates, images)
        found.append(forward(scaler.transformer, given))
    assert [[first, second, third].index(c) for c in expanded] == [0, 1, 2]
    for (candidates, images), output in zip(batches, found, strict=True):
        fresh = Scaler(tiny_sd3())
        fresh.apply(candidates, images)
        assert torch.equal(forward(fresh.transformer, given), output)


def test_a_candidate_without_differences_needs_no_branches_told():
    space = SearchSpace.build(find_sites(tiny_sd3()), "gate", guidance_scale=3.0)
    scaler = Scaler(tiny_sd3())
    scaler.apply([space.coefficients(space.start)])
    assert torch.equal(forward(scaler.transformer, sd3_inputs()), forward(tiny_sd3(), sd3_inputs()))


def test_each_image_has_the_guidance_of_its_candidate():
    model = tiny_flux()
    space = SearchSpace.build(find_sites(model), "block", search_guidance=True)
    half, twice = space.start.copy(), space.start.copy()
    half[-1], twice[-1] = 0.5, 2.0
    given = flux_inputs(2)
    wanted = forward(model, given | {"guidance": given["guidance"] * torch.tensor([2.0, 0.5])})
    scaler = Scaler(model)
    scaler.apply([space.coefficients(half), space.coefficients(twice)], [1, 0])
    assert torch.equal(forward(model, given), wanted)


def test_candidates_of_another_model_are_refused():
    with pytest.raises(CalibrationError, match="does not fit"):
        Scaler(tiny_flux()).apply(drawn(1))


def test_wrong_number_of_scales_is_refused():
    with pytest.raises(ValueError, match="Expected scales"):
        Scaler(tiny_sd3()).set(torch.ones(1, 1, 3))

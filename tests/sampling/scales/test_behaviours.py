"""Every way in which scales get to rows, against a model whose weights were multiplied by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calibri.errors import UnsupportedModelError
from calibri.sampling.scales.scaler import Scaler
from tests.sampling.scales.by_hand import interpolated, summed_by_hand
from tests.tiny import flux_inputs, forward, sd3_inputs, tiny_flux, tiny_sd3

# Model, inputs, and the largest timestep of its forward.
MODELS = {"sd3": (tiny_sd3, sd3_inputs, 1000.0), "flux": (tiny_flux, flux_inputs, 1.0)}
# Branch of each member, and of each group of rows.
KINDS = {
    "one set for all rows of an image": ((0,), (0,)),
    "a set for each branch": ((0, 1), (1, 0)),
    "a set for each branch, in the other order": ((1, 0), (1, 0)),
    "a set for each branch, one of which runs": ((0, 1), (0,)),
    "members of the prompt": ((0, 0, 0), (0,)),
    "members under guidance": ((0, 1, 0), (1, 0)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_every_behaviour_is_a_model_with_other_weights(name, kind, data):
    make, inputs, largest = MODELS[name]
    branches, layout = KINDS[kind]
    images = data.draw(st.integers(1, 2), "images")
    shared = data.draw(st.booleans(), "one set for all images")
    knots = data.draw(st.sampled_from([1, 2, 3]), "knots")
    place = data.draw(st.sampled_from([0.0, 0.3, 1.0]), "relative timestep")
    model = make().double()
    scaler = Scaler(model, resolver=lambda arguments: layout)
    shape = (1 if shared else images, len(branches), knots, len(scaler.sites) + 1)
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99), "seed"))
    scales = 1 + torch.randint(-32, 33, shape, generator=generator) / 64  # exact in fp32
    given = {n: v.double() for n, v in inputs(images * len(layout)).items()}
    given["timestep"] = torch.full_like(given["timestep"], place * largest)
    scaler.set(scales if knots > 1 else scales[:, :, 0], branches)
    ours = forward(model, given)
    scaler.remove()
    oracle = summed_by_hand(model, given, interpolated(scales, place), branches, layout)
    torch.testing.assert_close(ours, oracle, rtol=1e-5, atol=1e-5)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(1, 24).map(lambda n: n / 8), min_size=1, max_size=3))
def test_a_factor_on_the_embedded_guidance_is_another_guidance(factors):
    model = tiny_flux()
    scaler = Scaler(model)
    given = flux_inputs(len(factors))
    scaler.set(torch.ones(1, 1, len(scaler.sites) + 1), guidance=torch.tensor(factors))
    ours = forward(model, given)
    scaler.remove()
    wanted = forward(model, given | {"guidance": given["guidance"] * torch.tensor(factors)})
    assert torch.equal(ours, wanted)


def test_one_scaler_goes_from_each_behaviour_to_each_other():
    model, given = tiny_sd3(), sd3_inputs(4)
    scaler = Scaler(model, resolver=lambda arguments: (1, 0))
    width = len(scaler.sites) + 1
    generator = torch.Generator().manual_seed(0)
    sets = {
        "constant": ((1, 1, width), None),
        "rows": ((4, 1, width), None),
        "branches": ((2, 2, width), None),
        "members": ((1, 3, width), (0, 1, 0)),
        "knots": ((1, 1, 3, width), None),
        "knots of members": ((1, 2, 3, width), (0, 0)),
    }
    drawn = {n: (0.5 + torch.rand(s, generator=generator), b) for n, (s, b) in sets.items()}
    wanted = {}
    for name, (scales, branches) in drawn.items():
        alone = Scaler(tiny_sd3(), resolver=lambda arguments: (1, 0))
        alone.set(scales, branches)
        wanted[name] = forward(alone.transformer, given)
    for first in drawn:
        for second in drawn:
            for name in (first, second):
                scaler.set(*drawn[name])
                assert torch.equal(forward(model, given), wanted[name]), (first, second)


def test_a_refused_set_of_scales_leaves_the_former_in_place():
    class Other(type(tiny_sd3())):
        pass

    model, given = tiny_sd3(), sd3_inputs(1)
    model.__class__ = Other
    scaler = Scaler(model)
    scaler.set(torch.full((1, 1, len(scaler.sites) + 1), 0.5))
    before = forward(model, given)
    with pytest.raises(UnsupportedModelError, match="not known"):
        scaler.set(torch.ones(1, 1, 2, len(scaler.sites) + 1))
    assert torch.equal(forward(model, given), before)

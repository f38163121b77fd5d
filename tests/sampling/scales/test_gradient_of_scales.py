"""Gradients with respect to the scales, against finite differences."""

import pytest
import torch

from calibri.sampling.scales.scaler import Scaler
from tests.tiny import forward, sd3_inputs, tiny_sd3

ROWS = 4
# Steps of a power of two: scales are kept in single precision, and are exact in it.
STEP = 2.0**-9

# Shape of the scales before their sites, and the branch of each member.
SHAPES = {
    "one for all rows": ((1, 1), None),
    "one for each row": ((ROWS, 1), None),
    "branches of guidance": ((ROWS // 2, 2), None),
    "members of an ensemble": ((1, 2), (0, 0)),
    "knots of the trajectory": ((1, 1, 3), None),
}


@pytest.fixture
def model():
    return tiny_sd3().double().requires_grad_(False)


def inputs():
    given = sd3_inputs(ROWS) | {"timestep": torch.full((ROWS,), 300.0)}  # between two knots
    return {name: value.double() for name, value in given.items()}


def scaler_of(model):
    return Scaler(model, resolver=lambda arguments: (1, 0))


def start(scaler, shape):
    generator = torch.Generator().manual_seed(0)
    steps = torch.randint(-128, 128, (*shape, len(scaler.sites) + 1), generator=generator)
    return 1 + steps * STEP


def loss(model, given):
    output = model(**given, return_dict=False)[0]
    # Another weight for every row and pixel, so that no gradient cancels.
    return (
        output * torch.linspace(-1, 2, output.numel(), dtype=output.dtype).view_as(output)
    ).sum()


@pytest.mark.parametrize("case", SHAPES)
def test_gradients_are_finite_differences(model, case):
    shape, branches = SHAPES[case]
    scaler, given = scaler_of(model), inputs()
    scales = start(scaler, shape).requires_grad_()
    scaler.set(scales, branches)
    loss(model, given).backward()
    assert scales.grad is not None
    assert (scales.grad != 0).float().mean() > 0.6  # one knot is out of reach
    for entry in range(0, scales.numel(), 7):
        ends = []
        for sign in (1, -1):
            moved = scales.detach().clone()
            moved.view(-1)[entry] += sign * STEP
            scaler.set(moved, branches)
            with torch.no_grad():
                ends.append(loss(model, given))
        slope = (ends[0] - ends[1]) / (2 * STEP)
        torch.testing.assert_close(
            scales.grad.view(-1)[entry].double(), slope, rtol=2e-3, atol=2e-3
        )


def test_a_set_of_scales_after_a_gradient_is_like_one_without(model):
    scaler, given = scaler_of(model), inputs()
    plain = start(scaler, (1, 1))
    scaler.set(plain)
    before = forward(model, given)
    wanted = torch.ones_like(plain).requires_grad_()
    scaler.set(wanted)
    value = loss(model, given)
    scaler.set(plain)  # before the gradient is asked for
    assert torch.equal(forward(model, given), before)
    value.backward()
    assert wanted.grad is not None
    scaler.set(wanted.detach())
    assert not loss(model, given).requires_grad

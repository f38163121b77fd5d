"""Hooks and ``torch.compile`` in any order: scales act while they are on, and only then."""

import re

import pytest
import torch
from torch._dynamo import config as compiler

from calibri.sampling.scales.scaler import Scaler
from tests.tiny import flux_inputs, forward, sd3_inputs, tiny_flux, tiny_sd3


@pytest.fixture(autouse=True)
def fresh_process():
    """What a process begins with: nothing is compiled, and graphs are not tied to hooks."""
    torch.compiler.reset()
    compiler.skip_nnmodule_hook_guards = True
    yield
    torch.compiler.reset()


def compile_whole(model):
    model.compile(backend="eager")


def compile_forward(model):
    model.forward = torch.compile(model.forward, backend="eager")


def blocks_of(model):
    return [block for name, block in model.named_modules() if re.fullmatch(r".*blocks\.\d+", name)]


def compile_blocks(model):
    for block in blocks_of(model):
        block.compile(backend="eager")


def compile_forwards_of_blocks(model):
    for block in blocks_of(model):
        block.forward = torch.compile(block.forward, backend="eager")


WAYS = pytest.mark.parametrize(
    "how", [compile_whole, compile_forward, compile_blocks, compile_forwards_of_blocks]
)


def scale(model):
    scaler = Scaler(model)
    scaler.set(torch.linspace(0.5, 1.5, len(scaler.sites) + 1).expand(1, 1, -1))
    return scaler


def outputs(make, inputs):
    """Of the original, and of the scaled model."""
    original, model = forward(make(), inputs()), make()
    scale(model)
    return original, forward(model, inputs())


def same(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@WAYS
@pytest.mark.slow
def test_scales_act_on_a_model_that_ran_compiled_before(how):
    original, wanted = outputs(tiny_sd3, sd3_inputs)
    compiler.skip_nnmodule_hook_guards = True
    model = tiny_sd3()
    how(model)
    same(forward(model, sd3_inputs()), original)
    scaler = scale(model)
    same(forward(model, sd3_inputs()), wanted)
    assert scaler.skipped() == ([],)
    scaler.remove()
    same(forward(model, sd3_inputs()), original)
    scale(model)
    same(forward(model, sd3_inputs()), wanted)


@pytest.mark.slow
@pytest.mark.parametrize("how", [compile_whole, compile_blocks])
def test_scales_act_after_another_model_of_the_class_ran_compiled(how):
    original, wanted = outputs(tiny_flux, flux_inputs)
    compiler.skip_nnmodule_hook_guards = True
    other, model = tiny_flux(), tiny_flux()
    how(other)
    same(forward(other, flux_inputs()), original)
    scaler = scale(model)
    how(model)
    for _ in range(2):
        same(forward(model, flux_inputs()), wanted)
        assert scaler.skipped() == ([],)
        same(forward(other, flux_inputs()), original)


def test_sites_that_a_stale_graph_leaves_unscaled_are_named():
    model = tiny_sd3()
    compile_forwards_of_blocks(model)
    forward(model, sd3_inputs())
    compiler.skip_nnmodule_hook_guards = False  # as if all were well
    scaler = scale(model)
    forward(model, sd3_inputs())
    assert len(scaler.skipped()[0]) == len(scaler.sites)
    assert [site.name for site in scaler.sites] == scaler.skipped()[0]

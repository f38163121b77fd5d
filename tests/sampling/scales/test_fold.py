import pytest
import torch
from torch import nn

from calibri.errors import FuseError
from calibri.sampling.scales.fold import Fused
from calibri.sampling.scales.scaler import Scaler
from tests.sampling.scales.models import MODELS, random_scales
from tests.tiny import forward, tiny_sd3


@MODELS
def test_fused_weights_give_the_output_of_the_hooks(make, inputs):
    model = make()
    scaler = Scaler(model)
    scales = random_scales(len(scaler.sites) + 1)
    scaler.set(scales)
    hooked = forward(model, inputs())
    scaler.remove()
    original = {name: value.clone() for name, value in model.state_dict().items()}
    fused = Fused(model, scales[0, 0].tolist())
    difference = (forward(model, inputs()) - hooked).abs().max()
    assert difference <= 2e-6 * max(1.0, float(hooked.abs().max()))
    fused.undo()
    assert all(torch.equal(value, original[name]) for name, value in model.state_dict().items())


class WrappedLinear(nn.Linear):
    """Stands for a LoRA layer: a linear that is not only its weight."""


def test_fusing_refuses_what_is_not_a_plain_linear_and_changes_nothing():
    model = tiny_sd3()
    model.transformer_blocks[1].ff.net[2] = WrappedLinear(64, 16)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(FuseError, match="WrappedLinear"):
        Fused(model, [0.5] * (len(Scaler(model).sites) + 1))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_fusing_without_originals_cannot_be_undone():
    model = tiny_sd3()
    fused = Fused(model, [0.5] * (len(Scaler(model).sites) + 1), keep_originals=False)
    with pytest.raises(FuseError, match="Load the model again"):
        fused.undo()


@pytest.mark.parametrize("other", ["attn.to_out.0", "ff.net.0.proj"])
def test_fusing_refuses_a_weight_that_stands_in_several_places(other):
    model = tiny_sd3()
    blocks = model.transformer_blocks
    shared = blocks[0].attn.to_out[0].weight
    tied = blocks[1].get_submodule(other)
    tied.weight = shared
    scaler = Scaler(model)
    place = next(i for i, site in enumerate(scaler.sites) if site.name.endswith("0.attn[0]"))
    scales = [1.0] * (len(scaler.sites) + 1)
    scales[place] = 0.5
    before = shared.clone()
    with pytest.raises(FuseError, match="one weight in several places"):
        Fused(model, scales)
    assert torch.equal(shared, before)

"""Hooks that multiply what modules return, and the tensor that holds their scales."""

import pytest
import torch
from torch import nn

from calibri.coefficients.columns import scaled_places
from calibri.errors import GuidanceError
from calibri.pipelines.sites.find import find_output_sites
from calibri.pipelines.sites.site import Site
from calibri.sampling.scales.site_hooks import SiteHook, SiteHooks
from tests.tiny import tiny_sd3


def test_scales_stay_fp32_and_outputs_keep_their_dtype():
    model = nn.Module()
    hook = SiteHook(find_output_sites(tiny_sd3())[0])
    hook.scale = torch.tensor([1.003, 0.997])
    output = torch.full((2, 3), 256.0, dtype=torch.bfloat16)
    scaled = hook(model, (), output)
    assert scaled.dtype == torch.bfloat16
    # In bf16 the second scalar would round to 0.996 and give 255.
    assert torch.equal(scaled, (output.float() * hook.scale[:, None]).to(torch.bfloat16))


def site_hooks():
    model = tiny_sd3()
    (places,) = scaled_places(model)
    return SiteHooks(model, places), len(places)


def test_filling_updates_the_tensor_that_compiled_graphs_hold():
    hooks, count = site_hooks()
    address = hooks.hooks[0].scale.data_ptr()
    hooks.fill(torch.rand(1, count))
    assert hooks.hooks[0].scale.data_ptr() == address
    assert hooks.hooks[0].scale != 1


def test_what_a_gradient_flows_through_is_never_overwritten():
    hooks, count = site_hooks()
    wanted = torch.ones(1, count, requires_grad=True)
    hooks.fill(wanted)
    held = [hook.scale for hook in hooks.hooks]
    hooks.fill(torch.full((1, count), 2.0))
    assert all(scale.requires_grad and scale == 1 for scale in held)
    assert not any(hook.scale.requires_grad for hook in hooks.hooks)


def test_each_hook_has_its_column():
    hooks, count = site_hooks()
    hooks.fill(torch.arange(2.0 * count).view(2, count))
    assert [hook.scale.tolist() for hook in hooks.hooks] == [[i, count + i] for i in range(count)]


def test_one_element_of_a_tuple_is_multiplied_and_the_others_stay():
    hook = SiteHook(Site("a.attn", 1, "a", "attn", "text", ()))
    hook.scale = torch.tensor([2.0, 3.0])
    one, two = torch.ones(2, 1), torch.ones(2, 1)
    first, second = hook(nn.Identity(), (), (one, two))
    assert first is one
    assert second.tolist() == [[2.0], [3.0]]


def test_frames_folded_into_the_batch_have_the_scale_of_their_row():
    hook = SiteHook(find_output_sites(tiny_sd3())[0])
    hook.scale = torch.tensor([2.0, 3.0])
    assert hook(nn.Identity(), (), torch.ones(4, 1)).flatten().tolist() == [2.0, 2.0, 3.0, 3.0]
    with pytest.raises(GuidanceError, match="2 rows, but 'proj_out' got a batch of 3"):
        hook(nn.Identity(), (), torch.ones(3, 1))


def test_a_packed_sequence_has_one_scale_at_a_time():
    hook = SiteHook(Site("a.attn", None, "a", "attn", "text", (), batch_axis=None))
    hook.scale = torch.tensor([2.0])
    assert hook(nn.Identity(), (), torch.ones(3)).tolist() == [2.0] * 3
    hook.scale = torch.tensor([2.0, 3.0])
    with pytest.raises(GuidanceError, match="one image and one branch at a time"):
        hook(nn.Identity(), (), torch.ones(3))

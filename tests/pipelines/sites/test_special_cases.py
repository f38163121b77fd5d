"""Blocks whose branches are not simply the outputs of their sublayers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from calibri.errors import FuseError, GuidanceError
from calibri.pipelines.discovery.replay import Scales, scaled_outputs
from calibri.pipelines.sites.find import assign_sites, find_output_sites, find_sites
from calibri.pipelines.sites.site import Fold, Site
from calibri.sampling.scales.fold import Fused
from calibri.sampling.scales.scaler import Scaler
from calibri.sampling.scales.site_hooks import SiteHook
from tests.pipelines.zoo import QUIET, ZOO, Specimen, run

SPECIMENS = {specimen.id: specimen for specimen in ZOO}
pytestmark = QUIET


def effect(specimen: Specimen, model: nn.Module, scales: Scales) -> float:
    """Largest change of the output, relative to it, when outputs inside the model are scaled."""
    before = run(model, specimen.draw())
    with scaled_outputs(model, scales):
        after = run(model, specimen.draw())
    pairs = zip(after, before, strict=True)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def site(model: nn.Module, name: str) -> Site:
    return next(found for found in find_sites(model) if found.name == name)


@pytest.mark.parametrize(
    ("name", "sublayer", "branch"),
    [
        ("Lumina2Transformer2DModel", "layers.0.attn", "layers.0.norm2"),
        ("Lumina2Transformer2DModel", "layers.0.feed_forward", "layers.0.ffn_norm2"),
        ("ZImageTransformer2DModel", "layers.0.attention", "layers.0.attention_norm2"),
        ("Ideogram4Transformer2DModel", "layers.0.attention", "layers.0.attention_norm2"),
        ("BriaFibo2Transformer2DModel", "layers.1.cross_attention", "layers.1.cross_attn_norm2"),
    ],
)
def test_in_a_post_norm_block_only_the_norm_scales_the_branch(name, sublayer, branch):
    specimen = SPECIMENS[name]
    model = specimen.model()
    assert site(model, branch)
    undone = effect(specimen, model, {(sublayer, None): 2.0})
    assert undone < 0.05 * effect(specimen, model, {(branch, None): 2.0})


def block_outputs(specimen: Specimen, model: nn.Module, block: str, scales: Scales) -> list[Tensor]:
    outputs: list[Tensor] = []
    handle = model.get_submodule(block).register_forward_hook(
        lambda module, args, output: outputs.extend(output)
    )
    with scaled_outputs(model, scales):
        run(model, specimen.draw())
    handle.remove()
    return outputs


@pytest.mark.parametrize(
    "name",
    [
        "CogVideoXTransformer3DModel",
        "ConsisIDTransformer3DModel",
        "CogView3PlusTransformer2DModel",
        "CogView4Transformer2DModel",
        "GlmImageTransformer2DModel",
        "EasyAnimateTransformer3DModel",
        "EasyAnimateTransformer3DModel-after_norm",
    ],
)
def test_a_linear_shared_by_two_streams_is_split_at_the_gates(name):
    specimen = SPECIMENS[name]
    model = specimen.model()
    last = find_sites(model)[-1].block
    own = [s for s in find_sites(model) if s.block == last]
    assert [(s.layer, s.stream) for s in own] == [
        ("attn", "visual"),
        ("attn", "text"),
        ("mlp", "visual"),
        ("mlp", "text"),
    ]
    assert all(s.fold[0].rows is not None for s in own)
    off = {(s.path, s.index): 0.0 for s in own}
    nothing = block_outputs(specimen, model, last, off)
    for position in (2, 3):
        alone = off | {(own[position].path, own[position].index): 1.0}
        moved = [
            not torch.equal(a, b)
            for a, b in zip(block_outputs(specimen, model, last, alone), nothing, strict=True)
        ]
        assert moved == [position == 2, position == 3]


def test_every_expert_takes_the_fold_chosen_by_a_token_or_not():
    model = SPECIMENS["HiDreamImageTransformer2DModel"].model()
    folds = [f.path for f in site(model, "double_stream_blocks.0.block.ff_i").fold]
    experts = [f"experts.{i}.w2" for i in range(2)]
    assert folds == [
        f"double_stream_blocks.0.block.ff_i.{name}" for name in (*experts, "shared_experts.w2")
    ]


def test_experts_in_one_parameter_are_folded_as_a_parameter():
    model = SPECIMENS["NucleusMoEImageTransformer2DModel"].model()
    folds = {s.name: [f.path for f in s.fold] for s in find_sites(model)}
    assert folds["transformer_blocks.0.img_mlp"] == ["transformer_blocks.0.img_mlp.net.2"]
    assert folds["transformer_blocks.3.img_mlp"] == [
        "transformer_blocks.3.img_mlp.experts.down_proj",
        "transformer_blocks.3.img_mlp.shared_expert.net.2",
    ]


@pytest.mark.parametrize(
    ("block", "branches"),
    [
        ("joint_transformer_blocks.1", (("attn", 0), ("attn", 1))),
        ("single_transformer_blocks.0", (("attn", None),)),
    ],
)
def test_in_a_nested_block_attention_acts_through_the_mlp_alone(block, branches):
    specimen = SPECIMENS["AuraFlowTransformer2DModel"]
    model = specimen.model()
    off = {
        (s.path, s.index): 0.0 for s in find_sites(model) if s.block == block and s.layer == "mlp"
    }
    for path, index in branches:
        scaled = {(f"{block}.{path}", index): 3.0}
        assert effect(specimen, model, scaled) > 1e-3
        assert effect(specimen, model, off) == effect(specimen, model, off | scaled)


def test_a_packed_sequence_refuses_scales_per_row():
    specimen = SPECIMENS["Cosmos3OmniTransformer"]
    model = specimen.model()
    scaler = Scaler(model)
    scaler.set(torch.ones(3, 1, len(scaler.sites) + 1))
    with pytest.raises(GuidanceError, match="1 rows for 3 images"):
        run(model, specimen.draw())
    hook = SiteHook(scaler.sites[0])
    hook.scale = torch.ones(3)
    with pytest.raises(GuidanceError, match="packed sequence"):
        hook(model, (), (torch.ones(6, 2), torch.ones(6, 2)))


def test_mochi_refuses_fusing_unless_there_is_nothing_to_fold():
    specimen = SPECIMENS["MochiTransformer3DModel"]
    model = specimen.model()
    size = len(find_sites(model)) + 1
    with pytest.raises(FuseError, match="tanh inside a norm without weights"):
        Fused(model, [0.5] * size)
    before = run(model, specimen.draw())
    Fused(model, [1.0] * (size - 1) + [0.5])
    after = run(model, specimen.draw())
    assert all(torch.equal(a, 0.5 * b) for a, b in zip(after, before, strict=True))


def test_a_fold_into_a_norm_without_weights_is_refused():
    model = nn.Sequential(nn.LayerNorm(4, elementwise_affine=False))
    norm = Site("0", None, block="", layer="attn", stream="visual", fold=(Fold("0"),))
    assign_sites(model, [norm], [norm])
    with pytest.raises(FuseError, match="no weights"):
        Fused(model, [0.5, 1.0])


def test_the_query_of_a_cross_attention_is_scaled_at_its_gate():
    specimen = SPECIMENS["MotifVideoTransformer3DModel-cross"]
    model = specimen.model()
    gate = effect(specimen, model, {("transformer_blocks.0.norm1", 1): -2.0})
    query = effect(specimen, model, {("transformer_blocks.0.attn", 0): -2.0})
    assert site(model, "transformer_blocks.0.norm1[1]").layer == "attn"
    assert abs(gate - query) > 1e-3


def test_refiners_and_control_branches_are_sites_on_request_only():
    model = SPECIMENS["Lumina2Transformer2DModel"].model()
    trunk = {s.block.split(".")[0] for s in find_sites(model)}
    every = {s.block.split(".")[0] for s in find_sites(model, auxiliary=True)}
    assert trunk == {"layers"}
    assert every == {"layers", "noise_refiner", "context_refiner"}


def test_the_outputs_of_two_modalities_share_the_output_weight():
    specimen = SPECIMENS["LTX2VideoTransformer3DModel"]
    model = specimen.model()
    before = run(model, specimen.draw())
    assert [s.path for s in find_output_sites(model)] == ["proj_out", "audio_proj_out"]
    scaler = Scaler(model)
    scales = torch.ones(1, 1, len(scaler.sites) + 1)
    scales[..., -1] = 0.25
    scaler.set(scales)
    video, audio = run(model, specimen.draw())
    assert torch.equal(video, 0.25 * before[0])
    assert torch.equal(audio, 0.25 * before[1])


def test_a_batch_on_another_axis_is_known():
    model = SPECIMENS["ErnieImageTransformer2DModel"].model()
    assert site(model, "layers.0.mlp").batch_axis == 1
    assert site(model, "layers.0.self_attention").batch_axis == 0
    assert find_output_sites(model)[0].batch_axis == 1

"""Files for ComfyUI, read by its own formulas, and names, read back by diffusers."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES
from safetensors.torch import load_file

from calibri.artifact.formats.comfyui import native_scales, write_lora
from calibri.artifact.formats.flux_blocks import write_blocks
from calibri.artifact.formats.native_names import known_classes, native_names
from calibri.coefficients.space import SearchSpace
from calibri.errors import UnsupportedModelError
from calibri.pipelines.networks import networks_of
from calibri.pipelines.sites.find import find_sites
from calibri.sampling.scales.fold import Fused
from tests.artifact.formats.comfyui import (
    KNOWN,
    LowRank,
    calculate_weight,
    load_fully,
    load_partly,
    read_patches,
)
from tests.pipelines.zoo import QUIET, ZOO, run
from tests.tiny import calibration_of, tiny_flux

pytestmark = QUIET

QUICK = {"FluxTransformer2DModel", "SD3Transformer2DModel-dual", "ZImageTransformer2DModel"}
FAMILIES = pytest.mark.parametrize(
    "specimen",
    [
        pytest.param(one, id=one.id, marks=() if one.id in QUICK else pytest.mark.slow)
        for one in KNOWN
    ],
)
GRANULARITIES = pytest.mark.parametrize("granularity", ["gate", "layer", "block"])


def made_for(model, granularity="gate", seed=0):
    space = SearchSpace.build(find_sites(model), granularity)
    vector = space.start + np.random.default_rng(seed).uniform(-0.6, 0.5, space.size)
    return calibration_of(model, space.coefficients(vector))


def native_tensors(model, scales):
    """Parameters of a model by their names in ComfyUI, as far as a calibration scales them."""
    names = native_names(model)
    found = {}
    for path, parameter in model.named_parameters():
        module, _, kind = path.rpartition(".")
        for name in (f"{names.of(module)}.{kind}", names.of(path)):
            if name in scales:
                found[f"diffusion_model.{name}"] = parameter
    assert len(found) == len(scales)
    return found


def written(model, made, tmp_path):
    """The tensors that a file scales, and the patches that ComfyUI reads from it."""
    write_lora(made, model, tmp_path / "x.safetensors")
    tensors = native_tensors(model, native_scales(made.coefficients, model))
    return tensors, read_patches(list(tensors), load_file(tmp_path / "x.safetensors"))


def apart(found, expected):
    """Relative maximum of a difference."""
    return float((found - expected).abs().max() / expected.abs().max())


@FAMILIES
@GRANULARITIES
@torch.no_grad()
def test_the_file_gives_the_fused_model(specimen, granularity, tmp_path):
    model, fused, inputs = specimen.model(), specimen.model(), specimen.draw()
    made = made_for(model, granularity)
    Fused(fused, made.coefficients.site_scales(find_sites(fused))[0].tolist())
    before, expected = run(model, inputs), run(fused, inputs)
    tensors, patches = written(model, made, tmp_path)
    for name, weight in tensors.items():
        weight.copy_(load_fully(weight, [(1.0, patches[name])]))
    for first, wanted, found in zip(before, expected, run(model, inputs), strict=True):
        assert apart(first, wanted) > 1e-2
        assert apart(found, wanted) <= 3e-6


@FAMILIES
@pytest.mark.parametrize("strength", [0.5, 1.0])
@torch.no_grad()
def test_it_scales_whatever_the_weights_are(specimen, strength, tmp_path):
    """Another fine-tune than the one it was made for, and another LoRA before it."""
    model = specimen.model()
    made = made_for(model)
    tensors, patches = written(model, made, tmp_path)
    scales = native_scales(made.coefficients, model)
    generator = torch.Generator().manual_seed(3)
    for name, weight in tensors.items():
        tuned = weight * (1 + 0.3 * torch.randn(weight.shape, generator=generator))
        matrix = weight.reshape(len(weight), -1)
        up = torch.randn(len(weight), 2, generator=generator)
        other = LowRank(up, torch.randn(2, matrix.shape[1], generator=generator))
        before = calculate_weight(tuned, [(0.7, other)], torch.float32)
        expected = (1 + strength * (scales[name.removeprefix("diffusion_model.")] - 1)) * before
        found = load_fully(tuned, [(0.7, other), (strength, patches[name])])
        assert apart(found, expected) <= 5e-7


# Half a step of a type, relative to a number, and of its smallest numbers.
HALF_STEPS = {
    torch.float32: (2.0**-24, 0.0),
    torch.bfloat16: (2.0**-8, 0.0),
    torch.float8_e4m3fn: (2.0**-4, 2.0**-10),
}
# ComfyUI computes W + (s W - W), each step of it rounded.
SUMS = 2.0**-22


@FAMILIES
@pytest.mark.parametrize("dtype", HALF_STEPS, ids=str)
@torch.no_grad()
def test_in_every_precision_nothing_but_rounding_is_lost(specimen, dtype, tmp_path):
    model = specimen.model()
    tensors, patches = written(model, made_for(model), tmp_path)
    relative, smallest = HALF_STEPS[dtype]
    for name, parameter in tensors.items():
        weight = parameter.to(dtype)
        exact = patches[name].rescale.double() * weight.double()
        lost = (load_fully(weight, [(1.0, patches[name])]).double() - exact).abs()
        sums = SUMS * (weight.double().abs() + exact.abs())
        assert (lost <= relative * exact.abs() + smallest + sums).all()
        # Where it does not fit, it is computed in 16 bits, and stays so.
        partly = load_partly(weight, [(1.0, patches[name])], torch.bfloat16).double()
        assert apart(partly, exact) <= 4 * HALF_STEPS[torch.bfloat16][0]


class Checkpoint(dict):
    """A checkpoint with some tensors whose names matter, and any other that is asked for."""

    hint = ""

    def __contains__(self, name):
        # It is looked for after all was taken out.
        return super().__contains__(name) or name == self.hint

    def __missing__(self, name):
        return torch.empty(7 * 3072, 1, device="meta")

    def pop(self, name, *default):
        return super().pop(name, None) if name in self.keys() else self[name]


# Families whose checkpoints diffusers does not read, or as they are.
UNREAD = {
    "PixArtTransformer2DModel",
    "QwenImageTransformer2DModel",
    "HunyuanDiT2DModel",
    "HunyuanImageTransformer2DModel",
    "HunyuanVideo15Transformer3DModel",
    "AceStepTransformer1DModel",
    "Ideogram4Transformer2DModel",
    "JoyImageEditPlusTransformer3DModel",
    "JoyImageEditTransformer3DModel",
    "Kandinsky5Transformer3DModel",
    "LongCatImageTransformer2DModel",
    "OvisImageTransformer2DModel",
    "StableAudioDiTModel",
}
# Names that are looked for, or looked at, beside those that a calibration scales.
HINTS = {
    "ChromaTransformer2DModel": "distilled_guidance_layer.layers.0.in_layer.weight",
    "CosmosTransformer3DModel": "net.blocks.block1.blocks.0.block.attn.to_q.0.weight",
}


def stored_name(name, specimen):
    """What ComfyUI's loading makes a name in its class from."""
    name = name.removeprefix("diffusion_model.")
    if specimen.model_class == "CosmosTransformer3DModel":
        return f"net.{name}"
    if specimen.model_class == "HunyuanVideoTransformer3DModel":
        # ``HunyuanVideo.process_unet_state_dict``
        return name.replace("_attn.proj.", "_attn_proj.").replace("mlp.2.", "mlp.fc2.")
    return name


@pytest.mark.parametrize("specimen", KNOWN, ids=lambda one: one.id)
def test_diffusers_reads_the_names_back(specimen):
    """An independent oracle: its conversion of checkpoints with the names that ComfyUI keeps."""
    if specimen.model_class in UNREAD:
        pytest.skip("diffusers does not convert its checkpoints")
    model = specimen.model()
    tensors = native_tensors(model, native_scales(made_for(model).coefficients, model))
    paths = {id(parameter): path for path, parameter in model.named_parameters()}
    checkpoint = Checkpoint({stored_name(name, specimen): p for name, p in tensors.items()})
    if specimen.id in HINTS:
        checkpoint.hint = HINTS[specimen.id]
        checkpoint[checkpoint.hint] = checkpoint[checkpoint.hint]
    convert = SINGLE_FILE_LOADABLE_CLASSES[specimen.model_class]["checkpoint_mapping_fn"]
    converted = convert(checkpoint)
    assert {id(value): name for name, value in converted.items() if id(value) in paths} == {
        id(parameter): paths[id(parameter)] for parameter in tensors.values()
    }


def test_a_class_that_comfyui_has_under_no_known_name_is_refused():
    refused = [one for one in ZOO if one.model_class not in known_classes()]
    assert refused
    for specimen in refused:
        with pytest.raises(UnsupportedModelError, match=f"{specimen.model_class} is not known"):
            native_names(specimen.model())


@pytest.mark.parametrize("name", known_classes())
def test_every_known_class_is_in_the_zoo(name):
    assert name in {one.model_class for one in ZOO}


def test_a_scale_of_one_is_not_in_the_file(tmp_path):
    model = tiny_flux()
    made = made_for(model)
    first = next(iter(made.coefficients.scales[0]))
    scales = {**made.coefficients.scales[0], first: 1.0}
    same = made.coefficients.model_copy(update={"scales": (scales,)})
    assert len(native_scales(same, model)) == len(native_scales(made.coefficients, model)) - 2
    assert networks_of(model)


@FAMILIES
@GRANULARITIES
def test_the_text_scales_the_same_tensors(specimen, granularity, tmp_path):
    """By the rule of FluxBlocksBuster: the pattern of a line is searched in every name."""
    model = specimen.model()
    made = made_for(model, granularity)
    write_blocks(made, model, tmp_path / "blocks.txt")
    lines = [line.split("=") for line in (tmp_path / "blocks.txt").read_text().splitlines()]
    scales = native_scales(made.coefficients, model)
    # Tensors beside them, some of whose names hold theirs.
    others = [f"{stem}{name}" for stem in ("x.", "x_", "blocks.1.") for name in scales]
    others += [f"{name.replace('.', 'x', 1)}" for name in scales]
    found = {}
    for name in (*scales, *others):
        for pattern, value in lines:
            if re.search(pattern, f"diffusion_model.{name}"):
                assert name not in found
                found[name] = float(value)
    assert found == scales

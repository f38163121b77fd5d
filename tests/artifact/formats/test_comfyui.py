"""Files for ComfyUI, read by its own formulas, and names, read back by diffusers."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from calibri.artifact.formats.comfyui import native_scales, write_lora
from calibri.artifact.formats.flux_blocks import write_blocks
from calibri.artifact.formats.native_names import known_classes, native_names
from calibri.artifact.formats.workflow import first_step_below
from calibri.coefficients.space import SearchSpace
from calibri.errors import RunError, UnsupportedModelError
from calibri.pipelines.networks import Network, networks_of, sites_of
from calibri.pipelines.sites.find import find_output_sites, find_sites
from calibri.sampling.scales.fold import Fused
from tests.artifact.formats.comfyui import (
    KNOWN,
    LowRank,
    calculate_weight,
    load_fully,
    load_partly,
    read_patches,
)
from tests.artifact.formats.comfyui_layers import LAYERS
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
    if specimen.model_class in {*LAYERS, "QwenImageTransformer2DModel"}:
        pytest.skip("diffusers does not convert its checkpoints, or keeps all names")
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


@pytest.mark.parametrize(
    "specimen", [one for one in KNOWN if one.model_class in LAYERS], ids=lambda one: one.id
)
def test_comfyui_has_a_layer_of_every_name(specimen):
    model = specimen.model()
    scales = native_scales(made_for(model).coefficients, model)
    names = {name.rpartition(".")[0] for name in scales}
    # The number of a block is the first in a path.
    patterns = {re.sub(r"\.\d+(?=\.)", ".*", name, count=1) for name in names}
    assert patterns <= LAYERS[specimen.model_class]
    # No two branches of a block are the same layer.
    assert len(names) == len({fold.path for site in scaled_sites(model) for fold in site.fold})


def scaled_sites(model):
    return (*find_sites(model), *find_output_sites(model))


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


def settings(made, **changed):
    return made.model_copy(update={"sampling": made.sampling.model_copy(update=changed)})


def nodes_of(file):
    nodes = json.loads(file.read_text())
    links = [v for node in nodes.values() for v in node["inputs"].values() if isinstance(v, list)]
    assert {target for target, _ in links} <= nodes.keys()
    return nodes


def test_the_workflow_loads_the_file_last_and_samples_as_calibrated(tmp_path):
    model = tiny_flux()
    made = settings(made_for(model), guidance_scale=3.5, num_inference_steps=15)
    write_lora(made, model, tmp_path / "x.safetensors")
    nodes = nodes_of(tmp_path / "x.workflow.json")
    sampler = nodes["sampler"]["inputs"]
    assert nodes[sampler["model"][0]]["inputs"]["lora_name"] == "x.safetensors"
    assert (sampler["steps"], sampler["cfg"]) == (15, 1.0)
    assert nodes[sampler["positive"][0]]["inputs"]["guidance"] == 3.5


def test_guidance_is_in_the_words_of_comfyui(tmp_path):
    """The pipeline of Z-Image combines as c + g (c - u), ComfyUI as u + w (c - u)."""
    (specimen,) = [one for one in KNOWN if one.model_class == "ZImageTransformer2DModel"]
    model = specimen.model()
    write_lora(settings(made_for(model), guidance_scale=3.0), model, tmp_path / "x.safetensors")
    assert nodes_of(tmp_path / "x.workflow.json")["sampler"]["inputs"]["cfg"] == 4.0


def test_a_workflow_that_is_there_is_left_alone(tmp_path):
    (tmp_path / "x.workflow.json").write_text("mine")
    with pytest.raises(RunError, match="exists"):
        write_lora(made_for(tiny_flux()), tiny_flux(), tmp_path / "x.safetensors")
    assert [p.name for p in tmp_path.glob("x.*")] == ["x.workflow.json"]


@FAMILIES
def test_a_workflow_is_whole_or_not_there(specimen, tmp_path):
    model = specimen.model()
    write_lora(made_for(model), model, tmp_path / "x.safetensors")
    for file in tmp_path.glob("*.json"):
        assert nodes_of(file)["sampler"]["inputs"]["steps"] > 0


@given(boundary=st.floats(0.05, 0.99), steps=st.integers(1, 100), shift=st.floats(1.0, 12.0))
def test_the_models_change_where_the_noise_passes_the_boundary(boundary, steps, shift):
    change = first_step_below(boundary, steps, shift)

    def sigma(step):
        time = 1 - step / steps
        return shift * time / (1 + (shift - 1) * time)

    assert all(sigma(step) >= boundary - 1e-6 for step in range(change))
    assert all(sigma(step) <= boundary + 1e-6 for step in range(change, steps))


def wan_2_2():
    """Two networks as the skeletons of Wan 2.2 have them, and what is fused into them."""
    (specimen,) = [one for one in KNOWN if one.id == "WanTransformer3DModel"]
    return [Network(specimen.model()), Network(specimen.model(), "transformer_2")]


def made_for_both(networks):
    space = SearchSpace.build(sites_of(networks), "gate")
    vector = space.start + np.random.default_rng(1).uniform(-0.6, 0.5, space.size)
    return calibration_of(networks[0].transformer, space.coefficients(vector))


@torch.no_grad()
def test_each_of_two_transformers_has_its_file(tmp_path):
    networks, fused = wan_2_2(), wan_2_2()
    made = made_for_both(networks)
    Fused(fused, made.coefficients.site_scales(sites_of(fused))[0].tolist())
    write_lora(made, networks, tmp_path / "x")
    for index, name in enumerate(("high_noise", "low_noise")):
        model = networks[index].transformer
        scales = native_scales(made.coefficients, networks, index)
        tensors = native_tensors(model, scales)
        patches = read_patches(list(tensors), load_file(tmp_path / "x" / f"{name}.safetensors"))
        for key, weight in tensors.items():
            weight.copy_(load_fully(weight, [(1.0, patches[key])]))
        wanted = fused[index].transformer.state_dict()
        for key, value in model.state_dict().items():
            assert apart(value, wanted[key]) <= 5e-7
    states = [network.transformer.state_dict() for network in networks]
    assert any(not torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_the_workflow_of_two_says_which_goes_where(tmp_path):
    made = settings(made_for_both(wan_2_2()), num_inference_steps=20, guidance_scale=4.0)
    write_lora(made, wan_2_2(), tmp_path / "mine")
    nodes = nodes_of(tmp_path / "mine" / "workflow.json")
    last = nodes["sampler"]["inputs"]
    first = nodes[last["latent_image"][0]]["inputs"]
    loaded = [nodes[one["model"][0]]["inputs"]["lora_name"] for one in (first, last)]
    assert loaded == ["mine/high_noise.safetensors", "mine/low_noise.safetensors"]
    assert first["start_at_step"] == 0 < first["end_at_step"] == last["start_at_step"]
    assert last["end_at_step"] == first["steps"] == last["steps"] == 20
    assert first["cfg"] == last["cfg"] == 4.0


def test_a_file_for_two_transformers_is_refused_before_it_is_written(tmp_path):
    with pytest.raises(RunError, match=f"high_noise and low_noise.*--output {tmp_path / 'x'}"):
        write_lora(made_for_both(wan_2_2()), wan_2_2(), tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())

"""The node for ComfyUI against Calibri's own way of applying a calibration."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from calibri.artifact.apply import load
from calibri.artifact.formats.comfyui import native_scales
from calibri.coefficients.space import SearchSpace
from calibri.pipelines.networks import Network as Part
from calibri.pipelines.networks import sites_of
from calibri.pipelines.sites.find import find_sites
from integrations.comfyui import NODE_CLASS_MAPPINGS
from integrations.comfyui.nodes import LoadCalibration
from tests.artifact.formats.comfyui import KNOWN
from tests.integrations.places import FILE, all_places
from tests.integrations.stand_in import Flow, Native, Network, Patcher
from tests.pipelines.zoo import QUIET
from tests.tiny import calibration_of, flux_inputs, has_hooks, sd3_inputs, tiny_flux, tiny_sd3

pytestmark = QUIET
SIGMA = 0.3


def with_time(inputs, most):
    """The inputs at a share of noise that is the same for ComfyUI and for diffusers."""
    return inputs | {"timestep": torch.full_like(inputs["timestep"], SIGMA * most)}


FLUX = (tiny_flux, lambda: with_time(flux_inputs(), 1.0))
SD3 = (tiny_sd3, lambda: with_time(sd3_inputs(), 1000.0))


def made_for(model, granularity="gate", **space):
    built = SearchSpace.build(find_sites(model), granularity, **space)
    vector = built.start + np.random.default_rng(1).uniform(-0.6, 0.5, built.size)
    return calibration_of(model, built.coefficients(vector))


def patcher_of(model):
    """ComfyUI's model, called with the latent first and the rest by name."""
    return Patcher(
        Network(Native(model, lambda x, **kw: model(hidden_states=x, **kw, return_dict=False)[0]))
    )


def run(patcher, inputs, **options):
    inputs = dict(inputs)
    return patcher.run(inputs.pop("hidden_states"), SIGMA, **inputs, **options)


@torch.no_grad()
def expected_of(model, made, inputs, strength=1.0, branch=None):
    applied = load(model, made, strength=strength)
    told = applied.branch(branch) if branch else contextlib.nullcontext()
    with told:
        found = model(**inputs, return_dict=False)[0]
    applied.unload()
    return found


def apart(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


def loaded(model, made, folder, strength=1.0):
    made.save_pretrained(folder)
    return LoadCalibration().load(patcher_of(model), str(folder), strength)[0]


@pytest.mark.parametrize(("make", "inputs"), [FLUX, SD3])
@pytest.mark.parametrize("granularity", ["gate", "layer", "block"])
@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_constant_scales_are_patches_of_weights(make, inputs, granularity, strength, tmp_path):
    model = make()
    made = made_for(model, granularity)
    patched = loaded(model, made, tmp_path, strength)
    assert not patched.wrappers
    assert apart(run(patched, inputs()), expected_of(model, made, inputs(), strength)) <= 2e-6


@pytest.mark.parametrize(("make", "inputs"), [FLUX, SD3])
@pytest.mark.parametrize(
    "space", [{"knots": 3}, {"members": 3}, {"knots": 2, "members": 2}], ids=str
)
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_what_weights_cannot_hold_is_done_at_every_forward(make, inputs, space, strength, tmp_path):
    model = make()
    made = made_for(model, **space)
    patched = loaded(model, made, tmp_path, strength)
    assert not patched.patches
    found = run(patched, inputs())
    assert apart(found, expected_of(model, made, inputs(), strength)) <= 3e-6
    assert not has_hooks(model)


def two_transformers():
    """The networks of Wan 2.2 and a calibration of both."""
    (specimen,) = [one for one in KNOWN if one.id == "WanTransformer3DModel"]
    networks = [Part(specimen.model()), Part(specimen.model(), "transformer_2")]
    space = SearchSpace.build(sites_of(networks), "gate")
    vector = space.start + np.random.default_rng(1).uniform(-0.6, 0.5, space.size)
    return networks, calibration_of(networks[0].transformer, space.coefficients(vector))


@pytest.mark.parametrize(("index", "part"), [(0, "high noise"), (1, "low noise")])
def test_each_of_two_transformers_takes_its_own_scales(index, part, tmp_path):
    networks, made = two_transformers()
    made.save_pretrained(tmp_path)
    patcher = patcher_of(networks[index].transformer)
    patched, _ = LoadCalibration().load(patcher, str(tmp_path), 1.0, part)
    factors = {key: patches[0][2] for key, patches in patched.patches.items()}
    scales = native_scales(made.coefficients, networks, index)
    assert factors == pytest.approx({f"diffusion_model.{k}": v for k, v in scales.items()})


def test_which_of_two_transformers_is_asked_for(tmp_path):
    networks, made = two_transformers()
    made.save_pretrained(tmp_path / "two")
    made_for(tiny_flux()).save_pretrained(tmp_path / "one")
    patcher = patcher_of(networks[0].transformer)
    with pytest.raises(ValueError, match="two transformers.*high noise"):
        LoadCalibration().load(patcher, str(tmp_path / "two"), 1.0)
    with pytest.raises(ValueError, match="one transformer.*'only'"):
        LoadCalibration().load(patcher, str(tmp_path / "one"), 1.0, "low noise")


def test_branches_of_guidance_take_their_own_scales_in_any_order(tmp_path):
    model = tiny_sd3()
    made = made_for(model, guidance_scale=3.0, branches="separate")
    patched = loaded(model, made, tmp_path)
    inputs = with_time(sd3_inputs(), 1000.0)
    alone = {
        index: expected_of(model, made, inputs, branch=name)
        for index, name in enumerate(("conditional", "unconditional"))
    }
    assert apart(alone[0], alone[1]) > 1e-2
    both = {name: torch.cat([value, value]) for name, value in inputs.items()}
    for branches in ((0,), (1,), (0, 1), (1, 0)):
        found = run(patched, both if len(branches) == 2 else inputs, branches=branches)
        assert apart(found, torch.cat([alone[branch] for branch in branches])) <= 3e-6


def test_the_embedded_guidance_and_the_shift_are_multiplied(tmp_path):
    model, inputs = tiny_flux(), flux_inputs()
    made = made_for(model)
    factors = made.coefficients.model_copy(update={"guidance": 1.5, "shift": 2.0})
    patched = loaded(model, made.model_copy(update={"coefficients": factors}), tmp_path)
    more = inputs | {"guidance": 1.5 * inputs["guidance"]}
    assert apart(run(patched, inputs), expected_of(model, made, more)) <= 2e-6
    assert patched.get_model_object("model_sampling").shift == 2.0 * patched.sampling.shift
    with pytest.raises(ValueError, match="FluxGuidance"):
        run(patched, inputs | {"guidance": None})


def test_the_model_that_came_in_stays_as_it_is(tmp_path):
    model, inputs = tiny_flux(), flux_inputs()
    given = patcher_of(model)
    before = run(given, inputs)
    made = made_for(model, members=2)
    made.save_pretrained(tmp_path)
    LoadCalibration().load(given, str(tmp_path), 1.0)
    assert torch.equal(run(given, inputs), before)


@pytest.mark.parametrize("place", ["calibri.json", ".", "run"])
def test_a_folder_a_file_and_a_run_are_taken(place, tmp_path):
    model = tiny_flux()
    folder = tmp_path / "calibration" if place == "run" else tmp_path
    made_for(model).save_pretrained(folder)
    path = tmp_path if place == "run" else tmp_path / place
    _, advice = LoadCalibration().load(patcher_of(model), str(path), 1.0)
    assert advice == "Made for 3 steps, guidance 1"


def test_what_it_cannot_do_is_said_in_words(tmp_path):
    flux, sd3 = tiny_flux(), tiny_sd3()
    made_for(flux).save_pretrained(tmp_path / "flux")
    made_for(flux, knots=2).save_pretrained(tmp_path / "knots")
    load_onto = LoadCalibration().load
    with pytest.raises(ValueError, match="0 of them are in the model"):
        load_onto(patcher_of(sd3), str(tmp_path / "flux"), 1.0)
    with pytest.raises(ValueError, match="No calibration was found"):
        load_onto(patcher_of(flux), str(tmp_path), 1.0)
    other = patcher_of(flux)
    other.sampling = type("EDM", (Flow,), {"sigma_max": torch.tensor(80.0)})()
    with pytest.raises(ValueError, match="one knot"):
        load_onto(other, str(tmp_path / "knots"), 1.0)
    with pytest.raises(ValueError, match="goes to models/loras"):
        load_onto(patcher_of(flux), str(tmp_path / "flux" / "calibri.safetensors"), 1.0)
    file = tmp_path / "flux" / "calibri.json"
    document = json.loads(file.read_text())
    file.write_text(json.dumps(document | {"transformer_class": "MochiTransformer3DModel"}))
    with pytest.raises(ValueError, match="MochiTransformer3DModel, whose names"):
        load_onto(patcher_of(flux), str(tmp_path / "flux"), 1.0)
    file.write_text(json.dumps(document | {"format_version": 3}))
    with pytest.raises(ValueError, match="Update the node"):
        load_onto(patcher_of(flux), str(tmp_path / "flux"), 1.0)


def test_the_table_of_the_node_is_that_of_calibri():
    assert json.loads(FILE.read_text()) == all_places()


@pytest.mark.parametrize("specimen", KNOWN, ids=lambda one: one.id)
def test_every_family_is_patched_where_calibri_folds(specimen, tmp_path):
    model = specimen.model()
    made = made_for(model)
    patched = loaded(model, made, tmp_path)
    found = {key.removeprefix("diffusion_model."): p[0][2] for key, p in patched.patches.items()}
    assert found == pytest.approx(native_scales(made.coefficients, model))


def test_the_folder_is_all_that_is_needed(tmp_path):
    """Copied elsewhere it is imported without Calibri and diffusers."""
    source = Path(FILE).parent
    target = tmp_path / "calibri_node"
    target.mkdir()
    for file in source.iterdir():
        if file.is_file():
            (target / file.name).write_bytes(file.read_bytes())
    code = (
        "import sys, calibri_node; assert calibri_node.NODE_CLASS_MAPPINGS; "
        "assert not {'calibri', 'diffusers', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, env={"PYTHONPATH": ""})


WORKFLOWS = sorted((FILE.parent / "workflows").glob("*.json"))


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_an_example_workflow_samples_what_the_calibration_loader_gives(file):
    workflow = json.loads(file.read_text())
    for step in workflow.values():
        for value in step["inputs"].values():
            assert not isinstance(value, list) or value[0] in workflow
    (sampler,) = (step for step in workflow.values() if step["class_type"] == "KSampler")
    loader = workflow[sampler["inputs"]["model"][0]]
    if loader["class_type"] in NODE_CLASS_MAPPINGS:
        node = NODE_CLASS_MAPPINGS[loader["class_type"]]
        assert loader["inputs"].keys() == node.INPUT_TYPES()["required"].keys()
    else:
        assert loader["class_type"] == "LoraLoaderModelOnly"

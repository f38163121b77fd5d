"""A calibration of a text-to-image model on the pipelines that take pictures besides the prompt."""

import importlib
import inspect
import re

import diffusers
import pytest
import torch

import calibri
from calibri.pipelines.classes import transformer_classes
from calibri.pipelines.families.lookup import family_of
from calibri.sampling.branches import BranchResolver
from calibri.sampling.scales.scaler import Scaler
from tests.sampling.conditioned import sample
from tests.sampling.conditioned_cases import CASES, PERTURBED
from tests.sampling.conditioned_not_run import NOT_RUN
from tests.sampling.pipelines import CASES as TEXT_TO_IMAGE
from tests.tiny import scaled_calibration

pytestmark = pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)


@pytest.fixture(autouse=True)
def small_source_pictures(monkeypatch):
    """Qwen-Image's editing pipelines look at a megapixel whatever they are asked for."""
    for name in ("edit", "edit_plus", "edit_inpaint"):
        module = importlib.import_module(f"diffusers.pipelines.qwenimage.pipeline_qwenimage_{name}")
        sizes = module.calculate_dimensions
        monkeypatch.setattr(
            module, "calculate_dimensions", lambda _, ratio, f=sizes: f(1024, ratio)
        )


def of_sibling(case, **options):
    """A calibration that was found on the text-to-image pipeline of the same transformer."""
    sibling = next(c for c in TEXT_TO_IMAGE if c.transformer == case.transformer)
    return scaled_calibration(sibling.build(), guidance_scale=3.0, **options)


def identity(calibration):
    own = calibration.coefficients
    scales = tuple(dict.fromkeys(each, 1.0) for each in own.scales)
    ones = own.model_copy(update=dict(scales=scales, output_weights=own.start_weights))
    return calibration.model_copy(update=dict(coefficients=ones))


@every_case
def test_a_calibration_of_the_text_to_image_model_acts_and_comes_off(case):
    pipe, calibration = case.build(), of_sibling(case, branches="separate")
    expected = sample(case, pipe, 3.0)
    before = set(vars(pipe)), set(vars(pipe.transformer))
    loaded = calibri.load(pipe, identity(calibration))
    assert torch.equal(sample(case, pipe, 3.0), expected)
    loaded.unload()
    loaded = calibri.load(pipe, calibration)
    assert not torch.allclose(sample(case, pipe, 3.0), expected, rtol=1e-3, atol=1e-3)
    loaded.unload()
    assert torch.equal(sample(case, pipe, 3.0), expected)
    assert (set(vars(pipe)), set(vars(pipe.transformer))) == before


@every_case
def test_fused_weights_are_the_loaded_calibration(case):
    pipe = case.build()
    loaded = calibri.load(pipe, of_sibling(case))
    expected = sample(case, pipe, 3.0)
    loaded.fuse()
    torch.testing.assert_close(sample(case, pipe, 3.0), expected, rtol=1e-3, atol=1e-3)


@every_case
@pytest.mark.parametrize("branch", [0, 1])
def test_a_scale_of_one_branch_reaches_its_rows_only(case, branch):
    pipe = case.build()
    scaler = Scaler(pipe.transformer, BranchResolver(pipe))
    scales = torch.ones(1, 2, len(scaler.sites) + 1)
    scaler.set(scales)
    before = predictions(case, pipe)
    scales[:, branch, -1] = 0.5
    scaler.set(scales)
    after = predictions(case, pipe)
    assert len(before) == len(after) == len(case.rows)
    for groups, one, other in zip(case.rows, before, after, strict=True):
        for group, a, b in zip(groups, one, other, strict=True):
            assert torch.allclose(a, b, atol=1e-5) != (group == branch)


def predictions(case, pipe, **more):
    """What the transformer returned in each call of a step, split into the groups of its rows."""
    outputs = []
    keep = pipe.transformer.register_forward_hook(lambda m, a, out: outputs.append(out[0]))
    sample(case, pipe, 3.0, steps=case.steps, **more)
    keep.remove()
    stacked = [torch.stack(list(output)) for output in outputs[: len(case.rows)]]
    return [out.chunk(len(groups)) for out, groups in zip(stacked, case.rows, strict=True)]


controlled = [case for case in CASES if "ControlNet" in case.name]


@pytest.mark.parametrize("case", controlled, ids=lambda case: case.id)
def test_what_a_controlnet_adds_is_not_scaled(case):
    pipe = case.build()
    scaler = Scaler(pipe.transformer, BranchResolver(pipe))
    assert not {id(m) for m in pipe.controlnet.modules()} & {
        id(pipe.transformer.get_submodule(site.path)) for site in scaler.sites
    }
    scales = torch.zeros(1, 2, len(scaler.sites) + 1)
    scales[:, :, -1] = 1.0
    scaler.set(scales)
    strong, weak = (
        predictions(case, pipe, controlnet_conditioning_scale=scale)[0][0] for scale in (1.0, 0.5)
    )
    assert not torch.allclose(strong, weak, rtol=1e-3)


perturbed = [case for case in CASES if case.rows == PERTURBED]


@pytest.mark.parametrize("case", perturbed, ids=lambda case: case.id)
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_perturbed_rows_are_of_the_prompt(case, guidance):
    """PAG adds p (c - c'), the difference of two predictions of the prompt, and it stays one:

    where the perturbation changes nothing, nothing is added, whatever the output weights.
    """
    pipe = case.build()
    pipe.set_pag_applied_layers(
        "blocks.0", tuple(pipe.transformer.attn_processors.values())[:1] * 2
    )
    scaler = Scaler(pipe.transformer, BranchResolver(pipe))
    scales = torch.ones(1, 2, len(scaler.sites) + 1)
    scales[:, 0, -1], scales[:, 1, -1] = 1.2, 0.8
    scaler.set(scales)
    with_it, without = (sample(case, pipe, guidance, pag_scale=p) for p in (2.0, 0.0))
    torch.testing.assert_close(with_it, without, rtol=1e-3, atol=1e-4)


def test_no_pipeline_that_takes_pictures_is_forgotten():
    """Every one is run here, or a reason is given; what diffusers adds fails here by name."""
    known = {case.name for case in CASES} | set(NOT_RUN)
    assert conditioned_pipelines() <= known


def conditioned_pipelines():
    return {
        name
        for name in dir(diffusers)
        if name.endswith("Pipeline") and takes_pictures(getattr(diffusers, name))
    }


def takes_pictures(kind):
    named = str(inspect.signature(kind.__init__).parameters.get("transformer", ""))
    found = set(re.findall(r"\w+", named)) & set(transformer_classes())
    if not found or family_of(found.pop()).refused:
        return False
    call = set(inspect.signature(kind.__call__).parameters)
    pictures = {"image", "images", "input_images", "video", "control_image", "control_video"}
    return bool(call & (pictures | {"controls", "conditions", "pag_scale"}))

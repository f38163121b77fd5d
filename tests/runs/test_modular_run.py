"""A modular pipeline from a folder: inspected, calibrated, sampled from, fused."""

import json
import shutil

import diffusers
import numpy as np
import pytest
import torch

import calibri
from calibri.coefficients.space import SearchSpace
from calibri.errors import UnsupportedModelError
from calibri.pipelines import load_pipeline
from calibri.pipelines.networks import sites_of
from calibri.sampling.call import GivenSettings, PipelineCall
from calibri.sampling.guiders import guiders_of
from calibri.sampling.modular import sampled
from tests.tiny import FEW_PROMPTS, TINY_RUN, calibration_of

PARTS = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
RUN = (
    TINY_RUN
    | FEW_PROMPTS
    | {
        "sampling.height": 24,
        "sampling.width": 24,
        "sampling.guidance_scale": 3.0,
        "space.branches": "separate",
        "search.generations": 1,
        "rewards.objective": "shapes",
    }
)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """The shipped pipeline in blocks; they give its third text encoder more tokens than it has."""
    shipped = load_pipeline("shapes")
    pipe = diffusers.StableDiffusion3AutoBlocks().init_pipeline()
    own = {name: getattr(shipped, name) for name in (*PARTS, "transformer", "vae", "scheduler")}
    pipe.update_components(**own)
    folder = tmp_path_factory.mktemp("modular") / "pipeline"
    pipe.save_pretrained(str(folder), overwrite_modular_index=True)
    return folder


def test_a_folder_has_the_sites_of_its_transformer(folder):
    inspected = calibri.inspect(str(folder))
    assert inspected.counts == calibri.inspect("shapes").counts


def test_a_search_scores_pictures_and_what_it_finds_loads_and_fuses(folder, tmp_path):
    summary = calibri.calibrate(pipeline=str(folder), runs=str(tmp_path), name="run", **nested(RUN))
    calibration = calibri.Calibration.from_pretrained(tmp_path / "run")
    assert calibration.coefficients.num_branches == 2
    assert summary.evaluation is not None
    before, after = (
        calibri.generate(str(folder), "a red circle", calibration=c, num_inference_steps=2)
        for c in (None, calibration)
    )
    assert before[0].size == after[0].size == (24, 24)


def nested(values):
    found = {}
    for name, value in values.items():
        section, _, key = name.rpartition(".")
        (found.setdefault(section, {}) if section else found)[key] = value
    return found


def scaled(pipe):
    space = SearchSpace.build(sites_of(pipe), "gate")
    return space.coefficients(np.linspace(0.7, 1.3, len(space.start)))


def test_fusing_changes_the_stored_weights_in_place(folder, tmp_path):
    pipe = load_pipeline(str(folder))
    calibration = calibration_of(pipe.transformer, scaled(pipe))
    calibri.load(pipe, calibration)
    target = calibri.fuse(calibration, tmp_path / "fused", pipeline=str(folder))
    fused = load_pipeline(str(target))
    assert type(fused).__name__ == "StableDiffusion3ModularPipeline"
    assert fused.get_component_spec("transformer").pretrained_model_name_or_path == str(target)
    assert (target / "vae").is_dir()
    torch.testing.assert_close(sample(fused), sample(pipe), rtol=1e-4, atol=1e-4)


def test_fusing_in_another_dtype_saves_all_of_it(folder, tmp_path):
    pipe = load_pipeline(str(folder))
    calibration = calibration_of(pipe.transformer, scaled(pipe))
    target = tmp_path / "fused"
    calibri.fuse(calibration, target, pipeline=str(folder), dtype="bfloat16")
    fused = load_pipeline(str(target), dtype="bfloat16")
    assert fused.get_component_spec("vae").pretrained_model_name_or_path == str(target)
    assert fused.transformer.dtype == torch.bfloat16


def sample(pipe):
    generator = torch.Generator().manual_seed(0)
    size = dict(height=24, width=24, num_inference_steps=2, output_type="pt")
    return sampled(pipe, prompt="a red circle", generator=generator, **size)


def test_the_guidance_of_a_guider_is_that_of_the_run_and_given_back(folder):
    pipe = load_pipeline(str(folder))
    own = guiders_of(pipe)[0].guidance_scale
    assert PipelineCall(pipe, GivenSettings(guidance_scale=3.0)).cfg_scale == 3.0
    assert not PipelineCall(pipe, GivenSettings(guidance_scale=1.0)).guided
    generator = torch.Generator().manual_seed(0)
    scales = []
    pipe.transformer.register_forward_hook(
        lambda *_: scales.append(guiders_of(pipe)[0].guidance_scale)
    )
    size = dict(height=24, width=24, num_inference_steps=1, output_type="pt")
    sampled(pipe, prompt="a", generator=generator, guidance_scale=5.0, **size)
    assert scales == [5.0, 5.0]
    assert guiders_of(pipe)[0].guidance_scale == own


def test_code_in_a_folder_is_refused_not_run(folder, tmp_path):
    target = tmp_path / "with-code"
    shutil.copytree(folder, target)
    (target / "blocks.py").write_text("raise SystemExit('this ran')")
    told = {"auto_map": {"ModularPipelineBlocks": "blocks.Blocks"}}
    (target / "modular_config.json").write_text(json.dumps(told))
    with pytest.raises(UnsupportedModelError, match="custom code|trust_remote_code"):
        load_pipeline(str(target))

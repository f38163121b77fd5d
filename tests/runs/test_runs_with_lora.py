"""A calibration on top of a LoRA says so, and is resumed, evaluated and used with it."""

import warnings

import numpy as np
import pytest
import torch

from calibri import compare, evaluate, fuse, generate, load
from calibri.artifact.calibration import Calibration
from calibri.errors import CalibriWarning, ConfigError, Interrupted
from calibri.pipelines.loading import load_pipeline
from calibri.runs.calibrate import calibrate, resume
from tests.fakes import StopAfter
from tests.loras import saved_by_peft
from tests.tiny import tiny_run

PROMPT = ["a red circle"]


@pytest.fixture(scope="module")
def lora(shipped, tmp_path_factory):
    return str(saved_by_peft(shipped.transformer, tmp_path_factory.mktemp("lora")))


def config(lora, **values):
    return tiny_run({"search.generations": 1, "search.bucket_size": 2}, lora=lora, **values)


@pytest.fixture(scope="module")
def run(lora, tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    return calibrate(config(lora), name="one", runs=runs), runs / "one"


@pytest.fixture(scope="module")
def made(run):
    return Calibration.from_pretrained(run[1])


@pytest.fixture(scope="module")
def with_lora(lora):
    return load_pipeline("shapes", lora=lora, device="cpu")


def pixels(pipe, **options):
    (image,) = generate(pipe, PROMPT, num_inference_steps=2, guidance_scale=1.0, **options)
    return torch.from_numpy(np.array(image, dtype=np.int16))


def test_the_calibration_says_on_top_of_what_it_was_made(made, lora, run):
    assert made.lora == lora
    assert made.provenance["lora_digest"]
    assert lora in repr(made)
    card = (run[1] / "calibration" / "README.md").read_text()
    assert f"On top of the LoRA | {lora}" in card
    assert f'# Then its LoRA, "{lora}"' in card


def test_one_without_a_lora_is_written_as_before(finished_run):
    text = (finished_run / "calibration" / "calibri.json").read_text()
    assert '"lora"' not in text
    assert "lora_digest" not in text


def test_an_interrupted_run_goes_on_with_it(run, lora, tmp_path):
    with pytest.raises(Interrupted):
        calibrate(config(lora), name="part", runs=tmp_path, progress=StopAfter(2))
    resumed = resume(tmp_path / "part")
    assert resumed.search.coefficients == run[0].search.coefficients
    assert resumed.evaluation == run[0].evaluation


@pytest.mark.slow
def test_other_processes_load_it_too(run, lora, tmp_path):
    shared = calibrate(config(lora, sampling__workers=2), name="two", runs=tmp_path)
    assert shared.search.coefficients == run[0].search.coefficients


def test_images_and_figures_are_those_of_the_pipeline_with_it(made, lora, with_lora, pipe):
    wanted = pixels(with_lora, calibration=made)
    assert torch.equal(pixels("shapes", calibration=made, device="cpu"), wanted)
    plain = pixels("shapes", lora=lora, device="cpu")
    assert torch.equal(plain, pixels(with_lora))
    assert not torch.equal(plain, pixels(pipe))
    few = dict(num_prompts=2, images_per_prompt=1, step_multiples=(1,), device="cpu", workers=1)
    by_name, by_object = evaluate(made, **few), evaluate(made, pipeline=with_lora, **few)
    assert by_name.settings == by_object.settings
    assert by_name.settings != evaluate(made, pipeline=pipe, **few).settings


def test_the_picture_of_the_difference_has_it_in_both_columns(made, with_lora):
    drawn = compare("shapes", made, PROMPT, device="cpu")
    assert drawn.tobytes() == compare(with_lora, made, PROMPT).tobytes()


def test_fusing_folds_in_both(made, with_lora, tmp_path):
    plain = made.model_copy(
        update={"coefficients": made.coefficients.model_copy(update={"shift": 1.0})}
    )
    folder = fuse(plain, tmp_path / "fused")
    fused = load_pipeline(str(folder), device="cpu")
    near = (pixels(fused) - pixels(with_lora, calibration=plain)).abs()
    assert near.max() <= 2


def test_loading_without_it_is_warned_of(made, with_lora, pipe, lora):
    with pytest.warns(CalibriWarning, match="on top of the LoRA"):
        load(pipe, made).unload()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(with_lora, made).unload()


def test_a_lora_is_not_put_onto_a_pipeline_that_is_loaded(lora, pipe, tmp_path):
    with pytest.raises(ConfigError, match="Load it with"):
        generate(pipe, PROMPT, lora=lora)
    with pytest.raises(ConfigError, match="Load it onto the pipeline"):
        calibrate(config(lora), pipeline=pipe, name="x", runs=tmp_path)

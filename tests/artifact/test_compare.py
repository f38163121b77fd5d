"""Original beside calibrated: what ``generate`` makes, and a pipeline that stays as it was."""

import pytest
import torch
from PIL import Image

import calibri
from calibri.artifact.grid import labelled_grid
from calibri.errors import CalibrationError, ConfigError, FuseError
from tests.artifact.loaded import ensemble, sample
from tests.tiny import has_hooks, scaled_calibration

PROMPTS = ["a red circle", "two small green triangles"]


def expected(pipe, made, strength=1.0, **settings):
    plain = dict(num_inference_steps=3, guidance_scale=1.0) | settings
    before = calibri.generate(pipe, PROMPTS, **plain)
    after = calibri.generate(pipe, PROMPTS, calibration=made, strength=strength, **settings)
    assert before != after
    part = "" if strength == 1.0 else f", strength {strength:g}"
    line = f"{plain['num_inference_steps']} steps"
    rows = list(zip(PROMPTS, zip(before, after, strict=True), strict=True))
    return labelled_grid([f"original\n{line}", f"calibrated{part}\n{line}"], rows)


@pytest.mark.parametrize(
    "settings",
    [{}, {"seed": 3}, {"strength": 0.5}, {"num_inference_steps": 2, "height": 16, "width": 24}],
    ids=str,
)
def test_both_columns_are_what_generate_makes(pipe, settings):
    made = scaled_calibration(pipe)
    found = calibri.compare(pipe, made, PROMPTS, **settings)
    assert isinstance(found, Image.Image)
    assert found == expected(pipe, made, **settings)


@pytest.mark.parametrize("kind", ["plain", "guided", "separate", "ensemble"])
def test_the_pipeline_stays_as_it_was(pipe, kind):
    kinds = {
        "plain": lambda: scaled_calibration(pipe),
        "guided": lambda: scaled_calibration(pipe, guidance_scale=3.0),
        "separate": lambda: scaled_calibration(pipe, guidance_scale=3.0, branches="separate"),
        "ensemble": lambda: ensemble(pipe),
    }
    made, before, own = kinds[kind](), sample(pipe, 3.0), set(vars(pipe))
    weights = {name: value.clone() for name, value in pipe.transformer.state_dict().items()}
    calibri.compare(pipe, made, PROMPTS[0])
    assert torch.equal(sample(pipe, 3.0), before)
    assert not has_hooks(pipe.transformer)
    assert set(vars(pipe)) == own
    assert all(torch.equal(pipe.transformer.state_dict()[name], weights[name]) for name in weights)
    calibri.load(pipe, made).unload()


def test_a_loaded_calibration_stays_loaded_at_its_strength(pipe):
    made = scaled_calibration(pipe)
    fresh = expected(pipe, made, strength=0.5)
    loaded = calibri.load(pipe, made, strength=0.5)
    before = sample(pipe)
    assert calibri.compare(pipe, loaded, PROMPTS) == fresh
    whole = calibri.compare(pipe, loaded, PROMPTS, strength=1.0)
    assert loaded.strength == 0.5
    assert torch.equal(sample(pipe), before)
    loaded.unload()
    assert whole == expected(pipe, made)


def test_bare_coefficients_are_compared_with_the_settings_of_the_pipeline(pipe):
    made = scaled_calibration(pipe).coefficients
    options = dict(num_inference_steps=3, guidance_scale=1.0)
    assert calibri.compare(pipe, made, PROMPTS, **options) == expected(
        pipe, scaled_calibration(pipe)
    )


def test_what_cannot_be_compared_is_refused_and_the_pipeline_stays(pipe, shipped):
    made, before = scaled_calibration(pipe), sample(pipe)
    with pytest.raises(ConfigError, match="no prompt"):
        calibri.compare(pipe, made, [])
    with pytest.raises(CalibrationError, match=r"1\.5"):
        calibri.compare(pipe, made, PROMPTS, strength=1.5)
    loaded = calibri.load(pipe, made)
    with pytest.raises(CalibrationError, match="already loaded"):
        calibri.compare(pipe, made, PROMPTS)
    with pytest.raises(CalibrationError, match="another pipeline"):
        calibri.compare(shipped, loaded, PROMPTS)
    loaded.fuse()
    with pytest.raises(FuseError, match="unfuse"):
        calibri.compare(pipe, loaded, PROMPTS)
    loaded.unload()
    assert torch.equal(sample(pipe), before)


def test_a_picture_that_fails_leaves_the_pipeline_as_it_was(pipe, monkeypatch):
    before = sample(pipe)
    decode, calls = pipe.vae.decode, []

    def fails_at_the_second(*arguments, **options):
        calls.append(1)
        if len(calls) > 1:
            raise RuntimeError("broken")
        return decode(*arguments, **options)

    monkeypatch.setattr(pipe.vae, "decode", fails_at_the_second)
    with pytest.raises(RuntimeError, match="broken"):
        calibri.compare(pipe, scaled_calibration(pipe), PROMPTS[0])
    monkeypatch.undo()
    assert torch.equal(sample(pipe), before)
    assert not has_hooks(pipe.transformer)

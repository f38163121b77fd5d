"""What fusing does to images, against calls of the stock pipeline."""

import pytest
import torch

import calibri
from calibri.artifact.fuse import fuse
from calibri.artifact.fused_images import fused_difference
from calibri.errors import ConfigError
from calibri.pipelines.loading import load_pipeline
from tests.artifact.test_stored_fuse import made, sd3

PROMPTS = ["a red circle", "two blue squares"]


@pytest.fixture(scope="module")
def shipped():
    return sd3()


def images(pipe):
    return [
        pipe(
            prompt,
            num_inference_steps=3,
            guidance_scale=1.0,
            generator=torch.Generator().manual_seed(7 + i),
            output_type="pt",
        ).images
        for i, prompt in enumerate(PROMPTS)
    ]


def distance(one, other):
    return float((torch.cat(one) - torch.cat(other)).double().square().mean().sqrt())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_is_the_distance_of_plain_calls(shipped, dtype, tmp_path):
    calibration = made(shipped, sigma=0.1)
    folder = fuse(calibration, tmp_path / "fused", dtype=dtype)
    found = fused_difference(calibration, folder, PROMPTS, seed=7, dtype="float32")
    original = images(shipped)
    loaded = calibri.load(shipped, calibration)
    calibrated = images(shipped)
    loaded.unload()
    pipe = load_pipeline(str(folder), device="cpu")
    assert found.calibrated == pytest.approx(distance(original, calibrated), rel=1e-3)
    assert found.fused == pytest.approx(distance(calibrated, images(pipe)), rel=0.05, abs=1e-5)
    assert (found.share < 1e-3) == (dtype == "float32")
    assert "Keep the calibration loaded" not in str(found)


def test_a_calibration_that_rounding_takes_away_is_told(shipped, tmp_path):
    calibration = made(shipped, sigma=0.0005)
    folder = fuse(calibration, tmp_path / "fused", dtype="bfloat16")
    found = fused_difference(calibration, folder, PROMPTS, dtype="float32")
    assert found.share > 1
    assert "Keep the calibration loaded" in str(found)
    with pytest.raises(ConfigError, match="no prompt"):
        fused_difference(calibration, folder, [])


def test_at_strength_zero_nothing_changes(shipped, tmp_path):
    calibration = made(shipped)
    folder = fuse(calibration, tmp_path / "fused", strength=0.0, dtype="float32")
    found = fused_difference(calibration, folder, PROMPTS, strength=0.0, dtype="float32")
    assert (found.calibrated, found.share) == (0, 0)
    assert found.fused < 1e-6

"""A video pipeline from prompts to a calibration and its report."""

import numpy as np
import pytest
from PIL import Image

from calibri.config import load_config
from calibri.reporting.page import report
from calibri.runs.calibrate import calibrate
from tests.sampling.videos import video_pipeline, video_size


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Wan", "LTX"])
def test_a_video_pipeline_is_calibrated(name, tmp_path):
    values = {
        "device": "cpu",
        "sampling.num_inference_steps": 2,
        "sampling.frames_scored": 3,
        "space.granularity": "block",
        "search.generations": 1,
        "search.popsize": 4,
        "search.bucket_size": 2,
        "search.num_validation_prompts": 5,
        "prompts.train": "compositional",
        "rewards.objective": "jpeg-compressibility",
        "rewards.held_out": (),
        "evaluation.num_prompts": 3,
        "evaluation.step_multiples": (1,),
        "evaluation.num_samples": 1,
    }
    values |= {f"sampling.{key}": value for key, value in video_size(name).items()}
    summary = calibrate(
        load_config(values=values), pipeline=video_pipeline(name), name="video", runs=tmp_path
    )
    scores = summary.evaluation.settings[0].scores["jpeg-compressibility"]
    assert np.isfinite(scores.mean)
    assert summary.evaluation.settings[0].diversity > 0
    (shown,) = summary.samples
    with Image.open(tmp_path / "video" / "images" / next(iter(shown.files.values()))) as image:
        assert image.width == 3 * image.height  # three square frames side by side
    assert "jpeg-compressibility" in report(tmp_path / "video").read_text()

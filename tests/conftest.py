"""Fixtures that several test modules share."""

import pytest


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    """A tiny finished run of the shipped pipeline. Copy it before changing anything in it."""
    from calibri.config import validate_config
    from calibri.runs.calibrate import calibrate

    config = validate_config(
        {
            "device": "cpu",
            "sampling": {"num_inference_steps": 2},
            "rewards": {"held_out": []},
            "search": {
                "generations": 1,
                "popsize": 4,
                "bucket_size": 2,
                "num_validation_prompts": 2,
            },
            "evaluation": {"num_prompts": 2, "images_per_prompt": 1, "num_samples": 1},
        }
    )
    runs = tmp_path_factory.mktemp("runs")
    calibrate(config, name="tiny", runs=runs)
    return runs / "tiny"

"""Fixtures that several test modules share."""

import sys

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
                "num_validation_prompts": 5,
            },
            "evaluation": {"num_prompts": 2, "images_per_prompt": 1, "num_samples": 1},
        }
    )
    runs = tmp_path_factory.mktemp("runs")
    calibrate(config, name="tiny", runs=runs)
    return runs / "tiny"


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder for packages that are installed for one test, see ``tests.rewards.plugins``."""
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]

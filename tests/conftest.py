"""Fixtures that several test modules share."""

import copy
import sys
from threading import Thread

import pytest
from huggingface_hub import constants

from tests.hub_server import LocalHub


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


@pytest.fixture(scope="session")
def shipped():
    """The shipped pipeline, on the CPU, for all tests: leave it as it is."""
    from calibri.pipelines.loading import load_pipeline

    return load_pipeline("shapes", device="cpu")


@pytest.fixture
def pipe(shipped):
    """The shipped pipeline for one test to change: a copy takes a third of the time of loading."""
    return copy.deepcopy(shipped)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hugging Face Hub on this machine, in place of the real one."""
    with LocalHub() as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        # huggingface_hub before 1.0 holds a copy of the address.
        copied = "huggingface_hub.file_download.HUGGINGFACE_CO_URL_TEMPLATE"
        monkeypatch.setattr(copied, template, raising=False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield server
        server.shutdown()


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder for packages that are installed for one test, see ``tests.rewards.plugins``."""
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]

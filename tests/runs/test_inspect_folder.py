"""A folder is inspected by its configurations: no weights are read, and nothing is missed."""

import pytest

from calibri.pipelines.loading import load_pipeline
from calibri.runs.inspect import inspect
from tests.artifact.test_stored_fuse import flux
from tests.sampling.two_transformers import wan_2_2


def sd3():
    return load_pipeline("shapes", device="cpu")


@pytest.mark.parametrize("build", [sd3, flux, wan_2_2])
@pytest.mark.parametrize("config", [None, {"space": {"granularity": "layer", "members": 2}}])
def test_a_folder_without_its_weights_has_what_the_loaded_pipeline_has(build, config, tmp_path):
    pipe = build()
    pipe.save_pretrained(tmp_path)
    for weights in tmp_path.rglob("*.safetensors"):
        weights.unlink()
    found = inspect(str(tmp_path), config=config)
    loaded = inspect(pipe, config=config)
    assert found.pipeline == str(tmp_path)
    assert found.model_copy(update={"pipeline": loaded.pipeline}) == loaded
    assert found.space is not None

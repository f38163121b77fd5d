"""``calibri extract``: over the shipped pipeline."""

import json

import pytest
from safetensors.torch import load_file, save_file

from calibri.artifact.calibration import Calibration
from calibri.artifact.fuse import fuse
from calibri.pipelines.skeletons import load_skeletons
from tests.artifact.test_extract import drawn, values


@pytest.fixture
def made(tmp_path):
    """A calibration of the shipped pipeline, and the folder of what it was folded into."""
    calibration = drawn(load_skeletons("shapes"))
    fuse(calibration, tmp_path / "tuned", pipeline="shapes")
    return calibration


def test_scalars_come_back_from_a_fused_folder(calibri, made, tmp_path):
    result = calibri("extract", "shapes", "tuned", "--output", "found", "--steps", 9)
    assert (result.exit_code, result.stdout.splitlines()[-1]) == (0, "found")
    assert "TUNED is BASE with 23 of 23 outputs scaled" in result.stdout
    assert "calibri generate shapes --calibration found" in result.stderr
    found = Calibration.from_pretrained(tmp_path / "found")
    assert found.sampling.num_inference_steps == 9
    assert values(found.coefficients) == pytest.approx(values(made.coefficients), abs=1e-4)
    again = calibri("evaluate", "found", "--num-prompts", 2, "--reward", "shapes")
    assert again.exit_code == 0, again.output


def test_what_is_no_scaling_is_listed_and_not_written(calibri, made, tmp_path):
    path = tmp_path / "tuned" / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["pos_embed.proj.bias"] += 1
    save_file(tensors, path)
    result = calibri("extract", "shapes", "tuned")
    assert result.exit_code == 0
    assert "TUNED is no scaling of BASE" in result.stdout
    assert "pos_embed.proj.bias" in result.stdout
    refused = calibri("extract", "shapes", "tuned", "--output", "found")
    assert (refused.exit_code, refused.stdout) == (3, "")
    assert "--project" in refused.stderr
    projected = calibri("extract", "shapes", "tuned", "--output", "found", "--project")
    assert projected.stdout.splitlines()[-1] == "found"


def test_json_has_every_site_and_the_totals(calibri, made):
    found = json.loads(calibri("extract", "shapes", "tuned", "--json").stdout)
    assert found["is_scaling"]
    assert len(found["sites"]) == 23
    assert found["explained"] == pytest.approx(1)


def test_a_name_that_is_nothing_is_refused_at_once(calibri):
    result = calibri("extract", "shapes", "nowhere")
    assert result.exit_code == 3
    assert "'nowhere' is neither a folder" in result.stderr

"""``calibri export``: the way back of ``calibri import``, and formats that need weights."""

import json

import pytest
from safetensors import safe_open

VECTOR = [1 + i / 1000 for i in range(23)]


@pytest.fixture
def imported(calibri, tmp_path):
    """A calibration of the shipped transformer: 22 scalars and an output weight."""
    (tmp_path / "step.json").write_text(json.dumps({"solution": VECTOR}))
    assert calibri("import", "step.json", "--pipeline", "shapes").exit_code == 0
    return "step"


def test_export_writes_back_what_import_read(calibri, imported, tmp_path):
    result = calibri("export", imported, "--format", "authors", "--output", "again.json")
    assert (result.exit_code, result.stdout) == (0, "again.json\n")
    assert json.loads((tmp_path / "again.json").read_text())["solution"] == VECTOR
    again = calibri("export", imported, "--format", "authors", "--output", "again.json")
    assert (again.exit_code, "exists" in again.stderr) == (5, True)


def test_export_takes_a_strength(calibri, imported, tmp_path):
    arguments = ("export", imported, "--format", "comfyui", "--output")
    assert calibri(*arguments, "full.safetensors").exit_code == 0
    assert calibri(*arguments, "none.safetensors", "--strength", 0).exit_code == 0
    with safe_open(tmp_path / "full.safetensors", framework="pt") as file:
        # The first scalar of the vector is 1, so that its layer is left as it is.
        assert len([name for name in file.keys() if name.endswith("rescale")]) == 2 * 22  # noqa: SIM118
        assert file.metadata()["calibri.base_model"] == "shapes"
    with safe_open(tmp_path / "none.safetensors", framework="pt") as file:
        assert not list(file.keys())


def test_export_refuses_a_format_that_it_does_not_know(calibri, imported):
    result = calibri("export", imported, "--format", "onnx", "--output", "x")
    assert result.exit_code == 2
    assert "comfyui" in result.stderr

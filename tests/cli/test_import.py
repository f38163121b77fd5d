"""``calibri import``: a file of the authors to a calibration on the shipped pipeline."""

import json

import pytest

from calibri.artifact.calibration import Calibration


@pytest.fixture
def file(tmp_path):
    """Two members of the shipped transformer: 22 scalars and an output weight each."""
    path = tmp_path / "cmaes_step_0010.json"
    path.write_text(json.dumps({"solution": [1 + i / 1000 for i in range(46)], "step": 10}))
    return path


def test_import_writes_a_calibration_of_both_members(calibri, file, tmp_path):
    result = calibri("import", file, "--pipeline", "shapes", "--members", 2)
    assert result.exit_code == 0
    assert result.stdout == "cmaes_step_0010\n"
    found = Calibration.from_pretrained(tmp_path / "cmaes_step_0010")
    assert found.coefficients.output_weights == (1.044, 1.045)
    assert found.base_model == "shapes"
    again = calibri("import", file, "--pipeline", "shapes", "--members", 2)
    assert (again.exit_code, "not an empty folder" in again.stderr) == (5, True)


def test_import_refuses_a_wrong_length_and_leaves_nothing(calibri, file, tmp_path):
    result = calibri("import", file, "--pipeline", "shapes", "--output", tmp_path / "made")
    assert result.exit_code == 3
    assert "46 entries" in result.stderr
    assert "needs 23" in result.stderr
    assert not (tmp_path / "made").exists()

import pytest
from typer.testing import CliRunner

from calibri.cli.app import app

TINY = """
device: cpu
sampling: {num_inference_steps: 2}
rewards: {held_out: []}
search: {generations: 1, popsize: 4, bucket_size: 2, num_validation_prompts: 5}
evaluation: {num_prompts: 2, images_per_prompt: 1, num_samples: 1}
"""


@pytest.fixture
def calibri(tmp_path, monkeypatch):
    """Run the command line in an empty folder; the result has exit_code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    for name in ("FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    runner = CliRunner()

    def run(*args):
        result = runner.invoke(app, [str(arg) for arg in args])
        assert "Traceback" not in result.output
        return result

    return run


@pytest.fixture
def tiny(tmp_path):
    """A configuration file for a run of a second."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path

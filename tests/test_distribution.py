"""Wheel and source distribution: built, installed and used far from the checkout."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tarfile
import venv
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.end_to_end

SMOKE = """
from pathlib import Path
from diffusers import DiffusionPipeline
import calibri
from calibri.shapes import PIPELINE_PATH
package = Path(calibri.__file__).parent
assert package.is_relative_to(Path({site!r})), package
assert (package / "py.typed").is_file()
pipe = DiffusionPipeline.from_pretrained(PIPELINE_PATH)
assert pipe("a red circle", num_inference_steps=1, output_type="np").images.shape[0] == 1
assert calibri.plan(pipeline="shapes")
"""


def run(*command: Any, cwd: Path) -> str:
    done = subprocess.run([*map(str, command)], cwd=cwd, env={}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def environment(folder: Path) -> Path:
    """Make a virtual environment that sees the libraries of this one, but not its Calibri."""
    venv.create(folder, with_pip=True)
    site = next((folder / "lib").glob("python*/site-packages"))
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return site


def wheel_of(source: Path, folder: Path) -> Path:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--no-deps"]
    run(*pip, "--wheel-dir", folder, source, cwd=folder.parent)
    (wheel,) = folder.glob("calibri-*.whl")
    return wheel


def source_distribution(folder: Path) -> Path:
    """Build it with what builds the wheel, and return it unpacked."""
    build = environment_with_hatchling(folder / "tools")
    run(build, "-m", "hatchling", "build", "-t", "sdist", "-d", folder, cwd=ROOT)
    (archive,) = folder.glob("calibri-*.tar.gz")
    with tarfile.open(archive) as found:
        found.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    return unpacked


def environment_with_hatchling(folder: Path) -> Path:
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "hatchling>=1.25", cwd=folder)
    return python


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_what_is_installed_works_far_from_the_checkout(tmp_path, kind):
    source = source_distribution(tmp_path / "sdist") if kind == "sdist" else ROOT
    wheel = wheel_of(source, tmp_path / "wheel")
    site = environment(tmp_path / "environment")
    scripts = tmp_path / "environment" / "bin"
    pip = [scripts / "python", "-m", "pip", "install", "--no-deps", "--force-reinstall"]
    run(*pip, wheel, cwd=tmp_path)
    run(scripts / "python", "-c", SMOKE.format(site=str(site)), cwd=tmp_path)
    assert "SD3Transformer2DModel" in run(scripts / "calibri", "models", cwd=tmp_path)
    assert "images" in run(scripts / "calibri", "plan", "shapes", cwd=tmp_path)

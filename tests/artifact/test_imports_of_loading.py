"""Loading a calibration asks little of an environment that only uses one."""

import json
import subprocess
import sys

import pytest

# Of searching, of reports and of the command line, and nothing that a calibrated pipeline needs.
UNNEEDED = ("accelerate", "filelock", "jinja2", "requests", "rich", "transformers", "typer", "yaml")
# The configuration names the methods of a search, so that its room is there, too.
ROOMS = ("cli", "planning", "reporting", "rewards", "runs", "scoring")

SCRIPT = """
import builtins, json, sys

unneeded, folder = json.loads(sys.argv[1]), sys.argv[2]
plain = builtins.__import__

def guarded(name, globals=None, locals=None, fromlist=(), level=0):
    importer = (globals or {}).get("__name__", "")
    if importer.split(".")[0] == "calibri" and name.split(".")[0] in unneeded:
        raise ImportError(f"{importer} imports {name}")
    return plain(name, globals, locals, fromlist, level)

builtins.__import__ = guarded
from diffusers import DiffusionPipeline
import calibri
from calibri.shapes import PIPELINE_PATH

pipe = DiffusionPipeline.from_pretrained(PIPELINE_PATH)
calibration = calibri.load(pipe, folder)
calibration.set_strength(0.5)
calibration.fuse()
calibration.unload()
rooms = {name.split(".")[1] for name in sys.modules if name.startswith("calibri.")}
print(json.dumps(sorted(rooms)))
"""


def loaded_rooms(folder, unneeded) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", SCRIPT, json.dumps(unneeded), str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("where", ["", "calibration"])
def test_loading_imports_nothing_of_searching(finished_run, where):
    done = loaded_rooms(finished_run / where, UNNEEDED)
    assert done.returncode == 0, done.stderr
    rooms = set(json.loads(done.stdout.splitlines()[-1]))
    assert not rooms & set(ROOMS)
    assert "artifact" in rooms


def test_the_guard_sees_what_loading_does_import(finished_run):
    done = loaded_rooms(finished_run / "calibration", ["safetensors"])
    assert done.returncode != 0
    assert "imports safetensors" in done.stderr

"""Code that a person copies first runs as it stands, on the shipped pipeline."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import calibri
from calibri.cli.app import app
from tests.cli.conftest import TINY
from tests.tiny import has_hooks

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def python_blocks(text):
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def ran(code, **names):
    exec(compile(code, "README.md", "exec"), names)
    return names


@pytest.fixture
def my_run(finished_run, tmp_path, monkeypatch):
    """A finished run at the place where README has it."""
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(finished_run, tmp_path / "runs" / "my-run")


@pytest.fixture
def tiny_defaults(tmp_path, monkeypatch):
    """Runs with small numbers wherever the code does not say its own."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    real = calibri.calibrate
    monkeypatch.setattr(calibri, "calibrate", lambda config=path, **given: real(config, **given))
    return path


def test_there_are_as_many_blocks_as_are_tested():
    assert len(python_blocks(README)) == 3


def test_the_first_snippet_loads_a_run_and_takes_it_off_again(my_run):
    names = ran(python_blocks(README)[0])
    assert isinstance(names["image"], Image.Image)
    assert isinstance(names["grid"], Image.Image)
    assert not has_hooks(names["pipe"].transformer)


@pytest.mark.slow
def test_the_second_snippet_calibrates_and_publishes(tmp_path, monkeypatch, hub, tiny_defaults):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    ran(python_blocks(README)[1], calibri=calibri)
    assert "user/name" in hub.repositories


@pytest.mark.slow
def test_the_reward_of_ones_own_is_taken_in_both_ways(tmp_path, monkeypatch, tiny_defaults):
    monkeypatch.chdir(tmp_path)
    code = python_blocks(README)[2]
    Path("brightness.py").write_text(code)
    reward = ran(code)["Brightness"]
    white = torch.full((2, 3, 4, 4), 255, dtype=torch.uint8)
    assert reward().score(white, ["a", "b"]).tolist() == [255, 255]
    words = re.search(r"^calibri (calibrate --reward \./brightness.*)$", README, re.MULTILINE)[1]
    result = CliRunner().invoke(app, [*words.split(), "--config", str(tiny_defaults)])
    assert result.exit_code == 0
    call = re.search(r"`(calibri\.calibrate\(rewards=.*?\))`", README)[1]
    ran(call, calibri=calibri, Brightness=reward)
    assert len(list(Path("runs").iterdir())) == 2


def test_the_snippet_of_a_card_runs(my_run):
    made = calibri.Calibration.from_pretrained("runs/my-run")
    folder = made.save_pretrained("runs/my-run/calibration")
    (code,) = python_blocks((folder / "README.md").read_text())
    assert isinstance(ran(code)["image"], Image.Image)


def test_the_snippet_of_a_published_card_runs(my_run, hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", hub.token)
    calibri.publish(my_run, "user/name")
    card = hub.repositories["user/name"].files_at("main")["README.md"]
    (code,) = python_blocks(card.decode())
    assert isinstance(ran(code)["image"], Image.Image)


def test_an_absolute_path_is_in_no_card(my_run, tmp_path):
    made = calibri.Calibration.from_pretrained(my_run)
    folder = made.save_pretrained(tmp_path / "elsewhere")
    assert str(tmp_path) not in (folder / "README.md").read_text()

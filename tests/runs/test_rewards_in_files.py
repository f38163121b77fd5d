"""A run whose reward is a file of the user's."""

import contextlib
import json

import pytest

from calibri import calibrate, evaluate, resume
from calibri.artifact.calibration import Calibration
from calibri.config import validate_config
from calibri.errors import RewardError
from tests.rewards.plugins import PLUGIN

TINY = {
    "device": "cpu",
    "sampling": {"num_inference_steps": 2},
    "search": {"generations": 1, "popsize": 4, "bucket_size": 2, "num_validation_prompts": 5},
    "evaluation": {"num_prompts": 2, "images_per_prompt": 1, "num_samples": 1},
}
FEW = {"num_prompts": 2, "images_per_prompt": 1, "step_multiples": (1,), "device": "cpu"}


def tiny(objective, **sampling):
    rewards = {"objective": objective, "held_out": ["shapes"]}
    return validate_config(
        {**TINY, "rewards": rewards, "sampling": {**TINY["sampling"], **sampling}}
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with the file ``mine.py``, the run ``run`` that used it, and its summary."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "mine.py").write_text(PLUGIN)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return folder, calibrate(tiny("./mine.py:Brightness"), name="run", runs=folder)


def test_a_reward_of_a_file_is_named_without_its_folder(made):
    folder, summary = made
    assert list(summary.evaluation.variants) == ["mine.py:Brightness", "shapes"]
    shared = [folder / "run" / "results.json", *(folder / "run" / "calibration").glob("*.[jm]*")]
    assert len(shared) == 3
    for path in shared:
        assert "mine.py:Brightness" in path.read_text()
        assert str(folder) not in path.read_text()


def test_a_run_finds_the_file_again_from_another_folder(made, monkeypatch):
    folder, summary = made
    monkeypatch.chdir("/")
    assert resume(folder / "run").search == summary.search


@pytest.mark.slow
def test_workers_find_the_file(made, monkeypatch):
    folder, summary = made
    monkeypatch.chdir(folder)
    two = calibrate(tiny("mine.py:Brightness", workers=2), name="two", runs=folder)
    assert two.evaluation.settings[0].scores == summary.evaluation.settings[0].scores


def test_a_calibration_is_evaluated_with_a_file_only_when_the_user_names_it(made, monkeypatch):
    folder, _ = made
    monkeypatch.chdir(folder)
    with pytest.raises(RewardError, match="runs no file that a calibration names"):
        evaluate(folder / "run" / "calibration", **FEW)
    found = evaluate(folder / "run" / "calibration", rewards=["./mine.py:Brightness"], **FEW)
    assert found.objective == "mine.py:Brightness"


def test_a_crafted_calibration_runs_no_file(tmp_path, monkeypatch, finished_run):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text("open('ran', 'w').close()\n" + PLUGIN)
    spec = f"{tmp_path}/evil.py:Brightness"
    mixed = f"shapes:1,{spec}:1"
    stored = Calibration.from_pretrained(finished_run / "calibration").model_dump(mode="json")
    for changes in (
        {"rewards": {spec: "1"}, "objective": spec},
        {"rewards": {mixed: "1"}, "objective": mixed},
        {"reward_options": {"shapes": {"reward": spec}}},
        {
            "rewards": {"mine": "1"},
            "objective": "mine",
            "reward_options": {"mine": {"reward": spec}},
        },
    ):
        crafted = Calibration.model_validate_json(json.dumps({**stored, **changes}))
        with contextlib.suppress(RewardError):
            evaluate(crafted, **FEW)
        assert not (tmp_path / "ran").exists()

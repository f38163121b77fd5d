"""What a run's options of rewards become when its calibration is evaluated."""

import json

import pytest
import yaml

from calibri.artifact.calibration import Calibration
from calibri.errors import CalibrationError
from calibri.results import Evaluation
from tests.rewards.chat_server import ChatServer


@pytest.fixture
def server():
    server = ChatServer()
    yield server
    server.close()


def test_evaluate_asks_the_judge_that_the_run_asked(calibri, tiny, tmp_path, server):
    options = {"reward": "judge", "base_url": server.url, "first_wait": 0.0}
    rewards = {"held_out": ["mine"], "options": {"mine": options}}
    tiny.write_text(yaml.safe_dump(yaml.safe_load(tiny.read_text()) | {"rewards": rewards}))
    assert calibri("calibrate", "--config", tiny, "--name", "judged").exit_code == 0
    folder = tmp_path / "runs" / "judged" / "calibration"
    assert Calibration.from_pretrained(folder).reward_options == {"mine": options}

    asked = len(server.requests)
    result = calibri("evaluate", "judged", "--num-prompts", 2, "--json")
    assert result.exit_code == 0
    assert len(server.requests) > asked
    assert Evaluation.model_validate_json(result.stdout).variants["mine"].startswith("tiny-judge")

    server.reply = lambda body: "Rating: 8"
    pattern = r"mine.patterns='Rating: (\d+)'"
    result = calibri("evaluate", "judged", "--num-prompts", 2, "--json", "--option", pattern)
    evaluation = Evaluation.model_validate_json(result.stdout)
    assert {s.scores["mine"].mean for s in evaluation.settings} == {8.0}


def test_a_calibration_of_before_options_were_kept_still_loads(calibri, finished_run, tmp_path):
    folder = finished_run / "calibration"
    data = json.loads((folder / "calibri.json").read_text())
    assert data.pop("reward_options") == {}
    copy = tmp_path / "old"
    copy.mkdir()
    (copy / "calibri.json").write_text(json.dumps(data))
    (copy / "calibri.safetensors").write_bytes((folder / "calibri.safetensors").read_bytes())
    assert Calibration.from_pretrained(copy) == Calibration.from_pretrained(folder)
    (copy / "calibri.json").write_text(json.dumps(data | {"reward_options": {"judge": 1}}))
    with pytest.raises(CalibrationError, match="reward_options"):
        Calibration.from_pretrained(copy)

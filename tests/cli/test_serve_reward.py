"""``calibri serve-reward``."""

import pytest

from tests.rewards.plugins import PLUGIN


@pytest.fixture
def served(monkeypatch):
    """What would be served, in place of serving it."""
    served = []
    monkeypatch.setattr("calibri.rewards.serve_reward", lambda *args: served.append(args))
    return served


def test_options_are_read_as_yaml(calibri, served):
    options = ["--set", "patterns=n=(x)", "--set", "scale=[1, 2]", "--set", "timeout=3"]
    result = calibri("serve-reward", "judge", *options, "--port", "1")
    assert (result.exit_code, result.output) == (0, "")
    ((reward, host, port),) = served
    assert reward.info.range == (1.0, 2.0)
    assert (host, port) == ("127.0.0.1", 1)


@pytest.mark.parametrize("text", ["device", "=cuda", "device=[1"])
def test_options_that_cannot_be_read_are_refused(calibri, served, text):
    result = calibri("serve-reward", "shapes", "--set", text)
    assert (result.exit_code, result.stderr.startswith("Error: "), served) == (2, True, [])


def test_a_reward_of_a_file_can_be_served(calibri, served, tmp_path):
    (tmp_path / "mine.py").write_text(PLUGIN)
    calibri("serve-reward", "./mine.py:Brightness", "--set", "gain=2.5")
    assert served[0][0].gain == 2.5

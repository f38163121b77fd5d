import subprocess
import sys

import pytest

from calibri.config import RewardConfig
from calibri.errors import RewardError
from calibri.rewards.local_files import is_file_spec, load_from_file, resolve_files

FILE = "class Bright:\n    pass\n\ndef dim():\n    pass\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(FILE)
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "mine.py").write_text(FILE)
    return tmp_path


@pytest.mark.parametrize("spec", ["x.py:Y", "./x.py:Y", "/a/b c/x.py:_y1", "a:b/x.py:Y"])
def test_files_are_told_from_names(spec):
    assert is_file_spec(spec)


@pytest.mark.parametrize("name", ["hpsv2.1", "shapes", "x.py", "x.py:", "x.py:1", "x.pyc:Y", "x:Y"])
def test_names_are_told_from_files(name):
    assert not is_file_spec(name)


def test_a_file_is_run_once_and_gives_what_it_has(folder):
    (folder / "mine.py").write_text(FILE + "print('ran')\n")
    code = (
        "from calibri.rewards.local_files import load_from_file as load\n"
        "assert load('./mine.py:Bright') is load('mine.py:Bright')\n"
        "assert load('./mine.py:Bright') is not load('deeper/mine.py:Bright')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "ran\n"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("gone.py:X", "no file 'gone.py'"),
        ("deeper.py:X", "no file 'deeper.py'"),
        ("mine.py:Brihgt", "has no 'Brihgt'. It defines Bright, dim"),
        ("mine", "not of the form PATH.py:NAME"),
    ],
)
def test_what_is_not_there_is_said(folder, spec, words):
    (folder / "deeper.py").mkdir()
    with pytest.raises(RewardError, match=words):
        load_from_file(spec)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("raise SystemExit(2)", "SystemExit: 2"),
        ("1 / 0", "ZeroDivisionError"),
        ("def", "SyntaxError"),
        ("import no_such_thing", "ModuleNotFoundError.*no_such_thing"),
    ],
)
def test_a_file_that_fails_is_said_each_time(folder, line, words):
    (folder / "mine.py").write_text(line)
    for _ in range(2):
        with pytest.raises(RewardError, match=f"mine.py' cannot be run: {words}"):
            load_from_file("mine.py:X")


def test_ctrl_c_while_a_file_runs_is_not_swallowed(folder):
    (folder / "mine.py").write_text("raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        load_from_file("mine.py:X")


def test_a_configuration_has_labels_and_absolute_paths(folder):
    given = RewardConfig(
        objective="./mine.py:Bright:0.7, hpsv3:0.3",
        held_out=("deeper/mine.py:dim", "shapes", "ours"),
        constraints=("./mine.py:Bright >= 0.9 of baseline", "diversity >= 1 of baseline"),
        options={
            "./mine.py:Bright": {"gain": 2},
            "hpsv3": {"batch_size": 1},
            "ours": {"reward": "mine.py:dim"},
        },
    )
    found = resolve_files(given)
    assert found.objective == "mine.py:Bright:0.7,hpsv3:0.3"
    assert found.held_out == ("mine.py:dim", "shapes", "ours")
    assert found.constraints == (
        "mine.py:Bright >= 0.9 of baseline",
        "diversity >= 1 of baseline",
    )
    assert found.options == {
        "mine.py:Bright": {"gain": 2, "reward": f"{folder}/mine.py:Bright"},
        "mine.py:dim": {"reward": f"{folder}/deeper/mine.py:dim"},
        "hpsv3": {"batch_size": 1},
        "ours": {"reward": f"{folder}/mine.py:dim"},
    }


def test_resolving_again_elsewhere_changes_nothing(folder, monkeypatch):
    found = resolve_files(RewardConfig(objective="./mine.py:Bright", held_out=()))
    monkeypatch.chdir(folder / "deeper")
    assert resolve_files(found) == found


def test_a_configuration_without_files_stays_as_it_is():
    given = RewardConfig(objective="hpsv3 : 0.7, pickscore:0.3", constraints=("odd",))
    assert resolve_files(given) is given


def test_one_label_is_not_for_two_files(folder):
    given = RewardConfig(objective="mine.py:Bright", held_out=("deeper/mine.py:Bright",))
    with pytest.raises(RewardError, match="would both be called 'mine.py:Bright'"):
        resolve_files(given)
    twice = RewardConfig(objective="mine.py:Bright", held_out=("./mine.py:Bright",))
    assert resolve_files(twice).held_out == ("mine.py:Bright",)

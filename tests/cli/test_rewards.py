"""``calibri rewards``: list, convert, check."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from calibri.cli.rewards import COMMANDS
from calibri.rewards.golden import golden_pictures
from calibri.rewards.registry import reward_names
from tests.rewards.plugins import PLUGIN, install


def test_help_lists_the_commands_and_imports_no_torch():
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from calibri.cli.app import app\n"
        "print(CliRunner().invoke(app, ['rewards', '--help']).output)\n"
        "for name in ('list', 'convert', 'check'):\n"
        "    print(CliRunner().invoke(app, ['rewards', name, '--help']).output)\n"
        "sys.exit(bool({'torch', 'diffusers', 'transformers'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    examples = [line.strip() for f in COMMANDS for line in f.__doc__.splitlines()]
    shown = " ".join(line.strip(" │") for line in done.stdout.splitlines())
    assert all(line in shown for line in examples if line.startswith("calibri "))


def test_list_names_every_reward_and_loads_none(calibri, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("loaded")

    monkeypatch.setattr("torch.nn.Module.__init__", refuse)
    monkeypatch.setattr("socket.socket.connect", refuse)
    result = calibri("rewards", "list", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    rows = {row["name"]: row for row in json.loads(result.stdout)}
    assert tuple(rows) == reward_names()
    assert rows["shapes"]["differentiable"] is True
    assert rows["dino-diversity"]["kind"] == "groupwise"
    assert rows["jpeg-compressibility"]["range"] == [None, 0.0]
    assert rows["qalign"]["range"] == [1.0, 5.0]


def test_the_table_has_a_row_a_reward_and_says_why_one_is_missing(calibri, site):
    install(site, "good-rewards", {"brightness": "Brightness"})
    install(site, "exiting-rewards", {"exiting": "Bad"}, module="raise SystemExit(7)")
    install(site, "diverse-rewards", {"diversity": "Brightness"})
    result = calibri("rewards", "list")
    assert result.exit_code == 0
    rows = [line.split() for line in result.stdout.splitlines()]
    assert {row[0] for row in rows} >= set(reward_names())
    assert ["jpeg-incompressibility", "from", "0", "pointwise", "-", "no", "kB"] in rows
    problems = [line for line in result.stderr.splitlines() if line]
    assert "'exiting' of 'exiting-rewards' cannot be imported: SystemExit: 7" in result.stderr
    assert "'diversity' is a measure of Calibri's own" in result.stderr
    assert len(problems) == 2
    described = {
        row["name"]: row for row in json.loads(calibri("rewards", "list", "--json").stdout)
    }
    assert described["brightness"]["unit"] == "mean"
    assert {name for name, row in described.items() if "problem" in row} == {"diversity", "exiting"}


def test_check_scores_with_a_reward_of_a_file(calibri, tmp_path):
    (tmp_path / "mine.py").write_text(PLUGIN)
    result = calibri("rewards", "check", f"{tmp_path}/mine.py:Brightness", "--device", "cpu")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "reward   brightness\n" in result.stdout
    assert calibri("rewards", "check", f"{tmp_path}/mine.py:Darkness").exit_code == 4


def test_convert_writes_safetensors_beside_the_file_and_overwrites_nothing(calibri, tmp_path):
    weights = {"a.weight": torch.arange(6.0).view(2, 3)}
    torch.save(weights, tmp_path / "old.pt")
    result = calibri("rewards", "convert", tmp_path / "old.pt")
    target = tmp_path / "old.safetensors"
    assert (result.exit_code, result.stdout) == (0, f"{target}\n")
    assert torch.equal(load_file(target)["a.weight"], weights["a.weight"])
    assert (tmp_path / "old.pt").is_file()
    target.write_bytes(b"mine")
    again = calibri("rewards", "convert", tmp_path / "old.pt")
    assert (again.exit_code, "nothing is overwritten" in again.stderr) == (4, True)
    assert target.read_bytes() == b"mine"


class Evil:
    def __reduce__(self):
        return print, ("code ran",)


def test_convert_runs_no_code_of_the_file(calibri, tmp_path, capsys):
    torch.save({"a": Evil()}, tmp_path / "evil.bin")
    result = calibri("rewards", "convert", tmp_path / "evil.bin")
    assert (result.exit_code, "Calibri runs no code of it" in result.stderr) == (4, True)
    assert "code ran" not in result.output + capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["evil.bin"]


def test_check_prints_scores_and_differences(calibri):
    result = calibri("rewards", "check", "shapes", "--device", "cpu")
    assert (result.exit_code, result.stderr) == (0, "")
    assert all(f"\n{name} " in result.stdout for name in golden_pictures(1).names)
    assert "variant  compositional, strict realism, 1\n" in result.stdout
    assert "Largest difference from the stored figures: " in result.stdout
    found = json.loads(calibri("rewards", "check", "shapes", "--json").stdout)
    assert found["pictures"] == golden_pictures(1).sha256
    for name, score in found["scores"].items():
        assert score - found["stored"][name] == found["differences"][name]


FAILING = """
import torch
from calibri.rewards import BatchedReward, RewardInfo

class Failing(BatchedReward):
    info = RewardInfo("failing", "1", unit="none")

    def score_batch(self, images, prompts):
        return torch.tensor([torch.nan, *range(5)])
"""


def test_check_says_when_there_is_no_figure_and_what_failed(calibri, tmp_path):
    (tmp_path / "mine.py").write_text(FAILING)
    reward = f"{tmp_path}/mine.py:Failing"
    result = calibri("rewards", "check", reward)
    assert "No stored figure exists yet for failing.\n" in result.stdout
    assert " nan" in result.stdout
    found = json.loads(calibri("rewards", "check", reward, "--json").stdout)
    assert (found["stored"], found["differences"]) == (None, None)
    assert list(found["scores"].values()) == [None, 0.0, 1.0, 2.0, 3.0, 4.0]


def test_a_folder_is_compared_with_the_figures_of_the_published_files(
    calibri, monkeypatch, tmp_path
):
    from calibri.rewards.golden import StoredFigures
    from calibri.rewards.pickscore import PickScore
    from calibri.rewards.registry import make_reward

    pictures = golden_pictures()
    figures = StoredFigures(pictures=pictures.sha256, scores=dict.fromkeys(pictures.names, 20.0))
    variant = make_reward("pickscore").info.variant
    monkeypatch.setattr(
        "calibri.rewards.golden.stored_figures", lambda path: {"pickscore": {variant: figures}}
    )
    monkeypatch.setattr(PickScore, "score_batch", lambda *_: torch.full((6,), 20.5))
    result = calibri("rewards", "check", "pickscore", "--checkpoint", tmp_path, "--device", "cpu")
    assert str(tmp_path) in result.stdout
    assert "Largest difference from the stored figures: 5.00e-01\n" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["beauty"], 4),
        (["shapes", "--checkpoint", "x"], 4),
        (["pickscore", "--checkpoint", "no-such-folder"], 4),
        (["shapes", "--device", "abacus"], 2),
    ],
)
def test_check_refuses_bad_input(calibri, arguments, code):
    result = calibri("rewards", "check", *arguments)
    assert (result.exit_code, result.stderr.startswith("Error: ")) == (code, True)

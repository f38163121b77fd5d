"""``calibri study``: create, serve, report."""

import json
import re
import socket
import subprocess
import sys

import pytest

from tests.study.studies import answered, folders, texts


@pytest.fixture
def words(tmp_path):
    """Words that make a study of folders."""
    images = folders(tmp_path)
    (tmp_path / "prompts.txt").write_text("\n".join(texts()), encoding="utf-8")
    options = [f"--images={name}={folder}" for name, folder in images.items()]
    return ("study", "create", *options, "--prompts", "prompts.txt")


def test_from_folders_to_a_report(calibri, words, tmp_path):
    made = calibri(*words, "--participants", 4, "--checks", 2, "--title", "Mine")
    assert (made.exit_code, made.stderr) == (0, "")
    assert "study/invitations.csv" in made.stdout
    assert made.stdout.endswith("calibri study serve study\n")
    answered(tmp_path / "study", 3, lambda rng, pair: 1)
    told = calibri("study", "report", "study")
    assert (told.exit_code, told.stderr) == (0, "")
    assert "100%" in told.stdout
    assert "3 of 4 invited took part, 3 finished, 0 failed" in told.stdout
    assert told.stdout.endswith("study/report.html\n")
    results = json.loads(calibri("study", "report", "study", "--json").stdout)
    assert results == json.loads((tmp_path / "study" / "results.json").read_text())
    assert results["title"] == "Mine"


@pytest.mark.parametrize("option", ["original", "=folder", "a=", "original=elsewhere"])
def test_images_of_another_form_are_refused(calibri, words, option):
    result = calibri(*words, "--images", option)
    assert result.exit_code == 6
    assert "NAME=FOLDER" in result.stderr or "given twice" in result.stderr


def test_what_is_no_study_is_said(calibri, tmp_path):
    for act in ("report", "serve"):
        result = calibri("study", act, "nowhere")
        assert result.exit_code == 6
        assert re.search("no study|calibri.study", result.stderr)


def test_a_port_in_use_is_said(calibri, words):
    pytest.importorskip("uvicorn", reason="needs the extra calibri[study]")
    calibri(*words)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = calibri("study", "serve", "study", "--port", taken.getsockname()[1])
    assert result.exit_code == 6
    assert "Choose another --port" in result.stderr


def test_without_the_extra_it_says_what_to_install(calibri, words, monkeypatch):
    calibri(*words)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    result = calibri("study", "serve", "study")
    assert result.exit_code == 6
    assert "pip install 'calibri[study]'" in result.stderr


def test_serving_and_reporting_load_no_torch():
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from calibri.cli.app import app\n"
        "for words in ('', 'create --help', 'serve nowhere', 'report nowhere'):\n"
        "    print(CliRunner().invoke(app, ['study', *words.split()]).output)\n"
        "sys.exit(bool({'torch', 'diffusers', 'transformers'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "calibri study create --images original=a" in done.stdout

"""``calibri experiment``: a table, a figure and a page."""

import json

import pytest


def test_a_table_a_verdict_and_a_page(calibri, tiny, tmp_path):
    words = ("experiment", "ablation", "--config", tiny, "--output", "out")
    result = calibri(*words)
    assert result.exit_code == 0, result.output
    assert "Bypassing one block" in result.stdout
    assert result.stdout.count("transformer_blocks.") >= 6
    assert result.stdout.splitlines()[-1].split() == ["page", "out/report.html"]
    assert (tmp_path / "out" / "figure.svg").exists()
    again = calibri(*words, "--json")
    found = json.loads(again.stdout)
    assert (found["experiment"], found["folder"]) == ("ablation", "out")


def test_the_name_of_a_run_is_enough(calibri, finished_run, tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").symlink_to(finished_run)
    result = calibri("experiment", "convergence", "--run", "mine")
    assert result.exit_code == 0, result.output
    assert "Sigma went from" in result.stdout


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["ablatoin"], 2, "Did you mean 'ablation'"),
        (["cost"], 2, "--run RUN"),
        (["sweep", "--run", "x"], 2, "takes no run"),
        (["cost", "--run", "x"], 5, "no run runs/x"),
        (["sweep", "--pipeline", "./nowhere"], 3, "nowhere"),
        (["sweep", "--searches", "2"], 2, "--searches"),
        (["steps", "--searches", "0"], 2, "--searches"),
        (["steps", "--pipeline", "shapes", "--pipeline", "shapes"], 2, "one pipeline"),
        (["backbones", "--pipeline", "shapes", "--pipeline", "./nowhere"], 3, "nowhere"),
    ],
)
def test_mistakes_are_told_at_once(words, code, said, calibri, tmp_path):
    result = calibri("experiment", *words)
    assert result.exit_code == code, result.output
    assert said in result.output
    assert not (tmp_path / "experiments").exists()

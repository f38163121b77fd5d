"""Flow-GRPO on the coefficients: a whole search, stopped and resumed, and what it refuses."""

import numpy as np
import pytest

from calibri.errors import ConfigError, Interrupted
from calibri.runs.calibrate import calibrate, planned_images, resume
from calibri.runs.journal import read_journal
from calibri.runs.session import Session
from calibri.scoring.plain_json import decode_exact
from tests.fakes import StopAfter
from tests.tiny import tiny_run

GRPO = {
    "search.method": "grpo",
    "search.popsize": 6,
    "search.bucket_size": 2,
    "search.bucket_growth": 1,
    "search.generations": 2,
    "sampling.num_inference_steps": 3,
    "rewards.objective": "jpeg-compressibility",  # which has no gradient
    "search.validate_every": 1,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    return calibrate(tiny_run(GRPO), name="whole", runs=runs), runs / "whole"


def test_every_generation_takes_a_group_of_images_for_each_prompt(run):
    first, second = run[0].search.generations
    validated = 5
    assert first.images == 6 * 2 + 2
    assert second.images - first.images == 6 * 2 + 2 + validated * 2
    assert np.isfinite([first.mean, first.baseline]).all()
    config = tiny_run(GRPO)
    assert planned_images(Session(config))["search"] == 2 * (6 * 2 + 2)


def test_it_moves_by_steps_of_adam(run):
    records = read_journal(run[1] / "journal.jsonl")
    asked = [r for r in records if r["kind"] == "vectors" and r["name"] == "search"]
    first, second = (decode_exact(record["vectors"])[0] for record in asked)
    assert 0 < np.abs(second - first).max() <= 0.02 * 1.5


def test_it_is_resumed_where_it_stopped(run, tmp_path):
    with pytest.raises(Interrupted):
        calibrate(tiny_run(GRPO), name="part", runs=tmp_path, progress=StopAfter(4))
    resumed = resume(tmp_path / "part")
    assert resumed.search.coefficients == run[0].search.coefficients
    assert resumed.evaluation == run[0].evaluation


@pytest.mark.slow
def test_other_processes_come_to_the_same(run, tmp_path):
    shared = calibrate(tiny_run(GRPO, sampling__workers=2), name="two", runs=tmp_path)
    assert shared.search.coefficients == run[0].search.coefficients


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"rewards.objective": "shapes:0.5,jpeg-compressibility:0.5"}, "of one reward"),
        ({"space.shift": True, "sampling.guidance_scale": 3.0}, "factor on the shift"),
        ({"sampling.batch_size": 4}, "compared in one batch"),
        ({"sampling.num_inference_steps": 1}, "2 or more"),
        ({"search.fidelity": {"num_inference_steps": 2}}, "sampler as in sampling"),
    ],
)
def test_what_it_cannot_search_is_refused_before_anything_is_written(values, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        calibrate(tiny_run(GRPO | values), name="x", runs=tmp_path)
    assert not (tmp_path / "x").exists()

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from calibri.errors import (
    CalibriError,
    ConfigError,
    Interrupted,
    PromptError,
    RewardError,
    RunError,
)
from calibri.pipelines.loading import load_pipeline
from calibri.rewards import registry
from calibri.runs.calibrate import _shareable, calibrate, planned_images, resume
from tests.fakes import StopAfter
from tests.tiny import has_hooks, tiny_run

TINY = {
    "sampling.batch_size": 8,
    "search.generations": 4,
    "search.bucket_size": 3,
    "search.validate_every": 2,
    "evaluation.step_multiples": (1, 2),
    "evaluation.num_samples": 1,
}


def tiny(**values):
    return tiny_run(TINY, **values)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    progress = StopAfter(10_000)
    return calibrate(tiny(), name="whole", runs=runs, progress=progress), progress, runs / "whole"


def outcome(summary):
    evaluation = summary.evaluation.model_dump()
    generations = [g.model_dump(exclude={"seconds"}) for g in summary.search.generations]
    return summary.search.coefficients, generations, summary.search.checkpoints, evaluation


def test_a_run_leaves_its_results_and_a_calibration(undisturbed):
    summary, progress, path = undisturbed
    assert len(summary.search.generations) == 4
    assert [c.generation for c in summary.search.checkpoints] == [1, 3]
    assert len(summary.search.coefficients) == 7
    assert json.loads((path / "results.json").read_text())["verdict"] == summary.verdict
    assert (path / "calibration" / "calibri.json").is_file()
    assert (path / "images" / summary.samples[0].files["calibrated, 2 steps"]).is_file()


def test_the_plan_counts_the_images_that_were_sampled(undisturbed, monkeypatch):
    from calibri.runs.session import Session

    summary, _, _ = undisturbed
    plan = planned_images(Session(tiny()))
    assert plan["search"] + plan["validation"] == summary.search.images


@pytest.mark.parametrize("units", [1, 4, 9, 14])
def test_interrupted_and_resumed_ends_as_undisturbed(undisturbed, tmp_path, units):
    whole, progress, _ = undisturbed
    with pytest.raises(Interrupted, match="calibri resume"):
        calibrate(tiny(), name="part", runs=tmp_path, progress=StopAfter(units))
    rest = StopAfter(10_000)
    summary = resume(tmp_path / "part", progress=rest)
    assert outcome(summary) == outcome(whole)
    # A unit is in the journal before anybody hears of it: none is computed twice.
    assert rest.computed == progress.computed - units


def test_resuming_a_finished_run_computes_nothing(undisturbed):
    whole, _, path = undisturbed
    progress = StopAfter(10_000)
    assert outcome(resume(path, progress=progress)) == outcome(whole)
    # The sample images are drawn again; they are no units of the journal.
    assert progress.computed <= 3


@pytest.mark.slow
def test_killed_and_resumed_ends_as_undisturbed(undisturbed, tmp_path):
    whole, _, _ = undisturbed
    config = tmp_path / "config.json"
    config.write_text(tiny().model_dump_json())
    program = (
        "import sys; from pathlib import Path; from calibri.runs.calibrate import calibrate;"
        "from calibri.config import RunConfig;"
        "calibrate(RunConfig.model_validate_json(Path(sys.argv[1]).read_text()), name='killed',"
        "runs=Path(sys.argv[2]))"
    )
    child = subprocess.Popen([sys.executable, "-c", program, config, tmp_path])
    journal = tmp_path / "killed" / "journal.jsonl"
    deadline = time.monotonic() + 120
    while not (journal.is_file() and journal.read_bytes().count(b"\n") >= 5):
        assert child.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert not (tmp_path / "killed" / "results.json").exists()
    assert outcome(resume(tmp_path / "killed")) == outcome(whole)


def test_the_seed_decides_the_result(undisturbed, tmp_path):
    whole, _, _ = undisturbed
    again = calibrate(tiny(), name="again", runs=tmp_path)
    other = calibrate(tiny(seed=1), name="other", runs=tmp_path)
    assert outcome(again) == outcome(whole)
    # Both may choose the original's coefficients; the ways there differ.
    assert outcome(other)[1] != outcome(whole)[1]


@pytest.mark.parametrize("branches", ["shared", "separate"])
def test_guided_runs_search_both_output_weights(tmp_path, branches):
    config = tiny(sampling__guidance_scale=3.0, space__branches=branches, search__generations=1)
    summary = calibrate(config, name=branches, runs=tmp_path)
    starts = {"conditional/output": 3.0, "unconditional/output": -2.0}
    for label, start in starts.items():
        assert [summary.start[f"{label}@{knot}"] for knot in range(2)] == [start, start]
    assert summary.start["shift"] == 1.0
    assert len(summary.coefficients) == (11 if branches == "shared" else 17)
    assert summary.evaluation.settings[0].nfe == 4


def test_the_reference_procedure_runs_by_name(tmp_path):
    config = tiny(search__method="reference", search__popsize=None)
    summary = calibrate(config, name="reference", runs=tmp_path)
    assert summary.config["search"]["method"] == "reference"


class Mine:
    """A reward of our own: that of the shipped world, unless it is broken."""

    info = dataclasses.replace(registry.make_reward("shapes").info, name="mine")

    def __init__(self, *, is_broken=False):
        self.is_broken = is_broken

    def score(self, images, prompts):
        scores = registry.make_reward("shapes").score(images, prompts)
        return scores.fill_(torch.nan) if self.is_broken else scores


def test_a_broken_reward_stops_the_run_and_a_working_one_resumes_it(undisturbed, tmp_path):
    with pytest.raises(RewardError, match="finite"):
        calibrate(tiny(), rewards=[Mine(is_broken=True)], name="broken", runs=tmp_path)
    with pytest.raises(ConfigError, match="with the reward 'mine' as an object"):
        resume(tmp_path / "broken")
    again = resume(tmp_path / "broken", rewards=[Mine()])
    assert again.search.coefficients == undisturbed[0].search.coefficients
    assert again.evaluation.objective == "mine"


def test_a_loaded_pipeline_and_rewards_as_objects_give_the_same_run(undisturbed, tmp_path):
    pipe = load_pipeline("shapes", device="cpu")
    assert not has_hooks(pipe.transformer)
    reward = registry.make_reward("shapes")
    found = calibrate(tiny(), pipeline=pipe, rewards=[reward], name="objects", runs=tmp_path)
    assert outcome(found) == outcome(undisturbed[0])
    # The pipeline is the caller's, so nothing of ours stays on it.
    assert not has_hooks(pipe.transformer)


@pytest.mark.parametrize(
    ("values", "error", "words"),
    [
        ({"pipeline": "no/such-folder-or-repo"}, CalibriError, "no/such-folder-or-repo"),
        ({"rewards__objective": "beauty"}, RewardError, "no reward 'beauty'"),
        ({"search__bucket_size": 5000}, PromptError, "cannot fill a bucket"),
        ({"device": "cuda:99"}, CalibriError, "cuda:99"),
    ],
)
def test_bad_input_is_refused_before_a_run_exists(tmp_path, monkeypatch, values, error, words):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(error, match=words):
        calibrate(tiny(**values), name="bad", runs=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_not_overwritten_and_no_model_is_loaded_first(undisturbed):
    _, _, path = undisturbed
    elsewhere = {"pipeline": "nobody/no-such-model", "prompts__train": "compositional"}
    config = tiny(**elsewhere, rewards__objective="jpeg-compressibility")
    with pytest.raises(RunError, match="resume"):
        calibrate(config, name=path.name, runs=path.parent)


def test_an_edited_configuration_is_refused(undisturbed, tmp_path):
    import shutil

    _, _, path = undisturbed
    copy = tmp_path / "edited"
    shutil.copytree(path, copy)
    stored = json.loads((copy / "config.json").read_text())
    stored["config"]["seed"] = 7
    (copy / "results.json").unlink()
    (copy / "config.json").write_text(json.dumps(stored))
    with pytest.raises(RunError, match="configuration was edited"):
        resume(copy)


def test_a_chosen_calibration_is_never_worse_than_the_original_on_validation(undisturbed):
    summary, _, _ = undisturbed
    chosen = [c for c in summary.search.checkpoints if c.chosen]
    best = max(c.difference.mean for c in summary.search.checkpoints)
    if best > 0:
        assert [c.difference.mean for c in chosen] == [best]
    else:
        assert chosen == []
        assert np.allclose(list(summary.coefficients.values()), list(summary.start.values()))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"search.method": "gradient", "rewards.objective": "jpeg-compressibility"}, "no gradient"),
        ({"search.method": "gradient", "search.last_steps": 3}, "there are 2 steps"),
        ({"search.method": "reference", "search.probe": True}, "chooses for the method 'calibri'"),
        ({"search.scale_bounds": (1.5, 2.0)}, r"= 1, outside of 1\.5 to 2\. Widen .*scale_bounds"),
        ({"sampling.guidance_scale": 12.0}, r"outside of -10 to 10\. Widen search\.output_bounds"),
    ],
)
def test_a_search_that_cannot_be_done_is_refused_before_its_folder_is_made(tmp_path, values, says):
    with pytest.raises(CalibriError, match=says):
        calibrate(tiny_run(TINY | values), name="none", runs=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_is_passed_on_holds_no_token():
    options = {"shapes": {"token": "secret", "batch_size": 3}}
    shown = _shareable(tiny(rewards__options=options))
    assert shown["rewards"]["options"] == {"shapes": {"batch_size": 3}}
    assert shown | {"rewards": None} == tiny().model_dump(mode="json") | {"rewards": None}

"""Base, aligned, calibrated and both, on the same prompts and noise."""

import shutil

import pytest
from safetensors.torch import load_file

import calibri
from calibri.errors import ConfigError, RunError
from calibri.experiments.alignment import _matches
from calibri.pipelines.loading import load_pipeline
from calibri.results import Figure
from calibri.runs.session import Session
from tests.loras import saved_by_peft
from tests.tiny import tiny_run

STATES = ["base", "calibrated", "aligned", "both"]


@pytest.fixture(scope="module")
def lora(shipped, tmp_path_factory):
    return str(saved_by_peft(shipped.transformer, tmp_path_factory.mktemp("lora"), r=2))


@pytest.fixture(scope="module")
def config(lora):
    few = {"search.generations": 1, "search.bucket_size": 2, "search.bucket_growth": 1}
    return tiny_run(few, lora=lora, seed=20, evaluation__images_per_prompt=2)


@pytest.fixture(scope="module")
def found(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("experiments") / "alignment"
    return folder, calibri.experiment("alignment", config, searches=1, output=folder)


def test_the_four_are_scored_on_the_same_prompts_and_noise(found):
    _, findings = found
    means, differences = findings.tables
    assert [row[0] for row in means.rows] == STATES
    assert means.columns == ["", "numbers", "shapes", "diversity"]
    for reward in (1, 2):
        by_state = {row[0]: row[reward + 1].mean for row in means.rows}
        for row in differences.rows:
            one, other = row[0].split(" minus ")
            assert row[reward].mean == pytest.approx(by_state[one] - by_state[other], abs=1e-6)


def test_the_aligned_model_is_the_pipeline_with_its_lora(found, config, lora):
    """Oracle: a run's session on a pipeline that is loaded by hand."""
    _, findings = found
    pipe = load_pipeline("shapes", lora=lora, device="cpu")
    session = Session(config.model_copy(update={"lora": None}), pipe=pipe)
    noises = session.noises("experiment", 0, session.prompts.test, 2)
    images = session.sample(session.space.coefficients(session.space.start), noises)
    reward = session.bench.measures.rewards["shapes"]
    wanted = float(reward.score(images, [noise.prompt.text for noise in noises]).mean())
    session.close()
    aligned = next(row for row in findings.tables[0].rows if row[0] == "aligned")
    assert aligned[2].mean == pytest.approx(wanted, abs=1e-6)
    numbers = sum(p.numel() for p in load_file(f"{lora}/adapter_model.safetensors").values())
    assert aligned[1] == f"{numbers:,}"
    assert f"{numbers:,}" in findings.verdict


def test_another_lora_under_the_same_name_is_another_experiment(found, config, lora, shipped):
    folder, _ = found
    shutil.copytree(lora, f"{lora}-kept")
    try:
        saved_by_peft(shipped.transformer, lora, r=3)
        with pytest.raises(RunError, match=r"aligned: lora\.digest"):
            calibri.experiment("alignment", config, searches=1, output=folder)
    finally:
        shutil.rmtree(lora)
        shutil.move(f"{lora}-kept", lora)


def test_without_a_lora_there_is_nothing_to_compare(tmp_path):
    with pytest.raises(ConfigError, match="--lora FOLDER"):
        calibri.experiment("alignment", tiny_run(), output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_loaded_pipeline_is_refused(pipe, config, tmp_path):
    with pytest.raises(ConfigError, match="given as an object"):
        calibri.experiment("alignment", config, pipeline=pipe, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def figure(low, high):
    return Figure(mean=(low + high) / 2, low=low, high=high, n=9)


@pytest.mark.parametrize(
    ("against", "matches"),
    [((0.1, 0.2), True), ((-0.005, 0.1), True), ((-0.1, 0.1), None), ((-0.2, -0.1), False)],
)
def test_calibrating_matches_with_nine_tenths_of_the_gain_of_aligning(against, matches):
    assert _matches(figure(*against), figure(0.08, 0.12)) is matches
    # Where aligning gains nothing there is no margin.
    assert _matches(figure(-0.005, 0.1), figure(-0.1, 0.05)) is None

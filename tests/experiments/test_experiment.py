"""Experiments from call to folder: figures, resuming, and what is refused."""

import json
import shutil

import pytest

import calibri
from calibri.config import RunConfig
from calibri.errors import CalibriError, ConfigError, Interrupted, PromptError, RunError
from calibri.experiments.registry import EXPERIMENTS
from calibri.experiments.setup import with_defaults
from calibri.reporting.findings import Findings
from calibri.results import Figure
from calibri.runs.journal import read_journal
from tests.fakes import StopAfter
from tests.tiny import tiny_run

TINY = tiny_run(sampling__batch_size=8, evaluation__images_per_prompt=2)
SAMPLING = [name for name, (_, kind) in EXPERIMENTS.items() if kind != "run"]
OF_RUNS = [name for name, (_, kind) in EXPERIMENTS.items() if kind == "run"]


@pytest.fixture(scope="module")
def ablation(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experiments") / "ablation"
    return folder, calibri.experiment("ablation", TINY, output=folder)


def units(folder):
    return [r for r in read_journal(folder / "journal.jsonl") if r["kind"] == "unit"]


def test_each_block_is_a_row_with_its_interval(ablation):
    _, findings = ablation
    blocks = calibri.inspect("shapes", config={"space": {"granularity": "block"}})
    rows = findings.tables[0].rows
    assert [row[0] for row in rows] == list(dict.fromkeys(s.parameter for s in blocks.sites))
    assert all(isinstance(row[1], Figure) and row[1].n == 4 for row in rows)


def test_the_differences_are_those_of_images_that_are_sampled_by_hand(ablation):
    """Oracle: a session that scales the block itself, and the reward of its images."""
    from calibri.experiments.measured import with_scale
    from calibri.experiments.setup import _prompts
    from calibri.prompts import PromptSets
    from calibri.runs.session import Session

    _, findings = ablation
    config = with_defaults(TINY, {"space": {"output_knots": 1, "shift": False}})
    session = Session(config, PromptSets((), (), _prompts(config)))
    try:
        original = session.space.coefficients(session.space.start)
        noises = session.noises("experiment", 0, session.prompts.test, 2)
        texts = [noise.prompt.text for noise in noises]
        reward = session.bench.measures.rewards["shapes"]
        name, figure = findings.tables[0].rows[2][:2]
        scores = [
            float(reward.score(session.sample(c, noises), texts).double().mean())
            for c in (with_scale(original, name, 0.0), original)
        ]
    finally:
        session.close()
    assert figure.mean == pytest.approx(scores[0] - scores[1], abs=1e-6)


def test_the_folder_holds_results_page_and_figure(ablation):
    folder, findings = ablation
    assert Findings.model_validate_json((folder / "results.json").read_bytes()) == findings
    page = (folder / "report.html").read_text()
    for text in (findings.verdict, findings.claim, findings.tables[0].rows[0][0]):
        assert text in page
    assert (folder / "figure.svg").read_text().startswith("<svg ")


def test_a_second_call_samples_nothing_and_finds_the_same(ablation):
    folder, findings = ablation
    before = len(units(folder))
    again = calibri.experiment("ablation", TINY, output=folder)
    assert len(units(folder)) == before
    assert again.tables == findings.tables


def test_an_interrupted_experiment_goes_on_and_ends_the_same(ablation, tmp_path):
    _, whole = ablation
    with pytest.raises(Interrupted, match="same command"):
        calibri.experiment("ablation", TINY, output=tmp_path / "part", progress=StopAfter(3))
    assert not (tmp_path / "part" / "results.json").exists()
    done = units(tmp_path / "part")
    assert len(done) == 3
    found = calibri.experiment("ablation", TINY, output=tmp_path / "part")
    assert found.tables == whole.tables
    assert units(tmp_path / "part")[:3] == done


def test_another_setting_has_another_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = {calibri.experiment("ablation", TINY, seed=seed).folder for seed in (0, 1, 0)}
    assert len(folders) == 2
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.glob("experiments/*")} == folders


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("ablation", {"seed": 5}, "other settings: .*seed"),
        ("ablation", {"evaluation": {"num_prompts": 3}}, "evaluation.num_prompts"),
        ("sweep", {}, "does not belong to the experiment 'sweep'"),
    ],
)
def test_a_folder_of_something_else_is_left_alone(name, values, message, ablation):
    folder, _ = ablation
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(RunError, match=message):
        calibri.experiment(name, TINY, output=folder, **values)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_run_is_no_experiment_and_an_experiment_no_run(ablation, finished_run, tmp_path):
    folder, _ = ablation
    for call in (calibri.resume, calibri.report, calibri.status):
        with pytest.raises(RunError, match="calibri experiment ablation"):
            call(folder)
    shutil.copytree(finished_run, tmp_path / "run")
    with pytest.raises(RunError, match="folder of a run"):
        calibri.experiment("ablation", TINY, output=tmp_path / "run")


def test_the_original_at_1_is_measured_once_and_gains_nothing_over_itself(tmp_path):
    config = tiny_run(evaluation__num_prompts=2, evaluation__images_per_prompt=1)
    findings = calibri.experiment("sweep", config, output=tmp_path / "sweep")
    assert findings.facts["Conditions"] == str(1 + 6 * 8)
    assert all(0 <= row[1].mean <= 2 for row in findings.tables[0].rows)


@pytest.mark.parametrize("name", OF_RUNS)
def test_a_finished_run_is_looked_at(name, finished_run, tmp_path):
    findings = calibri.experiment(name, run=finished_run, output=tmp_path / "out")
    assert findings.answer == "not judged"
    assert findings.tables[0].rows
    assert (tmp_path / "out" / "report.html").exists()
    assert findings == calibri.experiment(
        name, run=finished_run, output=tmp_path / "out"
    ).model_copy(update={"created": findings.created})


@pytest.mark.parametrize("name", SAMPLING)
def test_an_experiment_that_samples_takes_no_run(name, finished_run):
    with pytest.raises(ConfigError, match="takes no run"):
        calibri.experiment(name, run=finished_run)


@pytest.mark.parametrize("name", OF_RUNS)
def test_a_run_must_be_named_and_finished(name, finished_run, tmp_path):
    with pytest.raises(ConfigError, match="--run RUN"):
        calibri.experiment(name)
    for file in ("config.json", "journal.jsonl"):
        (tmp_path / file).write_bytes((finished_run / file).read_bytes())
    with pytest.raises(RunError, match="calibri resume"):
        calibri.experiment(name, run=tmp_path)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("ablatoin", {}, "Did you mean 'ablation'"),
        ("ablation", {"sedd": 1}, "Did you mean 'seed'|mean 'seed'"),
        ("ablation", {"space": {"start": "slg"}}, "space.start"),
        ("ablation", {"rewards": {"objective": "shapes:1,shapes-judge:1"}}, "mixture"),
        ("ablation", {"pipeline": "some/model"}, "needs --prompts FILE and --reward NAME"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    name, values, message, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CalibriError, match=message):
        calibri.experiment(name, TINY if "pipeline" not in values else None, **values)
    assert list(tmp_path.iterdir()) == []


def test_one_prompt_is_too_few(tmp_path):
    path = tmp_path / "one.txt"
    path.write_text("a red circle\n")
    with pytest.raises(PromptError, match="1 prompts"):
        calibri.experiment("ablation", TINY, prompts={"train": str(path)}, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_given_wins_over_what_an_experiment_wants():
    given = tiny_run(space__granularity="gate")
    made = with_defaults(given, {"space": {"granularity": "block", "output_knots": 1}})
    assert (made.space.granularity, made.space.output_knots) == ("gate", 1)


def test_results_hold_no_secret_of_a_reward(ablation):
    folder, _ = ablation
    assert "rewards.options" in json.loads((folder / "results.json").read_text())["settings"]


@pytest.mark.parametrize(
    ("pipeline", "steps", "guidance"),
    [("black-forest-labs/FLUX.1-dev", 15, 3.5), ("shapes", 8, 1.0), ("some/model", 8, 1.0)],
)
def test_models_of_the_paper_are_compared_as_the_paper_samples_them(pipeline, steps, guidance):
    from calibri.experiments.setup import _published

    sampling = with_defaults(RunConfig(), _published(pipeline)).sampling
    assert (sampling.num_inference_steps, sampling.guidance_scale) == (steps, guidance)
    given = with_defaults(tiny_run(sampling__guidance_scale=2.0), _published(pipeline)).sampling
    assert (given.num_inference_steps, given.guidance_scale) == (2, 2.0)

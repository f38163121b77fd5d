"""Searches of an experiment: at equal cost, on shared prompts, kept, and gone on with."""

import shutil

import pytest

import calibri
from calibri.errors import CalibriError, ConfigError, Interrupted, RunError
from calibri.experiments.registry import EXPERIMENTS
from calibri.experiments.searching import Cell, by_cell, planned, with_search, with_space
from calibri.reporting.findings import Findings
from calibri.runs import session as session_module
from calibri.runs.session import Session
from tests.experiments.synthetic import Landscape
from tests.fakes import StopAfter
from tests.tiny import FEW_PROMPTS, tiny_run

TINY = tiny_run(
    FEW_PROMPTS,
    search__generations=1,
    search__bucket_size=2,
    search__bucket_growth=1.0,
    evaluation__images_per_prompt=1,
    seed=20,
)


@pytest.fixture(scope="module", autouse=True)
def _no_images():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session_module, "make_backend", lambda bench, *_: Landscape(bench))
        yield


@pytest.fixture(scope="module")
def granularity(tmp_path_factory, shipped, _no_images):
    folder = tmp_path_factory.mktemp("experiments") / "granularity"
    return folder, calibri.experiment(
        "granularity", TINY, pipeline=shipped, searches=2, output=folder
    )


def state(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_each_way_is_a_row_and_each_search_two_files(granularity):
    folder, findings = granularity
    assert [row[0] for row in findings.tables[0].rows] == ["block", "layer", "gate"]
    assert {p.name for p in (folder / "searches").iterdir()} == {
        f"{number}-{name}-{seed}{end}"
        for number, name in enumerate(("block", "layer", "gate"), start=1)
        for seed in (20, 21)
        for end in (".json", ".jsonl")
    }
    assert "over search seeds" in (folder / "report.html").read_text()
    assert Findings.model_validate_json((folder / "results.json").read_bytes()) == findings


def test_a_second_call_searches_nothing_and_finds_the_same(granularity, shipped):
    folder, findings = granularity
    before = {k: v for k, v in state(folder).items() if k.suffix == ".jsonl"}
    again = calibri.experiment("granularity", TINY, pipeline=shipped, searches=2, output=folder)
    assert again.tables == findings.tables
    assert {k: v for k, v in state(folder).items() if k.suffix == ".jsonl"} == before


@pytest.mark.parametrize("units", [1, 8])
def test_an_interrupted_experiment_goes_on_and_ends_the_same(units, granularity, shipped, tmp_path):
    _, whole = granularity
    given = {"pipeline": shipped, "searches": 2, "output": tmp_path / "part"}
    with pytest.raises(Interrupted, match="same command"):
        calibri.experiment("granularity", TINY, progress=StopAfter(units), **given)
    assert calibri.experiment("granularity", TINY, **given).tables == whole.tables


def test_the_journal_of_a_search_that_is_damaged_says_what_to_say_again(
    granularity, shipped, tmp_path
):
    given = {"pipeline": shipped, "searches": 2, "output": tmp_path / "part"}
    with pytest.raises(Interrupted):
        calibri.experiment("granularity", TINY, progress=StopAfter(2), **given)
    (journal,) = (tmp_path / "part" / "searches").glob("*.jsonl")
    data = journal.read_bytes()
    journal.write_bytes(data[:30] + b"?" + data[31:])
    with pytest.raises(RunError, match="calibri experiment granularity") as caught:
        calibri.experiment("granularity", TINY, **given)
    assert "calibri resume" not in str(caught.value)


def test_a_finished_search_that_is_damaged_is_named(granularity, shipped, tmp_path):
    before, whole = granularity
    folder = shutil.copytree(before, tmp_path / "out")
    given = {"pipeline": shipped, "searches": 2, "output": folder}
    broken = folder / "searches" / "2-layer-20.json"
    broken.write_text("{}")
    with pytest.raises(RunError, match=r"2-layer-20\.json is damaged.*calibri experiment"):
        calibri.experiment("granularity", TINY, **given)
    broken.unlink()
    assert calibri.experiment("granularity", TINY, **given).tables == whole.tables


def test_a_folder_in_use_is_told_as_that_of_an_experiment(granularity, shipped):
    from calibri.runs.folder import RunFolder

    folder, _ = granularity
    with RunFolder.open(folder, of_experiment=True).lock(), pytest.raises(RunError) as caught:
        calibri.experiment("granularity", TINY, pipeline=shipped, searches=2, output=folder)
    assert "--output" in str(caught.value)
    assert "--name" not in str(caught.value)


def test_a_folder_with_something_in_it_is_left_alone(shipped, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="--output") as caught:
        calibri.experiment("granularity", TINY, pipeline=shipped, output=tmp_path)
    assert "resume" not in str(caught.value)


def test_another_number_of_searches_is_another_experiment(granularity, shipped):
    folder, _ = granularity
    with pytest.raises(RunError, match="other settings: searches"):
        calibri.experiment("granularity", TINY, pipeline=shipped, searches=1, output=folder)


@pytest.fixture(scope="module")
def session(shipped):
    made = Session(tiny_run(seed=20, search__generations=3), pipe=shipped)
    yield made
    made.close()


def test_every_way_costs_about_what_the_dearest_does_and_none_is_shortened(session):
    config = tiny_run(search__generations=3, search__popsize=None)
    cells = [
        Cell("one", with_space(config, granularity="block")),
        Cell("two", with_space(config, granularity="gate")),
        Cell("ensemble", with_space(config, members=2)),
        Cell("reference", with_search(config, "reference")),
        Cell("gradient", with_search(config, "gradient")),
    ]
    plans, left_out = planned(session, cells)
    assert not left_out
    costs = [plan.costs[-1] for plan in plans]
    for plan, cost in zip(plans, costs, strict=True):
        assert plan.config.search.generations >= 3
        # A generation more or less is the nearest that there is.
        assert abs(cost - max(costs)) <= cost / plan.config.search.generations
        assert len(plan.costs) == plan.config.search.generations
    ensemble = plans[2]
    assert ensemble.evaluations == 2.0


def test_what_a_pipeline_cannot_do_is_left_out_with_its_reason(session):
    config = tiny_run()
    impossible = with_space(config, guidance=True)
    plans, left_out = planned(session, [Cell("a", config), Cell("b", impossible, optional=True)])
    assert [plan.label for plan in plans] == ["a"]
    assert "b" in left_out
    with pytest.raises(CalibriError):
        planned(session, [Cell("a", config), Cell("b", impossible)])


@pytest.mark.parametrize("name", [n for n, (_, kind) in EXPERIMENTS.items() if kind != "searches"])
def test_what_does_not_search_takes_no_number_of_searches(name):
    with pytest.raises(ConfigError, match="--searches"):
        calibri.experiment(name, TINY, searches=2)


@pytest.mark.parametrize("count", [0, -1])
def test_no_search_at_all_is_refused(count, tmp_path, monkeypatch, shipped):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="at least one search"):
        calibri.experiment("granularity", TINY, pipeline=shipped, searches=count)
    assert list(tmp_path.iterdir()) == []


def test_groups_keep_their_order():
    class One:
        def __init__(self, label):
            self.label = label

    found = [One("b"), One("a"), One("b")]
    assert [(label, len(own)) for label, own in by_cell(found)] == [("b", 2), ("a", 1)]

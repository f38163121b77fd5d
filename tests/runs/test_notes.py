"""Notes decide nothing, stand once in a journal, and say what the summary says."""

import json

import pytest

from calibri.errors import Interrupted
from calibri.results import Checkpoint, Generation, RunPlan
from calibri.runs.calibrate import calibrate, resume
from calibri.runs.journal import Journal, read_journal
from tests.fakes import StopAfter
from tests.tiny import tiny_run

TINY = {
    "sampling.batch_size": 8,
    "search.generations": 4,
    "search.bucket_size": 3,
    "search.validate_every": 2,
}


def notes(path, event):
    records = read_journal(path / "journal.jsonl")
    return [r for r in records if r["kind"] == "note" and r["event"] == event]


@pytest.fixture(scope="module")
def stopped_twice(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    with pytest.raises(Interrupted):
        calibrate(tiny_run(TINY), name="a", runs=runs, progress=StopAfter(9))
    with pytest.raises(Interrupted):
        resume(runs / "a", progress=StopAfter(14))
    return resume(runs / "a"), runs / "a"


def test_what_is_noted_is_what_the_results_say_and_stands_once(stopped_twice):
    summary, path = stopped_twice
    generations = [Generation.model_validate(n["value"]) for n in notes(path, "generation")]
    assert generations == summary.search.generations
    checkpoints = [Checkpoint.model_validate(n["value"]) for n in notes(path, "checkpoint")]
    plain = [c.model_copy(update={"chosen": False}) for c in summary.search.checkpoints]
    assert checkpoints == plain
    (plan,) = [RunPlan.model_validate(n["value"]) for n in notes(path, "plan")]
    assert plan.images["search"] + plan.images["validation"] == summary.search.images
    assert plan.parameters == len(summary.coefficients)


def test_without_its_notes_a_journal_gives_the_same_run(stopped_twice, tmp_path):
    summary, path = stopped_twice
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "config.json").write_bytes((path / "config.json").read_bytes())
    with Journal.open(tmp_path / "b" / "journal.jsonl") as journal:
        for record in read_journal(path / "journal.jsonl"):
            if record["kind"] != "note":
                journal.append(record)
    progress = StopAfter(10_000)
    assert resume(tmp_path / "b", progress=progress).search == summary.search
    assert progress.computed == 0


def test_measuring_first_changes_the_plan_and_the_newest_one_holds(tmp_path):
    config = tiny_run(TINY, search__probe=True, search__popsize=None, search__generations=2)
    summary = calibrate(config, name="probed", runs=tmp_path)
    plans = [RunPlan.model_validate(n["value"]) for n in notes(tmp_path / "probed", "plan")]
    first, last = plans
    measured = summary.search.measured.images
    assert last.images["measuring"] == measured <= first.images["measuring"]
    units = read_journal(tmp_path / "probed" / "journal.jsonl")
    rows = [len(r["scores"]["shapes"]) for r in units if r["kind"] == "unit"]
    assert sum(rows) == sum(last.images.values())


def test_a_note_has_the_time(stopped_twice):
    _, path = stopped_twice
    records = read_journal(path / "journal.jsonl")
    times = [r["at"] for r in records if r["kind"] in ("note", "unit")]
    assert times == sorted(times)
    assert json.dumps(times)

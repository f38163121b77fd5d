"""What workers that would idle compute before it is asked for: nothing but time depends on it."""

import random

import pytest

from calibri.errors import Interrupted
from calibri.runs.calibrate import calibrate, resume
from calibri.runs.checkpoints import Checkpoints
from calibri.runs.journal import read_journal
from calibri.scoring.backends.choice import make_backend
from tests.fakes import Foresighted, StopAfter
from tests.tiny import tiny_run

TINY = {
    "sampling.batch_size": 4,
    "search.generations": 4,
    "search.bucket_size": 4,
    "search.validate_every": 2,
    "evaluation.step_multiples": (1, 2),
}


@pytest.fixture
def foresight(monkeypatch):
    """Has every run use such a back-end; gives the newest."""
    made = []

    def install(spare):
        def make(*args):
            made.append(Foresighted(make_backend(*args), spare))
            return made[-1]

        monkeypatch.setattr("calibri.runs.session.make_backend", make)
        return made

    return install


def outcome(summary):
    search = summary.search.model_dump(exclude={"seconds", "generations"})
    generations = [g.model_dump(exclude={"seconds"}) for g in summary.search.generations]
    return summary.coefficients, search, generations, summary.evaluation.model_dump()


def units_in(run):
    records = [r for r in read_journal(run / "journal.jsonl") if r["kind"] == "unit"]
    units = {(r["phase"], r["step"], r["unit"]): (r["digest"], r["scores"]) for r in records}
    assert len(units) == len(records)
    return units


@pytest.fixture(scope="module", params=["calibri", "gradient"])
def config(request):
    # The reward of the shipped pipeline has a gradient.
    objective = "shapes" if request.param == "gradient" else "jpeg-compressibility"
    return tiny_run(TINY | {"rewards.objective": objective, "search.method": request.param})


@pytest.fixture(scope="module")
def plain(config, tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    return calibrate(config, name="plain", runs=runs), units_in(runs / "plain")


@pytest.mark.parametrize("spare", ["all", "some"])
def test_a_run_ends_the_same_whatever_is_computed_early(tmp_path, foresight, config, plain, spare):
    rng = random.Random(0)
    foresight(lambda: None if spare == "all" else rng.randrange(4))
    summary = calibrate(config, name="ahead", runs=tmp_path)
    assert outcome(summary) == outcome(plain[0])
    assert units_in(tmp_path / "ahead") == plain[1]


def test_killed_with_units_ahead_it_goes_on_without_and_computes_none_twice(
    tmp_path, foresight, config, plain
):
    foresight(lambda: 3)
    with pytest.raises(Interrupted):
        calibrate(config, name="r", runs=tmp_path, progress=StopAfter(8))
    known = units_in(tmp_path / "r")
    assert len(known) > 8
    made = foresight(lambda: 0)
    assert outcome(resume(tmp_path / "r")) == outcome(plain[0])
    assert units_in(tmp_path / "r") == plain[1]
    assert not known.keys() & set(made[-1].computed)


def test_what_is_needed_sooner_is_ahead_of_what_is_needed_later(tmp_path, foresight, config):
    made = foresight(lambda: 0)
    calibrate(config, name="r", runs=tmp_path)
    asked = [key for units, _ in made[-1].calls for key in units]
    place = {key: i for i, key in enumerate(asked)}
    for _, ahead in made[-1].calls:
        places = [place[key] for key in ahead]
        assert places == sorted(places)
    beside = {units[0][:2]: {key[:2] for key in ahead} for units, ahead in made[-1].calls if units}
    if config.search.method != "gradient":
        # The checkpoint after two generations has the beginning of the third beside it.
        assert ("search", 2) in beside["validation", 2]
    assert {phase for phase, _ in beside["search", 0]} == {"validation", "evaluation"}


def test_a_search_that_a_checkpoint_ends_throws_the_begun_generation_away(
    tmp_path, foresight, config, monkeypatch
):
    monkeypatch.setattr(Checkpoints, "stop_reason", "enough")
    short = calibrate(config, name="plain", runs=tmp_path)
    assert len(short.search.generations) == 2
    foresight(lambda: None)
    summary = calibrate(config, name="ahead", runs=tmp_path)
    assert outcome(summary) == outcome(short)
    more = units_in(tmp_path / "ahead").keys() - units_in(tmp_path / "plain").keys()
    assert {key[:2] for key in more} == ({("search", 2)} if len(more) else set())
    assert bool(more) == (config.search.method != "gradient")

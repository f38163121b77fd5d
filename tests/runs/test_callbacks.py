"""Watchers of a caller: told everything in order, and never able to end or change a run."""

import inspect
import sys
import warnings
from pathlib import Path

import pytest

from calibri.errors import CalibriWarning, ConfigError, Interrupted
from calibri.progress import Progress, Together
from calibri.runs.calibrate import calibrate, resume
from calibri.runs.callbacks import Callbacks, make_callbacks
from tests.fakes import Listening, StopAfter
from tests.tiny import tiny_run

TINY = {
    "sampling.batch_size": 8,
    "search.generations": 2,
    "search.bucket_size": 3,
    "search.validate_every": 1,
}
EVENTS = [name for name, _ in inspect.getmembers(Progress, inspect.isfunction) if name[0] != "_"]


def arguments(event):
    return [object() for _ in list(inspect.signature(getattr(Progress, event)).parameters)[1:]]


def hearing(heard, fails=()):
    """A callback that notes what it is told, and fails at some events."""

    def method(event):
        def told(self, *what):
            heard.append((event, *what))
            if event in fails:
                raise ValueError(f"no {event}")

        return told

    return type("Hearing", (Progress,), {event: method(event) for event in EVENTS})()


@pytest.mark.parametrize("kind", [Together, lambda w: Callbacks(w, Progress())])
@pytest.mark.parametrize("event", EVENTS)
def test_every_event_reaches_everybody_with_what_it_says(kind, event):
    first, second, what = [], [], arguments(event)
    getattr(kind([hearing(first), hearing(second)]), event)(*what)
    assert first == second == [(event, *what)]


@pytest.mark.parametrize("event", EVENTS)
def test_who_fails_is_named_once_and_hears_no_more(event):
    bad, good, said = [], [], Listening()
    callbacks = Callbacks([hearing(bad, {event}), hearing(good)], said)
    with pytest.warns(CalibriWarning, match=f"Hearing failed in '{event}' .ValueError: no {event}"):
        getattr(callbacks, event)(*arguments(event))
    for other in EVENTS:
        getattr(callbacks, other)(*arguments(other))
    assert len(bad) == 1
    assert [name for name, *_ in good] == [event, *EVENTS]
    assert len(said.messages) == 1


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    heard = []
    runs = tmp_path_factory.mktemp("runs")
    summary = calibrate(tiny_run(TINY), name="a", runs=runs, callbacks=[hearing(heard)])
    return summary, heard, runs


def test_a_run_tells_its_story_from_begin_to_end(undisturbed):
    summary, heard, runs = undisturbed
    names = [name for name, *_ in heard]
    assert names[:3] == ["begin", "planned", "phase"]
    assert names[-2:] == ["finish", "end"]
    assert heard[-2][1] == summary
    assert heard[0][1] == runs / "a"
    assert heard[0][2] == summary.config  # which holds no secrets
    assert [what[0] for name, *what in heard if name == "generation"] == summary.search.generations
    assert names.count("worked") == names.count("unit")


@pytest.mark.parametrize("event", ["begin", "unit", "generation", "finish"])
def test_a_callback_that_fails_changes_and_loses_nothing(undisturbed, tmp_path, event):
    summary, _, _ = undisturbed
    with pytest.warns(CalibriWarning, match=event):
        found = calibrate(tiny_run(TINY), name="a", runs=tmp_path, callbacks=[hearing([], {event})])
    assert found.coefficients == summary.coefficients
    assert found.search.checkpoints == summary.search.checkpoints


def test_an_interrupted_run_ends_and_a_resumed_one_tells_all_again(undisturbed, tmp_path):
    _, whole, _ = undisturbed
    heard, again = [], []
    with pytest.raises(Interrupted):
        calibrate(
            tiny_run(TINY),
            name="a",
            runs=tmp_path,
            progress=StopAfter(4),
            callbacks=[hearing(heard)],
        )
    assert [name for name, *_ in heard][-1] == "end"
    assert "finish" not in [name for name, *_ in heard]
    resume(tmp_path / "a", callbacks=[hearing(again)])

    def story(events):
        return [name for name, *_ in events if name not in ("worked", "message")]

    assert story(again) == story(whole)


@pytest.mark.parametrize("given", [[object()], [print], ["tensorbord"], [Progress]])
def test_what_is_no_callback_is_refused_before_anything_is_done(tmp_path, given):
    with pytest.raises(ConfigError, match=r"no callback|Did you mean 'tensorboard'"):
        calibrate({"pipeline": "shapes"}, runs=tmp_path / "runs", callbacks=given)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("name", "package"),
    [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb"), ("trackio", "trackio")],
)
def test_a_tracker_that_is_missing_is_named_with_its_extra(monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"calibri.runs.loggers.{name}", raising=False)
    with pytest.raises(ConfigError, match=rf"pip install 'calibri\[{name}\]'"):
        make_callbacks([name])


def test_every_tracker_has_an_extra_and_is_named_in_the_help():
    from typing import get_args

    from calibri.cli.options import LogOption
    from calibri.runs import callbacks

    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    for name in callbacks._LOGGERS:
        assert f"\n{name} = [" in project
        assert name in get_args(LogOption)[1].help


def test_no_callbacks_warn_of_nothing(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert make_callbacks(None) == []

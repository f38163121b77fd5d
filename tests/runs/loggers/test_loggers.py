"""What the trackers are told, by stand-ins with their signatures; the real one where it is."""

import importlib
import sys
import types

import pytest

from calibri.runs.calibrate import calibrate
from calibri.runs.callbacks import make_callbacks
from tests.tiny import tiny_run

TINY = {"search.generations": 3, "search.bucket_size": 3, "search.validate_every": 2}


class FakeWriter:
    """``torch.utils.tensorboard.SummaryWriter``."""

    made = None

    def __init__(self, log_dir=None, comment="", purge_step=None, max_queue=10, flush_secs=120):
        FakeWriter.made = self
        self.log_dir, self.purge_step = log_dir, purge_step
        self.logged, self.texts, self.open = [], [], True

    def add_scalar(self, tag, scalar_value, global_step=None, walltime=None):
        self.logged.append((global_step, {tag: scalar_value}))

    def add_text(self, tag, text_string, global_step=None, walltime=None):
        self.texts.append((tag, text_string))

    def flush(self):
        assert self.open

    def close(self):
        self.open = False


class FakeRun:
    """A run of ``wandb`` or ``trackio``."""

    def __init__(self):
        self.logged, self.summary, self.metrics, self.ended = [], {}, [], []

    def log(self, data=None, step=None, **metrics):
        data = dict(metrics.get("metrics", data))
        step = data.pop("generation", step)
        self.logged.append((step, data))

    def define_metric(self, name, step_metric=None):
        self.metrics.append((name, step_metric))

    def finish(self, exit_code=None):
        self.ended.append(exit_code)


@pytest.fixture
def stand_in(monkeypatch):
    def install(name, **attributes):
        module = types.ModuleType(name)
        vars(module).update(attributes)
        monkeypatch.setitem(sys.modules, name, module)

    yield install
    for name in ("tensorboard", "wandb", "trackio"):
        sys.modules.pop(f"calibri.runs.loggers.{name}", None)


@pytest.fixture
def told(stand_in):
    """Run with a tracker, and return what it was told and what there was to tell."""
    runs, asked = [], []

    def init(project, name=None, group=None, dir=None, config=None):
        asked.append({"project": project, "name": name, "config": config})
        runs.append(FakeRun())
        return runs[-1]

    settings = types.SimpleNamespace(settings=types.SimpleNamespace(project=None))
    stand_in("torch.utils.tensorboard", SummaryWriter=FakeWriter)
    stand_in("wandb", init=init, setup=lambda: settings)
    stand_in("trackio", init=init)

    def run(name, path):
        summary = calibrate(tiny_run(TINY), name="a", runs=path, callbacks=[name])
        if name == "tensorboard":
            return summary, FakeWriter.made
        assert asked[-1] == {"project": "calibri", "name": "a", "config": summary.config}
        return summary, runs[-1]

    return run


def by_step(logged):
    found = {}
    for step, values in logged:
        found.setdefault(step, {}).update(values)
    return found


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_tracker_has_the_figures_of_the_summary(told, tmp_path, name):
    summary, run = told(name, tmp_path)
    steps = by_step(run.logged)
    generations = summary.search.generations
    assert list(steps) == [generation.generation + 1 for generation in generations]
    for generation in generations:
        values = steps[generation.generation + 1]
        assert values["search/mean"] == generation.mean
        assert values["search/original"] == generation.baseline
        assert values["search/images"] == generation.images
        assert values["search/images per second"] > 0
    for checkpoint in summary.search.checkpoints:
        figure = checkpoint.difference
        values = steps[checkpoint.generation + 1]
        names = [f"validation/difference{end}" for end in ("", " low", " high")]
        assert [values[n] for n in names] == [figure.mean, figure.low, figure.high]
    for comparison in summary.evaluation.comparisons:
        final = steps[len(generations)]
        assert (
            final[f"evaluation/{comparison.reward} against {comparison.against}"]
            == comparison.difference.mean
        )
    numbers = [value for values in steps.values() for value in values.values()]
    assert all(isinstance(value, float | int) for value in numbers)


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_tracker_is_closed_also_when_the_run_never_began(told, name):
    (callback,) = make_callbacks([name])
    callback.end()


def test_tensorboard_writes_beside_the_run_and_hides_what_it_repeats(told, tmp_path):
    _, writer = told("tensorboard", tmp_path)
    assert (writer.log_dir, writer.purge_step) == (str(tmp_path / "a" / "tensorboard"), 0)
    assert not writer.open
    ((name, text),) = writer.texts
    assert name == "settings"
    assert '"seed": 0' in text


def test_weights_and_biases_knows_how_it_ended(told, tmp_path):
    summary, run = told("wandb", tmp_path)
    assert run.ended == [0]
    assert run.summary == {"verdict": summary.verdict}
    assert run.metrics == [("*", "generation")]


def test_tensorboard_itself(tmp_path):
    """Installed or not: what it reads back of the files is what the summary says."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    importlib.invalidate_caches()
    summary = calibrate(tiny_run(TINY), name="a", runs=tmp_path, callbacks=["tensorboard"])
    events = accumulator.EventAccumulator(str(tmp_path / "a" / "tensorboard"))
    events.Reload()
    found = events.Scalars("search/mean")
    assert [event.step for event in found] == [1, 2, 3]
    expected = [generation.mean for generation in summary.search.generations]
    assert [event.value for event in found] == pytest.approx(expected)

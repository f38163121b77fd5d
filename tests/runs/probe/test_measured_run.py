"""A run that measures first and is run by what it found."""

from types import SimpleNamespace

import pytest

from calibri.config import load_config
from calibri.errors import Interrupted
from calibri.progress import Progress
from calibri.results import FULL
from calibri.runs import calibrate as runner
from calibri.runs.calibrate import calibrate, planned_images, resume
from calibri.runs.journal import Journal
from calibri.runs.session import Session

VALUES = {
    "device": "cpu",
    "sampling.num_inference_steps": 2,
    "sampling.workers": 1,
    "space.granularity": "block",
    "search.probe": True,
    "search.generations": 2,
    "search.popsize": 4,
    "search.bucket_size": 6,
    "search.bucket_growth": 1,
    "search.race_keep": 1.0,
    "search.num_validation_prompts": 5,
    "rewards.held_out": (),
    "evaluation.num_prompts": 4,
    "evaluation.step_multiples": (1,),
    "evaluation.num_samples": 0,
}


class Stop(Progress):
    def __init__(self, units):
        self.left = units

    def unit(self, images, new):
        self.left -= new
        if self.left < 0:
            raise KeyboardInterrupt


def test_the_images_announced_are_those_of_what_was_chosen(monkeypatch):
    chosen = SimpleNamespace(popsize=9, bucket_size=5, fidelity=FULL)
    monkeypatch.setattr(runner, "measure_first", lambda *_: chosen)
    announced = {}

    class Announced(Progress):
        def phase(self, name, images):
            announced[name] = images
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runner._search(Session(load_config(values=VALUES)), None, Announced())
    checkpoints = 2 * VALUES["search.num_validation_prompts"]
    assert announced == {"search": 2 * (9 + 1) * 5 + checkpoints}


@pytest.mark.slow
def test_what_was_measured_is_told_and_used_and_survives_an_interruption(tmp_path):
    config = load_config(values=VALUES)
    whole = calibrate(config, name="whole", runs=tmp_path)
    measured = whole.search.measured
    assert measured.candidates == 8
    assert 0 < measured.images <= planned_images(Session(config))["measuring"]
    generation = whole.search.generations
    per_generation = generation[1].images - generation[0].images
    assert per_generation == (measured.popsize + 1) * measured.bucket_size
    with pytest.raises(Interrupted):
        calibrate(config, name="cut", runs=tmp_path, progress=Stop(12))
    again = resume(tmp_path / "cut")
    assert again.search.measured == measured
    assert again.search.coefficients == whole.search.coefficients


def units(path, phase):
    """Scores of a phase of a run, in the order of its journal."""
    with Journal.open(path / "journal.jsonl") as journal:
        return [r["scores"] for r in journal.records if r.get("phase") == phase]


@pytest.mark.slow
@pytest.mark.parametrize("fidelity", [{"num_inference_steps": 1}, {"cache_interval": 2}])
def test_only_generations_are_sampled_at_a_configured_fidelity(tmp_path, fidelity):
    """Checkpoints and final figures of the original are those of a run without it, bit for bit."""
    common = VALUES | {"search.probe": False, "sampling.num_inference_steps": 4}
    found = {}
    for name, chosen in (("cheap", fidelity), ("full", {})):
        config = load_config(values=common | {"search.fidelity": chosen})
        found[name] = calibrate(config, name=name, runs=tmp_path)
    cheap, full = (found[name].search.generations[0].baseline for name in ("cheap", "full"))
    assert cheap != full
    first = {name: units(tmp_path / name, "validation")[0] for name in found}
    assert first["cheap"] == first["full"]
    settings = [
        found[name].evaluation.setting(calibrated=False, num_inference_steps=4).scores
        for name in found
    ]
    assert settings[0] == settings[1]

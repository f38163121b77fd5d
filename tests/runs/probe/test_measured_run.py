"""A run that measures first and is run by what it found."""

import pytest

from calibri.errors import Interrupted
from calibri.runs.calibrate import calibrate, planned_images, resume
from calibri.runs.journal import Journal
from calibri.runs.session import Session
from tests.fakes import Listening, StopAfter
from tests.tiny import tiny_run

VALUES = {
    "search.probe": True,
    "search.generations": 2,
    "search.bucket_size": 6,
    "search.bucket_growth": 1,
    "search.race_keep": 1.0,
}


@pytest.mark.slow
def test_what_was_measured_is_told_and_used_and_survives_an_interruption(tmp_path):
    config = tiny_run(VALUES)
    progress = Listening()
    whole = calibrate(config, name="whole", runs=tmp_path, progress=progress)
    measured = whole.search.measured
    assert measured.candidates == 8
    assert 0 < measured.images <= planned_images(Session(config))["measuring"]
    generation = whole.search.generations
    per_generation = generation[1].images - generation[0].images
    assert per_generation == (measured.popsize + 1) * measured.bucket_size
    # What is announced is the search as it was chosen, and two checkpoints.
    checkpoints = 2 * config.search.num_validation_prompts
    assert dict(progress.phases)["search"] == 2 * per_generation + checkpoints
    with pytest.raises(Interrupted):
        calibrate(config, name="cut", runs=tmp_path, progress=StopAfter(12))
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
        config = tiny_run(common | {"search.fidelity": chosen})
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

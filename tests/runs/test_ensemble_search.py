"""A search over the members of an ensemble, from configuration to artifact and report."""

import numpy as np
import pytest

from calibri.artifact.calibration import Calibration
from calibri.coefficients.presets import preset
from calibri.coefficients.space import SearchSpace
from calibri.config import validate_config
from calibri.errors import ConfigError
from calibri.pipelines.sites.find import find_sites
from calibri.reporting.page import report
from calibri.runs.basis import make_search
from calibri.runs.calibrate import calibrate
from calibri.runs.evaluate import evaluate
from calibri.runs.session import Session
from calibri.search.method import MethodInfo
from tests.tiny import tiny_sd3

# A search of this method is its setup.
SHOWN = MethodInfo("shown", make=lambda setup: setup)


def config(**values):
    return validate_config(
        {
            "device": "cpu",
            "sampling": {"num_inference_steps": 2},
            "space": {"granularity": "block", "members": 2},
            "rewards": {"held_out": []},
            "search": {
                "generations": 1,
                "popsize": 4,
                "bucket_size": 2,
                "num_validation_prompts": 5,
            },
            "evaluation": {"num_prompts": 2, "images_per_prompt": 1, "num_samples": 1},
            **values,
        }
    )


def test_a_search_gives_an_ensemble_that_can_be_evaluated_and_reported(tmp_path):
    summary = calibrate(config(), name="two", runs=tmp_path)
    made = Calibration.from_pretrained(tmp_path / "two" / "calibration")
    assert made.coefficients.member_branches == (0, 0)
    assert len(made.coefficients.scales) == 2
    assert set(summary.start.values()) == {0.0, 1.0}
    nfe = {s.calibrated: s.nfe for s in summary.evaluation.settings if s.num_inference_steps == 2}
    assert nfe == {False: 2, True: 4}
    again = evaluate(made, num_prompts=2, images_per_prompt=1, step_multiples=(1,), device="cpu")
    assert {s.nfe for s in again.settings} == {2, 4}
    page = report(tmp_path / "two").read_text()
    assert "member1" in page
    assert "member2/output" in page


def test_members_under_guidance_need_separate_branches(tmp_path):
    guided = {"num_inference_steps": 2, "guidance_scale": 3.0}
    with pytest.raises(ConfigError, match="separate"):
        calibrate(config(sampling=guided), name="x", runs=tmp_path)


@pytest.mark.parametrize(
    ("guidance_scale", "members", "expected"),
    [
        (1.0, 1, [[1.0]]),
        (3.0, 1, [[1, 3**0.5], [-2 / 3, -(3**0.5)]]),
        (1.0, 3, [[1, 1, 1], [0, -1, 0], [0, 0, -1]]),
        (3.0, 2, [[1, 3**0.5, 3**0.5], [-2 / 3, -(3**0.5), 0], [0, 0, -(3**0.5)]]),
    ],
)
def test_steps_of_the_weights_are_the_scale_and_the_push_away_from_each_member(
    guidance_scale, members, expected
):
    space = SearchSpace.build(
        find_sites(tiny_sd3()),
        "block",
        guidance_scale=guidance_scale,
        branches="separate" if guidance_scale > 1 else "shared",
        members=members,
    )
    basis = make_search(space, config(), method=SHOWN).basis
    weights = np.flatnonzero(space.is_output)
    np.testing.assert_allclose(basis[np.ix_(weights, weights)], expected)
    assert np.linalg.matrix_rank(basis) == space.size


def test_a_search_starts_from_a_preset(tmp_path):
    space = {"granularity": "block", "members": 2, "start": "skip-middle-block"}
    session = Session(config(space=space))
    found = session.space.coefficients(session.start)
    assert found == preset("skip-middle-block", session.bench.scaler.transformer)
    assert found.output_weights == (2.0, -1.0)
    search = make_search(session.space, session.config, session.start)
    np.testing.assert_allclose(search.mean, session.start)
    assert not np.array_equal(session.start, session.space.start)


@pytest.mark.parametrize(
    "space",
    [
        {"granularity": "block", "start": "skip-middle-block"},
        {"granularity": "block", "members": 3, "start": "skip-middle-block"},
        {"members": 2, "output_weights": False, "start": "skip-middle-block"},
    ],
)
def test_a_preset_outside_the_search_space_is_refused(space):
    with pytest.raises(ConfigError, match="Set space.members to 2"):
        Session(config(space=space))

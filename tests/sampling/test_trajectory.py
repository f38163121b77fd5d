"""Scales that change over the sampling trajectory, linear in the timestep between knots."""

import numpy as np
import pytest
import torch

from calibri.artifact.apply import load
from calibri.artifact.calibration import Calibration
from calibri.artifact.formats.authors import export_authors_vector
from calibri.coefficients.space import SearchSpace
from calibri.config import validate_config
from calibri.errors import (
    CalibrationError,
    ConfigError,
    FuseError,
    GuidanceError,
    UnsupportedModelError,
)
from calibri.pipelines.sites.find import find_sites
from calibri.reporting.page import report
from calibri.runs.calibrate import calibrate
from calibri.runs.session import Session
from calibri.sampling.branches import BranchResolver
from calibri.sampling.scales.scaler import Scaler
from tests.tiny import calibration_of, flux_inputs, forward, sd3_inputs, tiny_flux, tiny_sd3

# Largest timestep of the model's forward.
MODELS = {"sd3": (tiny_sd3, sd3_inputs, 1000.0), "flux": (tiny_flux, flux_inputs, 1.0)}


def sample(pipe, guidance_scale=1.0):
    return pipe(
        ["a red circle", "a blue square"],
        num_inference_steps=4,
        guidance_scale=guidance_scale,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
    ).images


def random_scales(*shape):
    return 1 + 0.4 * torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def interpolated(scales, place):
    """The oracle: numpy's piecewise linear function of the relative timestep, entry by entry."""
    knots = np.linspace(0, 1, scales.shape[2])
    values = np.apply_along_axis(lambda y: np.interp(place, knots, y), 2, scales.double().numpy())
    return torch.from_numpy(values)


@pytest.mark.parametrize("branches", [(0,), (0, 0)])
@pytest.mark.parametrize("place", [0.0, 0.1, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("kind", MODELS)
def test_scales_are_those_of_the_timestep(kind, place, branches):
    make, inputs, largest = MODELS[kind]
    model, given = make(), inputs(2)
    given["timestep"] = torch.full((2,), place * largest)
    scaler = Scaler(model)
    scales = random_scales(2, len(branches), 3, len(scaler.sites) + 1)
    scaler.set(scales, branches)
    ours = forward(model, given)
    scaler.set(interpolated(scales, place), branches)
    torch.testing.assert_close(ours, forward(model, given), rtol=1e-4, atol=1e-5)
    scaler.set(interpolated(scales, 0.3), branches)
    assert not torch.allclose(ours, forward(model, given), atol=1e-3)


@pytest.mark.parametrize(("guidance_scale", "members"), [(1.0, 1), (3.0, 2)])
def test_images_are_those_of_scales_set_at_every_step(pipe, guidance_scale, members):
    guided = guidance_scale > 1
    resolver = BranchResolver(pipe) if guided else None
    before = sample(pipe, guidance_scale)
    place = []

    def by_hand(module, args, kwargs):
        place.append(float(kwargs["timestep"].flatten()[0]) / 1000)
        scaler.set(interpolated(scales, place[-1]))

    handle = pipe.transformer.register_forward_pre_hook(by_hand, with_kwargs=True)
    scaler = Scaler(pipe.transformer, resolver)
    scales = random_scales(1, members, 3, len(scaler.sites) + 1)
    expected = sample(pipe, guidance_scale)
    handle.remove()
    assert len(set(place)) == 4
    scaler.set(scales)
    torch.testing.assert_close(sample(pipe, guidance_scale), expected, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(expected, before, atol=1e-2)


def test_equal_knots_are_constant_scales(pipe):
    scaler = Scaler(pipe.transformer)
    scales = random_scales(1, 1, len(scaler.sites) + 1)
    scaler.set(scales)
    constant = sample(pipe)
    scaler.set(scales[:, :, None].expand(-1, -1, 3, -1))
    torch.testing.assert_close(sample(pipe), constant, rtol=1e-3, atol=1e-4)


def calibration(pipe, **options):
    space = SearchSpace.build(find_sites(pipe.transformer), "block", knots=3, **options)
    vector = space.start + np.linspace(-0.4, 0.4, space.size)
    made = calibration_of(pipe.transformer, space.coefficients(vector), num_inference_steps=4)
    return space, made


def test_a_calibration_is_saved_loaded_and_unloaded_but_not_fused(pipe, tmp_path):
    before = sample(pipe)
    _, made = calibration(pipe)
    applied = load(pipe, made.save_pretrained(tmp_path / "made"))
    assert applied.calibration == made
    assert not torch.allclose(sample(pipe), before, atol=1e-3)
    with pytest.raises(FuseError, match="3 knots"):
        applied.fuse()
    applied.set_strength(0.0)
    torch.testing.assert_close(sample(pipe), before, rtol=1e-4, atol=1e-5)
    applied.unload()
    assert torch.equal(sample(pipe), before)


@pytest.mark.parametrize("members", [1, 2])
def test_the_vector_lists_the_knots_of_each_member(pipe, members):
    space, made = calibration(pipe, members=members)
    blocks, coefficients = len(space.names), made.coefficients
    assert space.size == members * (3 * blocks + 1)
    own = "member1/" if members > 1 else ""
    assert space.labels[blocks] == f"{own}transformer_blocks.0@1"
    assert not list(coefficients.problems())
    vector = space.vector(coefficients)
    assert space.coefficients(vector) == coefficients
    scales = coefficients.site_scales(find_sites(pipe.transformer))
    assert scales.shape == (members, 3, len(find_sites(pipe.transformer)) + 1)
    assert scales[-1, 2, 0] == vector[(members * 3 - 1) * blocks]
    assert (scales[:, :, -1] == scales[:, :1, -1]).all()
    wrong = coefficients.model_copy(update={"knots": 2})
    assert any("knots" in problem for problem in wrong.problems())


def test_what_knows_only_constants_refuses(pipe):
    _, made = calibration(pipe)
    with pytest.raises(UnsupportedModelError, match="granularity"):
        export_authors_vector(made.coefficients, pipe.transformer)
    gates = SearchSpace.build(find_sites(pipe.transformer), "gate", knots=2)
    with pytest.raises(CalibrationError, match="2 knots"):
        export_authors_vector(gates.coefficients(gates.start), pipe.transformer)


def test_a_model_whose_timesteps_are_not_known_is_refused():
    class Other(type(tiny_sd3())):
        pass

    model = tiny_sd3()
    model.__class__ = Other
    scaler = Scaler(model)
    with pytest.raises(UnsupportedModelError, match="Other.*one knot"):
        scaler.set(torch.ones(1, 1, 2, len(scaler.sites) + 1))


def config(**space):
    return validate_config(
        {
            "device": "cpu",
            "sampling": {"num_inference_steps": 2},
            "space": {"granularity": "block", **space},
            "rewards": {"held_out": []},
            "search": {
                "generations": 1,
                "popsize": 4,
                "bucket_size": 2,
                "num_validation_prompts": 5,
            },
            "evaluation": {"num_prompts": 2, "images_per_prompt": 1, "num_samples": 1},
        }
    )


def test_a_search_over_knots_gives_an_artifact_and_a_report(tmp_path):
    summary = calibrate(config(knots=2), name="knots", runs=tmp_path)
    made = Calibration.from_pretrained(tmp_path / "knots" / "calibration")
    assert made.coefficients.knots == 2
    assert "transformer_blocks.0@1" in summary.coefficients
    page = report(tmp_path / "knots").read_text()
    assert "knot 1" in page


def test_a_preset_needs_constant_scales():
    with pytest.raises(ConfigError, match="space.knots to 1"):
        Session(config(knots=2, members=2, start="skip-middle-block"))


def test_a_timestep_is_found_without_its_name():
    model, inputs = tiny_sd3(), sd3_inputs(1)
    scaler = Scaler(model)
    scaler.set(random_scales(1, 1, 2, len(scaler.sites) + 1))
    names = ("hidden_states", "encoder_hidden_states", "pooled_projections", "timestep")
    unnamed = model(*(inputs[name] for name in names)).sample
    torch.testing.assert_close(unnamed, forward(model, inputs))


def test_a_forward_without_a_timestep_is_refused():
    model, inputs = tiny_sd3(), sd3_inputs(1)
    scaler = Scaler(model)
    scaler.set(torch.ones(1, 1, 2, len(scaler.sites) + 1))
    with pytest.raises(GuidanceError, match="without a timestep"):
        model(**{name: value for name, value in inputs.items() if name != "timestep"})

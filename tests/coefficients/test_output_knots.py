"""Output weights that change over the sampling trajectory: guidance and scale of each step."""

import numpy as np
import pytest
import torch

from calibri.artifact.apply import load
from calibri.artifact.calibration import Calibration
from calibri.coefficients.coefficients import Coefficients
from calibri.coefficients.resolution import Capabilities, build_space, resolve
from calibri.coefficients.space import SearchSpace
from calibri.coefficients.start import warm_start
from calibri.config import validate_config
from calibri.errors import ConfigError, FuseError
from calibri.pipelines.sites.find import find_sites
from calibri.runs.basis import search_basis
from calibri.runs.calibrate import calibrate
from calibri.runs.folder import RunFolder
from calibri.runs.session import Session
from tests.tiny import calibration_of

W = 3.0


def space_of(pipe, **options):
    options = {"guidance_scale": W, "output_knots": 2} | options
    return SearchSpace.build(find_sites(pipe.transformer), "block", **options)


def made(pipe, coefficients):
    return calibration_of(pipe.transformer, coefficients, num_inference_steps=4, guidance_scale=W)


def sample(pipe, **options):
    return pipe(
        ["a red circle", "a blue square"],
        num_inference_steps=4,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
        **({"guidance_scale": W} | options),
    ).images


def with_outputs(space, conditional, unconditional):
    vector = space.start.copy()
    vector[space.is_output] = [*conditional, *unconditional]
    return space.coefficients(vector)


def test_they_are_the_guidance_of_each_step_of_the_stock_pipeline(pipe):
    image, noise = 1.5, 4.5  # guidance at both ends of the trajectory
    place = []

    def next_guidance(pipe, index, timestep, tensors):
        place.append(float(timestep) / 1000)
        left = pipe.scheduler.timesteps[index + 1 :]
        if len(left):
            pipe._guidance_scale = image + (noise - image) * float(left[0]) / 1000
        return tensors

    stock = sample(pipe, guidance_scale=noise, callback_on_step_end=next_guidance)
    assert place[0] == 1.0
    assert place[-1] < 0.5
    outputs = with_outputs(space_of(pipe), (image, noise), (1 - image, 1 - noise))
    applied = load(pipe, made(pipe, outputs))
    torch.testing.assert_close(sample(pipe), stock, rtol=1e-3, atol=1e-4)
    applied.unload()
    assert not torch.allclose(sample(pipe), stock, atol=1e-2)


def test_without_guidance_they_scale_each_step(pipe):
    applied = load(
        pipe,
        made(pipe, with_outputs(space_of(pipe, guidance_scale=1.0), (0.7, 1.3), ())),
    )
    found = sample(pipe, guidance_scale=1.0)
    applied.unload()

    def scaled(module, args, kwargs, output):
        at = float(kwargs["timestep"].flatten()[0]) / 1000
        return ((0.7 + 0.6 * at) * output[0],)

    handle = pipe.transformer.register_forward_hook(scaled, with_kwargs=True)
    torch.testing.assert_close(sample(pipe, guidance_scale=1.0), found, rtol=1e-3, atol=1e-4)
    handle.remove()


@pytest.mark.parametrize("branches", ["shared", "separate"])
@pytest.mark.parametrize("knots", [1, 3])
def test_vector_and_table_list_the_knots_of_each_member(pipe, branches, knots):
    space = space_of(pipe, branches=branches, knots=knots, output_knots=3)
    sites = find_sites(pipe.transformer)
    sets = 2 if branches == "separate" else 1
    assert space.size == sets * knots * 6 + 2 * 3
    assert space.labels[-6] == "conditional/output@0"
    assert space.labels[-1] == "unconditional/output@2"
    assert space.start[-6:].tolist() == [W] * 3 + [1 - W] * 3
    vector = space.start + np.linspace(-0.3, 0.4, space.size)
    coefficients = space.coefficients(vector)
    assert not list(coefficients.problems())
    np.testing.assert_array_equal(space.vector(coefficients), vector)
    table = coefficients.site_scales(sites)
    assert table.shape == (2, 3, len(sites) + 1)
    np.testing.assert_allclose(table[0, :, -1], vector[-6:-3] / W)
    np.testing.assert_allclose(table[1, :, -1], vector[-3:] / (1 - W))
    assert (np.ptp(table[:, :, 0], axis=1) == 0).all() == (knots == 1)


def test_equal_knots_are_constant_weights(pipe):
    sites = find_sites(pipe.transformer)
    knotted = with_outputs(space_of(pipe), (2.0, 2.0), (-1.5, -1.5)).site_scales(sites)
    plain = with_outputs(space_of(pipe, output_knots=1), (2.0,), (-1.5,)).site_scales(sites)
    for knot in range(2):
        np.testing.assert_array_equal(knotted[:, knot], plain)


def test_strength_blends_every_knot(pipe):
    coefficients = with_outputs(space_of(pipe), (2.0, 5.0), (-1.0, -3.0))
    assert coefficients.with_strength(0.0).output_weights == (W, W, 1 - W, 1 - W)
    assert coefficients.with_strength(0.5).output_weights == (2.5, 4.0, -1.5, -2.5)


def test_a_calibration_is_saved_loaded_and_not_fused(pipe, tmp_path):
    before = sample(pipe)
    saved = made(pipe, with_outputs(space_of(pipe), (2.0, 5.0), (-1.0, -3.0)))
    applied = load(pipe, saved.save_pretrained(tmp_path / "made"))
    assert applied.calibration == saved
    assert not torch.allclose(sample(pipe), before, atol=1e-2)
    with pytest.raises(FuseError, match="2 knots"):
        applied.fuse()
    applied.unload()
    assert torch.equal(sample(pipe), before)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"output_knots": 3}, "differ in length"),
        ({"output_weights": (1.0,) * 3}, "differ in length"),
        ({"knots": 3, "scales": ({"a": 1.0},) * 3}, "3 knots and output weights 2"),
    ],
)
def test_contradictions_are_told(change, said):
    good = Coefficients(
        granularity="block",
        scales=({"a": 1.0},),
        output_weights=(W, W, 1 - W, 1 - W),
        start_weights=(W, 1 - W),
        output_knots=2,
    )
    assert not list(good.problems())
    assert any(said in problem for problem in good.model_copy(update=change).problems())


def test_knots_that_do_not_fit_are_refused(pipe):
    with pytest.raises(ConfigError, match="alike, or one of them to 1"):
        space_of(pipe, knots=3)
    with pytest.raises(ConfigError, match="space.output_weights to true"):
        space_of(pipe, search_output=False)


def test_constant_weights_start_a_search_with_knots_but_not_the_other_way(pipe):
    sites = find_sites(pipe.transformer)
    space, plain = space_of(pipe), space_of(pipe, output_knots=1)
    started = space.coefficients(warm_start(space, sites, with_outputs(plain, (2.0,), (-1.0,))))
    np.testing.assert_allclose(started.output_weights, (2.0, 2.0, -1.0, -1.0))
    with pytest.raises(ConfigError, match="with 2 knots, this search 2 with 1"):
        warm_start(plain, sites, with_outputs(space, (2.0, 4.0), (-1.0, -2.0)))


def test_steps_are_along_scale_and_guidance_and_how_they_change(pipe):
    space = space_of(pipe)
    basis = search_basis(space)
    outputs = np.flatnonzero(space.is_output)
    columns = basis[:, outputs].T + space.start
    scaled, tilted, guided, bent = [np.reshape(c[outputs], (2, 2)) for c in columns]
    start = np.array([[W], [1 - W]])
    assert np.ptp(scaled / start) == pytest.approx(0)
    np.testing.assert_allclose(tilted.mean(axis=1), start[:, 0])
    np.testing.assert_allclose(np.ptp(tilted / start, axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(guided.sum(axis=0), 1)
    assert np.ptp(guided, axis=1).max() == pytest.approx(0)
    np.testing.assert_allclose(bent.sum(axis=0), 1)
    np.testing.assert_allclose(bent.mean(axis=1), start[:, 0])
    assert np.linalg.matrix_rank(basis) == space.size
    # A step of a whole is as long as without knots.
    np.testing.assert_allclose(scaled - start, start / W * np.ones(2))
    np.testing.assert_allclose(abs(guided - start), np.sqrt(W))


def test_what_is_left_open_is_searched_under_guidance(pipe):
    def factors(guidance, **sections):
        capabilities = Capabilities.of(pipe, guidance)
        space = build_space(resolve(validate_config(sections), capabilities), capabilities)
        return space.output_knots, space.factors

    assert factors(W) == (2, ("shift",))
    assert factors(1.0) == (1, ())
    assert factors(W, space={"output_knots": 1, "shift": False}) == (1, ())
    assert factors(W, space={"output_weights": False}) == (1, ())
    assert factors(W, search={"method": "reference"}) == (1, ())
    assert factors(W, search={"method": "gradient"}) == (2, ())
    assert factors(W, space={"start": "skip-middle-block"}) == (1, ())
    assert factors(W, space={"start": "a/calibration"}) == (2, ("shift",))
    pipe.scheduler = None
    assert factors(W) == (2, ())


def test_a_preset_has_constant_output_weights():
    values = {
        "device": "cpu",
        "sampling": {"guidance_scale": W},
        "space": {"start": "autoguidance", "output_knots": 2},
    }
    with pytest.raises(ConfigError, match="space.output_knots to 1"):
        Session(validate_config(values))


@pytest.mark.parametrize("change", [{"members": 2}, {"knots": 2}, {"output_weights": False}])
def test_other_spaces_are_left_as_they_are(change):
    capabilities = Capabilities((), W, timesteps_known=True, shift_known=True)
    space = resolve(validate_config({"space": change}), capabilities).space
    assert (space.output_knots, space.shift) == (1, False)


@pytest.mark.slow
def test_a_guided_search_gives_an_artifact_that_is_evaluated(tmp_path):
    config = validate_config(
        {
            "device": "cpu",
            "sampling": {"num_inference_steps": 2, "guidance_scale": W},
            "space": {"granularity": "block"},
            "rewards": {"held_out": [], "objective": "jpeg-incompressibility"},
            "search": {
                "generations": 3,
                "validate_every": 3,
                "popsize": 8,
                "bucket_size": 2,
                "num_validation_prompts": 8,
            },
            "evaluation": {"num_prompts": 2, "images_per_prompt": 1, "num_samples": 1},
        }
    )
    assert Session(config).space.output_knots == 2
    summary = calibrate(config, name="knots", runs=tmp_path)
    kept = RunFolder.open(tmp_path / "knots").config["space"]
    assert (kept["output_knots"], kept["shift"]) == (2, True)
    assert "conditional/output@1" in summary.coefficients
    found = Calibration.from_pretrained(tmp_path / "knots" / "calibration").coefficients
    assert found.output_knots == 2
    assert len(found.output_weights) == 4
    space = config.space.model_copy(update={"start": str(tmp_path / "knots" / "calibration")})
    again = Session(config.model_copy(update={"space": space}))
    assert again.space.coefficients(again.start).output_weights == pytest.approx(
        found.output_weights
    )

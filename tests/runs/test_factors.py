"""Factors on embedded guidance and on the shift: searched, scored in batches, saved and applied."""

import json
import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from calibri.artifact.apply import load
from calibri.artifact.calibration import Calibration
from calibri.coefficients.space import SearchSpace
from calibri.config import validate_config
from calibri.errors import CalibrationError, FuseError, GuidanceError, UnsupportedModelError
from calibri.pipelines.loading import load_pipeline
from calibri.pipelines.sites.find import find_sites
from calibri.prompts.files import make_prompts
from calibri.results import Fidelity
from calibri.runs.session import Session
from calibri.sampling.sampler import Noise
from calibri.sampling.scales.scaler import Scaler
from calibri.scoring.backends.local import Local
from calibri.scoring.plain_json import decode
from calibri.scoring.units import make_unit
from tests.fakes import bench_of
from tests.tiny import calibration_of, flux_inputs, flux_pipeline, forward, tiny_flux, tiny_sd3

FLUX = tiny_flux()
TWO = Fidelity(num_inference_steps=2)


def ones(scaler, rows=1):
    return torch.ones(rows, 1, len(scaler.sites) + 1)


@pytest.fixture
def scaler():
    made = Scaler(FLUX)
    yield made
    made.remove()


def at_guidance(value, rows=3):
    return flux_inputs(rows) | {"guidance": torch.full((rows,), value)}


def test_a_factor_on_the_guidance_is_stock_at_that_guidance(scaler):
    stock = forward(FLUX, at_guidance(7.0))
    before = forward(FLUX, at_guidance(3.5))
    assert not torch.allclose(stock, before, atol=1e-4)
    scaler.set(ones(scaler), guidance=torch.tensor([2.0]))
    assert torch.equal(forward(FLUX, at_guidance(3.5)), stock)
    scaler.set(ones(scaler), guidance=torch.tensor([1.0]))
    assert torch.equal(forward(FLUX, at_guidance(3.5)), before)
    scaler.set(ones(scaler), guidance=torch.tensor([2.0]))
    scaler.remove()
    assert torch.equal(forward(FLUX, at_guidance(3.5)), before)


def test_factors_per_row_equal_one_row_at_a_time(scaler):
    factors = torch.tensor([0.5, 1.0, 2.0])
    given = at_guidance(3.5)
    scaler.set(ones(scaler, 3), guidance=factors)
    together = forward(FLUX, given)
    shared = {"img_ids", "txt_ids"}
    for row in range(3):
        scaler.set(ones(scaler), guidance=factors[row : row + 1])
        own = {n: v if n in shared else v[row : row + 1] for n, v in given.items()}
        torch.testing.assert_close(forward(FLUX, own), together[row : row + 1])
    # A batch of two branches holds every image twice.
    scaler.set(ones(scaler), guidance=factors)
    twice = {n: v if n in shared else torch.cat([v, v]) for n, v in given.items()}
    torch.testing.assert_close(forward(FLUX, twice), torch.cat([together, together]))
    with pytest.raises(GuidanceError, match="3 images.* 4 rows"):
        forward(FLUX, at_guidance(3.5, rows=4))


def test_members_of_an_ensemble_see_the_same_factor(scaler):
    stock = forward(FLUX, at_guidance(7.0))
    scales = torch.ones(3, 2, len(scaler.sites) + 1)
    scales[..., -1] = 0.5
    scaler.set(scales, (0, 0), torch.full((3,), 2.0))
    torch.testing.assert_close(forward(FLUX, at_guidance(3.5)), stock)


def test_a_model_or_a_call_without_guidance_is_refused(scaler):
    sd3 = Scaler(tiny_sd3())
    with pytest.raises(UnsupportedModelError, match=r"no guidance embedded.*output weights"):
        sd3.set(ones(sd3), guidance=torch.tensor([2.0]))
    sd3.set(ones(sd3), guidance=torch.tensor([1.0]))
    scaler.set(ones(scaler), guidance=torch.tensor([2.0]))
    with pytest.raises(GuidanceError, match="called without"):
        forward(FLUX, flux_inputs() | {"guidance": None})


def made(model, **factors):
    space = SearchSpace.build(find_sites(model), "block")
    found = space.coefficients(space.start).model_copy(update=factors)
    return calibration_of(model, found)


def test_a_calibration_of_the_guidance_is_applied_blended_and_not_fused():
    model = tiny_flux()
    before = forward(model, at_guidance(3.5))
    applied = load(model, made(model, guidance=2.0))
    assert torch.equal(forward(model, at_guidance(3.5)), forward(FLUX, at_guidance(7.0)))
    applied.set_strength(0.5)
    assert torch.equal(forward(model, at_guidance(2.0)), forward(FLUX, at_guidance(3.0)))
    with pytest.raises(FuseError, match="changes the guidance of the sampling"):
        applied.fuse()
    applied.unload()
    assert torch.equal(forward(model, at_guidance(3.5)), before)
    with pytest.raises(UnsupportedModelError, match="has no scheduler"):
        load(model, made(model, shift=2.0))
    load(model, made(model)).unload()  # nothing was left behind


@pytest.fixture(scope="module")
def shared_pipe():
    return load_pipeline("shapes", device="cpu")


@pytest.fixture
def pipe(shared_pipe):
    before = shared_pipe.scheduler
    yield shared_pipe
    shared_pipe.scheduler = before


def picture(pipe):
    return pipe(
        "a red circle",
        num_inference_steps=3,
        guidance_scale=1.0,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
    ).images


def stock_at(pipe, shift):
    before = pipe.scheduler
    pipe.scheduler = FlowMatchEulerDiscreteScheduler.from_config(before.config, shift=shift)
    image = picture(pipe)
    pipe.scheduler = before
    return image


def test_a_calibration_of_the_shift_is_stock_at_that_shift(pipe, tmp_path):
    before, scheduler, shift = picture(pipe), pipe.scheduler, pipe.scheduler.shift
    stock = {factor: stock_at(pipe, factor) for factor in (2.5, 1.75)}
    made(pipe.transformer, shift=2.5).save_pretrained(tmp_path / "made")
    applied = load(pipe, tmp_path / "made")
    assert torch.equal(picture(pipe), stock[2.5])
    applied.set_strength(0.5)
    assert torch.equal(picture(pipe), stock[1.75])
    with pytest.raises(FuseError, match="changes the shift of the sampling"):
        applied.fuse()
    applied.set_strength(0.0)
    assert scheduler.shift == shift
    applied.set_strength(1.0)
    applied.unload()
    assert pipe.scheduler is scheduler
    assert torch.equal(picture(pipe), before)


def test_a_calibration_of_the_guidance_is_refused_by_a_model_without(pipe):
    with pytest.raises(UnsupportedModelError, match="no guidance embedded"):
        load(pipe, made(pipe.transformer, guidance=2.0))
    load(pipe, made(pipe.transformer)).unload()


def test_candidates_of_several_shifts_in_one_unit_are_each_sampled_at_their_own(pipe):
    def mean(images, prompts):
        return images.double().mean(dim=(1, 2, 3))

    bench = bench_of(pipe, {"mean": mean}, sampling={"batch_size": 8})
    shifts = (1.0, 2.0, 2.0, 0.5)
    candidates = [made(pipe.transformer, shift=shift).coefficients for shift in shifts]
    noises = [Noise(prompt, 3) for prompt in make_prompts(["a red circle", "a blue square"])]
    rows = [(c, noise) for c in range(4) for noise in noises]
    unit = make_unit(candidates, rows, ("mean",), TWO)
    ((_, result),) = Local(bench).run([(0, unit)])
    found = decode(result["scores"]["mean"]).reshape(4, 2)
    bench.close()
    assert found[1].tolist() == found[2].tolist()
    stock = {shift: mean(bench.sampler.sample(noises, TWO, shift), []) for shift in set(shifts)}
    for row, shift in zip(found, shifts, strict=True):
        assert row.tolist() == stock[shift].tolist()
    assert len({tuple(row) for row in found.tolist()}) == 3


def config(**space):
    return validate_config(
        {
            "device": "cpu",
            "sampling": {"num_inference_steps": 2, "guidance_scale": 3.0},
            "rewards": {"held_out": []},
            "search": {"bucket_size": 2, "num_validation_prompts": 5},
            "evaluation": {"num_prompts": 2, "images_per_prompt": 1},
            "space": space,
        }
    )


def test_a_search_has_a_shift_when_asked_and_refuses_guidance_that_is_not_embedded():
    session = Session(config(shift=True))
    assert session.space.labels[-1] == "shift"
    vector = session.space.start
    vector[-1] = 2.0
    noises = session.noises("test", 0, session.prompts.validation)
    shifted = session.sample(session.space.coefficients(vector), noises)
    original = session.sample(session.space.coefficients(session.space.start), noises)
    assert torch.equal(original, session.bench.sampler.sample(noises))
    assert torch.equal(shifted, session.bench.sampler.sample(noises, shift=2.0))
    assert not torch.equal(shifted, original)
    session.bench.scaler.remove()
    with pytest.raises(UnsupportedModelError, match=r"space.output_weights"):
        Session(config(guidance=True))


def test_factors_survive_a_folder_and_damage_is_told(tmp_path):
    calibration = made(FLUX, guidance=1.25, shift=0.8)
    folder = calibration.save_pretrained(tmp_path / "made")
    assert Calibration.from_pretrained(folder) == calibration
    card = (folder / "README.md").read_text()
    assert "embedded guidance | 1.25 |" in card
    assert "shift | 0.8 |" in card
    document = json.loads((folder / "calibri.json").read_text())
    document["coefficients"]["shift"] = 0.9
    (folder / "calibri.json").write_text(json.dumps(document))
    with pytest.raises(CalibrationError, match="disagree"):
        Calibration.from_pretrained(folder)


def flux_images(pipe, guidance_scale):
    generator = torch.Generator().manual_seed(0)
    return pipe(
        prompt_embeds=torch.randn(2, 5, 16, generator=generator),
        pooled_prompt_embeds=torch.randn(2, 12, generator=generator),
        height=64,
        width=64,
        num_inference_steps=3,
        guidance_scale=guidance_scale,
        generator=generator,
        output_type="latent",
    ).images


@pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")
def test_both_factors_on_a_flux_pipeline_that_shifts_by_image_size():
    pipe = flux_pipeline()
    # The pipeline's shift is exp(mu), and mu grows linearly from one of these to the other.
    sizes = {"base_shift": 0.5, "max_shift": 1.15}
    more = {name: mu + math.log(1.5) for name, mu in sizes.items()}
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, **more)
    stock = flux_images(pipe, 7.0)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, **sizes)
    before = flux_images(pipe, 3.5)
    applied = load(pipe, made(pipe.transformer, guidance=2.0, shift=1.5))
    torch.testing.assert_close(flux_images(pipe, 3.5), stock, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(before, stock, atol=1e-3)
    applied.unload()
    assert torch.equal(flux_images(pipe, 3.5), before)

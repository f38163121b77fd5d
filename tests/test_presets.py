import pytest
import torch

from calibri.applied import load
from calibri.artifact import Calibration, Sampling
from calibri.coefficients import GRANULARITIES, SearchSpace
from calibri.errors import ConfigError
from calibri.pipelines import load_pipeline
from calibri.presets import PRESETS, preset, skip_layer_guidance
from calibri.sites import find_sites
from tests.tiny import SD35_MEDIUM, tiny_flux


@pytest.fixture
def pipe():
    return load_pipeline("shapes", device="cpu")


def sample(pipe, guidance_scale, **kwargs):
    return pipe(
        ["a red circle", "a blue square above a green cross"],
        num_inference_steps=3,
        guidance_scale=guidance_scale,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
        **kwargs,
    ).images


def calibration(coefficients, guidance_scale):
    return Calibration(
        calibri_version="0",
        transformer_class="SD3Transformer2DModel",
        base_model="shapes",
        coefficients=coefficients,
        sampling=Sampling(num_inference_steps=3, guidance_scale=guidance_scale, dtype="float32"),
        rewards={"none": "a preset"},
        objective="none",
        provenance={},
    )


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize(("blocks", "scale"), [([2], 2.8), ([1, 3], 1.0)])
def test_images_are_those_of_diffusers_skip_layer_guidance(pipe, blocks, scale, granularity):
    expected = sample(
        pipe,
        3.0,
        skip_guidance_layers=blocks,
        skip_layer_guidance_scale=scale,
        skip_layer_guidance_start=-1.0,  # at every step
        skip_layer_guidance_stop=2.0,
    )
    plain = sample(pipe, 3.0)
    coefficients = skip_layer_guidance(
        pipe.transformer, blocks, scale=scale, guidance_scale=3.0, granularity=granularity
    )
    applied = load(pipe, calibration(coefficients, 3.0))
    ours = sample(pipe, 3.0)
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(plain, expected, atol=1e-2)
    applied.unload()
    assert torch.equal(sample(pipe, 3.0), plain)


def test_without_classifier_free_guidance_the_weights_are_one_plus_g_and_minus_g(pipe):
    transformer = pipe.transformer
    inputs = {}

    def keep(module, args, kwargs):
        inputs.update(kwargs)

    handle = transformer.register_forward_pre_hook(keep, with_kwargs=True)
    sample(pipe, 1.0)
    handle.remove()
    with torch.no_grad():
        full = transformer(**inputs)[0]
        weaker = transformer(**inputs, skip_layers=[2])[0]
    load(pipe, calibration(skip_layer_guidance(transformer, [2], scale=0.8), 1.0))
    with torch.no_grad():
        ours = transformer(**inputs)[0]
    torch.testing.assert_close(ours, 1.8 * full - 0.8 * weaker, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(ours, full, atol=1e-2)


@pytest.mark.parametrize(("guidance_scale", "branches"), [(1.0, "shared"), (4.0, "separate")])
def test_coefficients_lie_in_the_search_space_of_an_ensemble(guidance_scale, branches):
    model = tiny_flux()
    found = preset("skip-middle-block", model, guidance_scale=guidance_scale, granularity="gate")
    space = SearchSpace.build(
        find_sites(model), "gate", guidance_scale=guidance_scale, branches=branches, members=2
    )
    assert not list(found.problems())
    assert space.coefficients(space.vector(found)) == found
    assert found.scales[-1]["single_transformer_blocks.0.proj_out"] == 0.0
    assert sum(value == 0 for member in found.scales for value in member.values()) == 1


def test_the_preset_of_sd35_medium_skips_the_recommended_blocks():
    from diffusers import SD3Transformer2DModel

    with torch.device("meta"):
        model = SD3Transformer2DModel(**SD35_MEDIUM)
    found = preset("sd3.5-medium-skip-layers", model, guidance_scale=7.0)
    skipped = [name for name, value in found.scales[-1].items() if value == 0]
    assert skipped == [f"transformer_blocks.{i}" for i in (7, 8, 9)]
    assert found.output_weights == (9.8, -6.0, -2.8)


def test_what_does_not_fit_is_refused():
    model = tiny_flux()
    with pytest.raises(ConfigError, match="no preset 'x'.*skip-middle-block"):
        preset("x", model)
    with pytest.raises(ConfigError, match="for SD3Transformer2DModel"):
        preset("sd3.5-medium-skip-layers", model)
    with pytest.raises(ConfigError, match="has 4 blocks.*no block 4"):
        skip_layer_guidance(model, [1, 4], scale=1.0)
    assert all(found.description for found in PRESETS.values())

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers.guiders import AutoGuidance, SkipLayerGuidance
from diffusers.hooks import LayerSkipConfig
from hypothesis import given, settings
from hypothesis import strategies as st

import calibri
from calibri.artifact.apply import load
from calibri.coefficients.presets import PRESETS, Window, autoguidance, preset, skip_layer_guidance
from calibri.coefficients.space import SearchSpace
from calibri.config import GRANULARITIES, validate_config
from calibri.errors import ConfigError, UnsupportedModelError
from calibri.pipelines.families.timesteps import Schedule
from calibri.pipelines.sites.find import find_sites
from calibri.runs.session import Session
from tests.needs import is_older
from tests.pipelines.zoo import ZOO
from tests.sampling.two_transformers import wan_2_2
from tests.tiny import SD35_MEDIUM, forward, has_hooks, tiny_flux


def sample(pipe, guidance_scale, steps=3, **kwargs):
    return pipe(
        ["a red circle", "a blue square above a green cross"],
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
        **kwargs,
    ).images


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
    applied = load(pipe, coefficients)
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
    load(pipe, skip_layer_guidance(transformer, [2], scale=0.8))
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
    with pytest.raises(ConfigError, match="there is none"):
        autoguidance(model, [1], guidance_scale=1.0)
    with pytest.raises(ConfigError, match="Leave out scale"):
        preset("autoguidance", model, guidance_scale=3.0, scale=1.0)


@pytest.mark.parametrize(("start", "stop"), [(0.01, 0.2), (0.15, 0.5), (0.0, 1.0), (0.5, 0.5)])
def test_a_window_gives_the_images_of_diffusers_start_and_stop(pipe, start, stop):
    steps = 7
    at = dict(skip_guidance_layers=[2], skip_layer_guidance_scale=2.8)
    limits = dict(skip_layer_guidance_start=start, skip_layer_guidance_stop=stop)
    expected = sample(pipe, 3.0, steps, **at, **limits)
    window = Window(pipe.scheduler.timesteps.tolist(), start, stop)
    options = dict(blocks=(2,), guidance_scale=3.0, window=window)
    applied = calibri.load(pipe, calibri.preset("skip-layer-guidance", pipe, **options))
    assert applied.coefficients.knots > 1
    torch.testing.assert_close(sample(pipe, 3.0, steps), expected, rtol=1e-3, atol=2e-4)
    applied.unload()
    always = sample(pipe, 3.0, steps, **at, skip_layer_guidance_start=-1.0)
    assert not torch.allclose(expected, always, atol=1e-2)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_knots_of_a_window_are_whole_at_every_step(data):
    steps = data.draw(st.integers(1, 40))
    shift = data.draw(st.floats(0.5, 6.0))
    sigmas = np.linspace(1.0, 1.0 / steps, steps)
    timesteps = 1000 * shift * sigmas / (1 + (shift - 1) * sigmas)
    start, stop = sorted(data.draw(st.tuples(st.floats(0, 1), st.floats(0, 1))))
    knots = Window(timesteps.tolist(), start, stop).knots()
    values = np.interp(timesteps, np.linspace(0, 1000, len(knots)), np.array(knots, float))
    inside = [start * steps < i < stop * steps for i in range(steps)]
    np.testing.assert_allclose(values, np.array(inside, float), atol=1e-9)


def test_a_window_follows_a_scheduler_that_counts_from_noise_to_image():
    timesteps, window = [0.0, 250.0, 500.0, 750.0], dict(start=0.1, stop=0.6)
    backwards = Window(timesteps, **window).knots(Schedule.inverted())
    assert backwards == Window([1000 - t for t in timesteps], **window).knots()


def test_timesteps_of_another_scheduler_are_refused():
    with pytest.raises(ConfigError, match="from 1000, the noise, to 0; got 80000"):
        Window([80000.0, 400.0], 0.0, 0.5).knots()


def test_timesteps_that_cannot_be_told_apart_are_refused():
    with pytest.raises(ConfigError, match="tell these 3 timesteps apart"):
        Window([500.0, 500.0, 500.0], 0.0, 0.5).knots()


def test_a_window_on_a_model_whose_timesteps_are_not_known_leaves_no_hook():
    model = next(s for s in ZOO if s.model_class == "WanTransformer3DModel").model()
    window = Window([1000.0, 500.0, 1.0], 0.0, 0.5)
    found = preset("skip-layer-guidance", model, window=window)
    model.__class__ = type("Other", (type(model),), {})
    with pytest.raises(UnsupportedModelError, match="sampling steps"):
        preset("skip-layer-guidance", model, window=window)
    with pytest.raises(UnsupportedModelError, match="sampling steps"):
        load(model, found)
    assert not has_hooks(model)


# Diffusers' guiders skip whole blocks right where a block returns its streams in the order in which
# it takes them; for others the pipeline's own ``skip_guidance_layers`` is the measure, above.
MODELS = {
    name: next(s for s in ZOO if s.model_class == name)
    for name in (
        "LTXVideoTransformer3DModel",
        "WanTransformer3DModel",
        "HunyuanVideoTransformer3DModel",
    )
}
every_model = pytest.mark.parametrize("kind", MODELS)


def case(kind):
    """A model, what it is given, and the embeddings of a negative prompt."""
    specimen = MODELS[kind]
    negative = specimen.draw(2, seed=9)["encoder_hidden_states"]
    return specimen.model(), specimen.draw(2), negative


def stack_of(model):
    return find_sites(model)[0].block.rpartition(".")[0]


def guided_by_diffusers(guider, model, given, negative, step=2, steps=10):
    """One prediction as diffusers' own guider makes it, with its hooks on the model."""
    guider.set_state(step=step, num_inference_steps=steps, timestep=torch.tensor(500))
    name = "encoder_hidden_states"
    predictions = {}
    condition: tuple = ({name: (given[name], negative)},)
    if is_older("diffusers", "0.36"):  # its guiders are told which fields of a block to pair
        block = SimpleNamespace(prompt=given[name], negative=negative)
        condition = (block, {name: ("prompt", "negative")})
    for batch in guider.prepare_inputs(*condition):
        guider.prepare_models(model)
        prediction = forward(model, given | {name: getattr(batch, name)})
        guider.cleanup_models(model)
        predictions[getattr(batch, guider._identifier_key)] = prediction
    combined = guider.forward(**predictions)
    return getattr(combined, "pred", combined[0])  # before 0.36 a pair without names


def guided_by_us(coefficients, model, given, negative):
    """The same through the pipeline's formula, u + w (c - u), around the scaled model."""
    applied = load(model, coefficients)
    with applied.branch("conditional"):
        prompt = forward(model, given)
    with applied.branch("unconditional"):
        other = forward(model, given | {"encoder_hidden_states": negative})
    applied.unload()
    return other + coefficients.start_weights[0] * (prompt - other)


@every_model
@pytest.mark.parametrize("name", ["skip-layer-guidance", "spatiotemporal-guidance"])
def test_predictions_are_those_of_diffusers_skip_layer_guider(kind, name):
    model, given, negative = case(kind)
    guider = SkipLayerGuidance(
        guidance_scale=3.5,
        skip_layer_guidance_scale=PRESETS[name].scale,
        skip_layer_guidance_start=0.0,
        skip_layer_guidance_stop=1.0,
        skip_layer_config=LayerSkipConfig(indices=[1], fqn=stack_of(model)),
    )
    expected = guided_by_diffusers(guider, model, given, negative)
    coefficients = calibri.preset(name, model, blocks=(1,), guidance_scale=3.5)
    ours = guided_by_us(coefficients, model, given, negative)
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4)
    plain = preset(name, model, blocks=(1,), guidance_scale=3.5, scale=0.0)
    assert not torch.allclose(guided_by_us(plain, model, given, negative), expected, atol=1e-2)


@every_model
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_predictions_are_those_of_diffusers_auto_guider(kind, granularity):
    model, given, negative = case(kind)
    skip = LayerSkipConfig(indices=[0], fqn=stack_of(model))
    guider = AutoGuidance(3.5, auto_guidance_config=skip)
    expected = guided_by_diffusers(guider, model, given, negative)
    options = dict(blocks=(0,), guidance_scale=3.5, granularity=granularity)
    coefficients = calibri.preset("autoguidance", model, **options)
    ours = guided_by_us(coefficients, model, given, negative)
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4)


def test_a_search_starts_from_autoguidance_where_it_has_scales_for_each_branch():
    space = {"granularity": "block", "branches": "separate", "start": "autoguidance"}
    settings = {"num_inference_steps": 2, "guidance_scale": 3.0}
    prompts = {"num_prompts": 2, "images_per_prompt": 1, "num_samples": 1}
    given = {"device": "cpu", "sampling": settings, "evaluation": prompts}
    session = Session(validate_config(given | {"space": space}))
    found = session.space.coefficients(session.start)
    assert found == preset("autoguidance", session.bench.pipe, guidance_scale=3.0)
    assert min(found.scales[1].values()) == 0.0
    with pytest.raises(ConfigError, match="space.branches to 'separate'"):
        Session(validate_config(given | {"space": space | {"branches": "shared"}}))


def test_blocks_are_left_out_of_both_transformers_of_a_pipeline():
    found = preset("skip-layer-guidance", wan_2_2(), blocks=(1,))
    skipped = [name for name, value in found.scales[-1].items() if value == 0]
    assert skipped == ["blocks.1", "transformer_2.blocks.1"]

"""Modular pipelines under a calibration: what their guiders do stays what it is."""

import types

import pytest
import torch
from diffusers import guiders

import calibri
from calibri.coefficients.space import SearchSpace
from calibri.errors import GuidanceError
from calibri.pipelines.sites.find import find_sites
from calibri.sampling.branches import BranchResolver
from calibri.sampling.guiders import guiders_of
from calibri.sampling.scales.scaler import Scaler
from tests.sampling.modular import CASES

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
guided = [case for case in CASES if case.guided]
# Attention of its own to itself, whose scores a guider knows how to leave out.
layered = [case for case in guided if case.id in ("StableDiffusion3", "Wan", "QwenImage", "LTX")]

# Those of the prompt and of the negative prompt, and those that need blocks of a model.
PLAIN = (
    "AdaptiveProjectedGuidance",
    "AdaptiveProjectedMixGuidance",
    "ClassifierFreeGuidance",
    "ClassifierFreeZeroStarGuidance",
    "MagnitudeAwareGuidance",
    "TangentialClassifierFreeGuidance",
)
# What they leave out of the second block, from the second step on.
SECOND = dict(fqn="auto", indices=[1])
OF_LAYERS = {
    "AutoGuidance": dict(auto_guidance_config=SECOND, dropout=1.0),
    "PerturbedAttentionGuidance": dict(
        perturbed_guidance_config=SECOND
        | dict(skip_attention=False, skip_ff=False, skip_attention_scores=True),
        perturbed_guidance_start=0.0,
        perturbed_guidance_stop=1.0,
    ),
    "SkipLayerGuidance": dict(
        skip_layer_config=SECOND, skip_layer_guidance_start=0.0, skip_layer_guidance_stop=1.0
    ),
    "SmoothedEnergyGuidance": dict(
        seg_guidance_config=SECOND, seg_guidance_start=0.0, seg_guidance_stop=1.0
    ),
}
# LTX2Guidance is of sound and pictures at once; FrequencyDecoupledGuidance needs kornia.
ELSEWHERE = {"BaseGuidance", "LTX2Guidance", "FrequencyDecoupledGuidance"}


@pytest.fixture(autouse=True)
def no_ftfy(monkeypatch):
    """Wan's blocks use a library for broken letters whether it is installed or not."""
    module = pytest.importorskip("diffusers.modular_pipelines.wan.encoders")
    monkeypatch.setattr(module, "ftfy", types.SimpleNamespace(fix_text=str), raising=False)


def make(name):
    return getattr(guiders, name)(guidance_scale=3.0, **OF_LAYERS.get(name, {}))


def watched(pipe):
    """A scaler of a pipeline, and the branches of each forward."""
    resolver, seen = BranchResolver(pipe), []

    def resolve(arguments):
        seen.append(resolver(arguments))
        return seen[-1]

    return Scaler(pipe.transformer, resolve), seen


def two_sets(scaler):
    return torch.ones(1, 2, len(scaler.sites) + 1)


@every_case
def test_a_calibration_acts_and_comes_off(case):
    pipe = case.build()
    expected = case.sample(pipe)
    space = SearchSpace.build(find_sites(pipe.transformer), "block", guidance_scale=3.0)
    before = set(vars(pipe)), set(vars(pipe.transformer))
    loaded = calibri.load(pipe, space.coefficients(space.start))
    assert torch.equal(case.sample(pipe), expected)
    loaded.unload()
    loaded = calibri.load(pipe, space.coefficients(space.start * 1.2))
    assert not torch.allclose(case.sample(pipe), expected, rtol=1e-3, atol=1e-3)
    loaded.unload()
    assert torch.equal(case.sample(pipe), expected)
    assert (set(vars(pipe)), set(vars(pipe.transformer))) == before


# Errors of diffusers without a calibration.
OWN_FAULTS = {
    # A norm of three axes.
    *(("MagnitudeAwareGuidance", name) for name in ("StableDiffusion3", "ZImage", "Wan", "Anima")),
    # 0 / 0 of a first step of zeros.
    ("ClassifierFreeZeroStarGuidance", "QwenImage"),
    # Attention that the guider does not know, or whose values have another shape.
    *(("PerturbedAttentionGuidance", name) for name in ("StableDiffusion3", "LTX", "Wan")),
    # A skipped block returns its streams in the wrong order.
    *(
        (guider, name)
        for guider in ("AutoGuidance", "SkipLayerGuidance")
        for name in ("StableDiffusion3", "QwenImage")
    ),
}
plain = [(n, c) for n in PLAIN for c in guided if (n, c.id) not in OWN_FAULTS]
of_layers = [(n, c) for n in OF_LAYERS for c in layered if (n, c.id) not in OWN_FAULTS]
STEPS = 3


def every(pairs):
    return pytest.mark.parametrize(("name", "case"), pairs, ids=[f"{n}-{c.id}" for n, c in pairs])


def test_no_guider_is_forgotten():
    known = {name for name in dir(guiders) if name.endswith("Guidance")}
    assert known == {*PLAIN, *OF_LAYERS, *ELSEWHERE}


@every(plain + of_layers)
def test_ones_are_the_guider_without_a_calibration(name, case):
    pipe = case.build(guider=make(name))
    expected = case.sample(pipe)
    scaler, seen = watched(pipe)
    scaler.set(two_sets(scaler))
    pipe.update_components(guider=make(name))  # averages of some go on from call to call
    assert torch.equal(case.sample(pipe), expected)
    assert seen[:2] == [(0,), (1,)]
    assert seen.count((1,)) == STEPS
    assert (seen.count((0,)) > STEPS) == (name in OF_LAYERS and name != "AutoGuidance")


@every(plain + of_layers)
@pytest.mark.parametrize("branch", [0, 1])
def test_a_scale_of_one_branch_reaches_its_predictions_only(name, case, branch):
    pipe = case.build(guider=make(name))
    scaler, seen = watched(pipe)
    scales = two_sets(scaler)
    scaler.set(scales)
    before = predictions(case, pipe)
    scales[:, branch, -1] = 0.5
    scaler.set(scales)
    after = predictions(case, pipe)
    assert len(before) == len(after) == len(seen) // 2
    for layout, one, other in zip(seen, before, after, strict=False):
        assert torch.allclose(one, other, atol=1e-6) == (layout != (branch,))


def predictions(case, pipe):
    """What the transformer returned, call by call, each time of the same latents."""
    outputs = []
    keep = pipe.transformer.register_forward_hook(lambda m, a, out: outputs.append(out[0]))
    step = pipe.scheduler.step
    pipe.scheduler.step = lambda noise, t, sample, *args, **kwargs: (sample,)
    case.sample(pipe)
    keep.remove()
    pipe.scheduler.step = step
    return [torch.stack(list(output)) for output in outputs]


@every(of_layers)
def test_hooks_of_a_guider_and_of_a_calibration_can_be_set_in_any_order(name, case):
    first, second = case.build(guider=make(name)), case.build(guider=make(name))
    case.sample(first)  # sets the guider's hooks and takes them off
    results = []
    for pipe in (first, second):
        scaler, _ = watched(pipe)
        scales = two_sets(scaler)
        scales[:, 0, :-1] = torch.linspace(0.5, 1.5, len(scaler.sites))
        scaler.set(scales)
        pipe.update_components(guider=make(name))
        results.append([case.sample(pipe), case.sample(pipe)])
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@every([pair for pair in of_layers if pair[0] == "SkipLayerGuidance"])
def test_a_skipped_block_is_one_whose_scales_are_zero(name, case):
    """The guider's hook and ours on the same block: what is left out has nothing to scale."""
    pipe = case.build(guider=make(name))
    scaler, _ = watched(pipe)
    scales = two_sets(scaler)
    scaler.set(scales)
    skipped = predictions(case, pipe)[4]  # two of the first step, then the third of the second
    block = next(site.block for site in scaler.sites if site.block.endswith(".1"))
    inside = [site.block == block for site in scaler.sites]
    scales[:, :, :-1][..., inside] = 0.0
    scaler.set(scales)
    # The pass of the prompt in the same step.
    torch.testing.assert_close(predictions(case, pipe)[2], skipped, rtol=1e-5, atol=1e-6)


def test_a_guider_that_takes_the_place_of_another_is_followed_and_given_back():
    case = guided[0]
    pipe = case.build()
    first, second = guiders_of(pipe)[0], make("SkipLayerGuidance")
    before = dict(vars(first)).keys(), dict(vars(second)).keys()
    resolver = BranchResolver(pipe)
    pipe.update_components(guider=second)
    assert vars(first).keys() == before[0]
    case.sample(pipe, num_inference_steps=1)
    resolver.remove()
    assert not {"prepare_inputs", "prepare_models", "cleanup_models"} & vars(second).keys()


def test_a_forward_outside_of_a_guider_is_refused_not_guessed():
    pipe = guided[0].build()
    resolver = BranchResolver(pipe)
    with pytest.raises(GuidanceError, match="outside of the predictions"):
        resolver({})
    with resolver.branch("unconditional"):
        assert resolver({}) == (1,)


def test_without_a_guider_every_forward_is_of_the_prompt():
    pipe = next(case for case in CASES if not case.guided).build()
    assert BranchResolver(pipe)({}) == (0,)

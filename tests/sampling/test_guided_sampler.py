"""The sampler hands prompt embeddings to real pipelines by name."""

import pytest
import torch

from calibri.artifact.generate import generate
from calibri.coefficients.coefficients import Coefficients
from calibri.config import SamplingConfig
from calibri.errors import ConfigError
from calibri.prompts.files import make_prompts
from calibri.sampling.branches import BranchResolver
from calibri.sampling.sampler import Noise, Sampler
from calibri.sampling.scales.scaler import Scaler
from tests.needs import is_older
from tests.sampling.pipelines import CASES, Decoder
from tests.tiny import calibration_of

PROMPTS = make_prompts(["a red circle", "two blue squares here"])
NOISES = [Noise(prompt, 10 + i) for i, prompt in enumerate(PROMPTS)]
BY_NAME = {case.id: case for case in CASES}

pytestmark = pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")
image_cases = pytest.mark.parametrize("name", ["Flux", "QwenImage", "ZImage", "Lumina2", "Chroma"])


def sampler(name, scale):
    case = BY_NAME[name]
    options = {case.guidance: scale}
    size = dict(height=case.call["height"], width=case.call["width"])
    config = SamplingConfig(num_inference_steps=2, negative_prompt="ugly", **size, **options)
    return Sampler(case.build(vae=Decoder()), config)


def plain(sampler, noise, case, scale):
    """One image of the stock pipeline, called with words."""
    config = sampler.config
    options = {"guidance_scale": 1.0} if case.name == "FluxPipeline" else {}
    image = sampler.pipe(
        noise.prompt.text,
        negative_prompt=config.negative_prompt if scale > 1 else None,
        height=config.height,
        width=config.width,
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(noise.seed),
        output_type="pt",
        **options | {case.guidance: scale},
    ).images[0]
    return (image * 255).round()


@image_cases
@pytest.mark.parametrize("guided", [True, False])
def test_a_batch_of_prompts_gives_the_images_of_plain_calls(name, guided):
    if name == "QwenImage" and is_older("diffusers", "0.37"):
        pytest.skip("diffusers before 0.37 lets Qwen-Image see the padding of shorter prompts")
    scale = 3.0 if guided else 1.0 - BY_NAME[name].offset
    ours = sampler(name, scale)
    assert ours.guided == guided
    for noise, image in zip(NOISES, ours.sample(NOISES), strict=True):
        assert image.float().std() > 1
        # One grey level: rounding of another batch size.
        assert (plain(ours, noise, BY_NAME[name], scale) - image).abs().max() <= 1


@image_cases
def test_the_branches_are_known_from_the_samplers_embeddings(name):
    ours = sampler(name, 3.0)
    expected = ours.sample(NOISES)
    resolver = BranchResolver(ours.pipe)
    ours.before_call = resolver.expect
    scaler = Scaler(ours.pipe.transformer, resolver)
    scales = torch.ones(2, 2, len(scaler.sites) + 1)
    scaler.set(scales)
    assert torch.equal(ours.sample(NOISES), expected)
    scales[1, 0] = 0.5
    scaler.set(scales)
    changed = ours.sample(NOISES)
    # The second image alone has another set of scales.
    assert torch.equal(changed[0], expected[0])
    assert not torch.equal(changed[1], expected[1])


@pytest.mark.parametrize(
    ("name", "scale", "weight"),
    [("Flux", 3.0, 3.0), ("ZImage", 3.0, 4.0), ("ZImage", 0.0, 1.0), ("Chroma", 0.5, 1.0)],
)
def test_the_weight_of_guidance_follows_the_formula_of_the_pipeline(name, scale, weight):
    assert sampler(name, scale).cfg_scale == weight


def test_guidance_that_a_pipeline_would_ignore_is_refused():
    case = BY_NAME["QwenImage"]
    with pytest.raises(ConfigError, match="true_cfg_scale"):
        Sampler(case.build(), SamplingConfig(guidance_scale=4.0))


def test_images_of_a_calibration_are_made_with_its_true_cfg_scale():
    ours = sampler("Flux", 3.0)
    sites = Scaler(ours.pipe.transformer).sites
    coefficients = Coefficients(
        granularity="gate",
        scales=({site.name: 1.0 for site in sites},),
        output_weights=(3.0, -2.0),
        start_weights=(3.0, -2.0),
    )
    settings = dict(num_inference_steps=2, guidance_scale=3.5, true_cfg_scale=3.0)
    calibration = calibration_of(
        ours.pipe.transformer, coefficients, height=16, width=16, **settings
    )
    calls = []
    ours.pipe.transformer.register_forward_pre_hook(lambda module, args: calls.append(1))
    generate(ours.pipe, ["a red circle"], calibration=calibration)
    assert len(calls) == 2 * 2

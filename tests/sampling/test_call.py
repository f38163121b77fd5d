"""The guidance that a pipeline is called with does something, or is refused in words."""

import diffusers
import pytest
import torch

from calibri.artifact.calibration import Calibration, Sampling
from calibri.artifact.generate import generate
from calibri.coefficients.coefficients import Coefficients
from calibri.config import SamplingConfig, validate_config
from calibri.errors import ConfigError
from calibri.pipelines import networks_of, sites_of
from calibri.prompts.files import make_prompts
from calibri.runs.session import Session
from calibri.sampling.call import GivenSettings, PipelineCall
from calibri.sampling.sampler import Noise, Sampler
from tests.needs import of_diffusers
from tests.pipelines.zoo import ZOO
from tests.sampling.pipelines import CASES, Decoder, TextEncoder, Tokenizer
from tests.sampling.transformer_calls import differing, sent
from tests.sampling.two_transformers import ideogram_4

PROMPT = make_prompts(["a red circle"])[0]
BY_NAME = {case.id: case for case in CASES}

pytestmark = [
    pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

IGNORED = [
    ("QwenImage", "guidance_scale", "no guidance embedded. Set true_cfg_scale"),
    ("StableDiffusion3", "true_cfg_scale", "takes no such argument. Set guidance_scale"),
    ("Chroma", "true_cfg_scale", "takes no such argument. Set guidance_scale"),
    ("PixArtSigma", "true_cfg_scale", "takes no such argument. Set guidance_scale"),
    ("Latte", "true_cfg_scale", "takes no such argument. Set guidance_scale"),
]


@pytest.mark.parametrize(("name", "argument", "says"), IGNORED)
def test_guidance_that_a_pipeline_would_ignore_is_refused(name, argument, says):
    pipe = BY_NAME[name].build()
    with pytest.raises(ConfigError, match=f"{argument} is 4.0, .* {says}"):
        Sampler(pipe, SamplingConfig(**{argument: 4.0}))
    calls = []
    pipe.transformer.register_forward_pre_hook(lambda *_: calls.append(1))
    with pytest.raises(ConfigError, match=f"{argument} is 4.0, .* {says}"):
        generate(pipe, ["a red circle"], **{argument: 4.0})
    assert not calls


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_every_pipeline_takes_one_kind_of_classifier_free_guidance(case):
    pipe = case.build()
    assert PipelineCall(pipe, GivenSettings(**{case.guidance: 3.0})).guided
    other = {"guidance_scale": "true_cfg_scale", "true_cfg_scale": "guidance_scale"}[case.guidance]
    try:
        call = PipelineCall(pipe, GivenSettings(**{other: 3.0}))
    except ConfigError:
        return
    # Of these both mean something: guidance is an input of the model.
    assert case.id in ("Flux", "HunyuanVideo")
    assert not call.guided


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
@pytest.mark.parametrize("negative", ["unguided", None, "ugly, blurred"])
def test_generate_and_calibrate_build_one_call(case, negative):
    guided = negative != "unguided"
    text = negative if guided else None
    frames = [case.call[name] for name in ("num_frames", "video_length") if name in case.call]
    settings = dict(
        num_inference_steps=3,
        negative_prompt=text,
        height=case.call["height"],
        width=case.call["width"],
        num_frames=frames[0] if frames else None,
        guidance_scale=1.0,
        true_cfg_scale=1.0,
    ) | {case.guidance: 3.0 if guided else 1.0 - case.offset}
    calls = len(case.rows) if guided else 1
    sampler = Sampler(case.build(), SamplingConfig(**settings))
    ours = sent(sampler.pipe, calls, lambda: sampler.sample([Noise(PROMPT, 5)]))
    pipe = case.build()
    searched = calibration(pipe, settings | {"negative_prompt": sampler.negative_prompt or ""})
    theirs = sent(pipe, calls, lambda: generate(pipe, PROMPT.text, calibration=searched, seed=5))
    assert differing(ours, theirs) == []


def calibration(pipe, settings):
    """One that changes nothing, searched with these settings."""
    sites = sites_of(networks_of(pipe))
    return Calibration(
        calibri_version="0.1.0",
        transformer_class=type(pipe.transformer).__name__,
        base_model="tiny",
        coefficients=Coefficients(
            granularity="gate",
            scales=({site.name: 1.0 for site in sites},),
            output_weights=(1.0,),
            start_weights=(1.0,),
        ),
        sampling=Sampling(**settings, dtype="float32"),
        rewards={"shapes": "v1"},
        objective="shapes",
        provenance={},
    )


def test_guidance_reaches_a_pipeline_that_has_a_schedule_of_it():
    pipe = ideogram_4()
    size = dict(height=64, width=64, guidance_scale=2.0)
    searched = calibration(pipe, dict(num_inference_steps=2, **size))
    low, high = (
        generate(pipe, "a red circle", calibration=searched, guidance_scale=scale)[0]
        for scale in (None, 6.0)
    )
    assert low.tobytes() != high.tobytes()


class Layers(TextEncoder):
    """Has as many hidden states as Qwen3, whose 9th, 18th and 27th the pipeline takes."""

    def forward(self, input_ids, *args, **options):
        out = super().forward(input_ids)
        out.hidden_states = out.hidden_states[:1] * 28
        return out


class NormalisedDecoder(Decoder):
    def __init__(self):
        super().__init__()
        self.bn = torch.nn.BatchNorm2d(4)
        self.config.batch_norm_eps = 0.0


def klein(is_distilled):
    specimen = next(s for s in ZOO if s.model_class == "Flux2Transformer2DModel")
    config = specimen.config | dict(joint_attention_dim=48, guidance_embeds=False)
    pipe = of_diffusers("Flux2KleinPipeline")(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=NormalisedDecoder(),
        text_encoder=Layers(),
        tokenizer=Tokenizer(),
        transformer=type(specimen.model())(**config),
        is_distilled=is_distilled,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


SMALL = dict(height=32, width=32, num_inference_steps=2)


def test_guidance_that_only_an_effect_shows_is_tried_before_anything_is_sampled():
    distilled, guided = klein(True), klein(False)
    settings = SamplingConfig(guidance_scale=4.0, **SMALL)
    Sampler(guided, settings).check_effect()
    with pytest.raises(ConfigError, match="guidance_scale is 4.0, which changes nothing"):
        Sampler(distilled, settings).check_effect()
    with pytest.raises(ConfigError, match="guidance_scale is 4.0, which changes nothing"):
        generate(distilled, ["a red circle"], guidance_scale=4.0, num_inference_steps=2)
    Sampler(distilled, SamplingConfig(**SMALL)).check_effect()


def test_a_run_refuses_guidance_that_does_nothing_before_it_scores_anything():
    config = validate_config(
        {"sampling": SMALL | {"guidance_scale": 4.0}, "rewards": {"held_out": []}}
    )
    Session(config, pipe=klein(False)).close()
    with pytest.raises(ConfigError, match="guidance_scale is 4.0, which changes nothing"):
        Session(config, pipe=klein(True))

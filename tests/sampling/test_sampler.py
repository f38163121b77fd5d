import pytest
import torch

from calibri.config import SamplingConfig
from calibri.errors import ConfigError, UnsupportedModelError
from calibri.pipelines.loading import load_pipeline
from calibri.prompts.files import make_prompts
from calibri.results import Fidelity
from calibri.sampling.sampler import Noise, Sampler

PROMPTS = make_prompts(["a red circle", "a blue square", "two small green triangles"])
NOISES = [Noise(prompt, 10 + i) for i, prompt in enumerate(PROMPTS)]


@pytest.fixture(scope="module")
def pipe():
    return load_pipeline("shapes", device="cpu")


def sampler(pipe, **kwargs):
    return Sampler(pipe, SamplingConfig(num_inference_steps=2, **kwargs))


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_images_equal_a_plain_call_of_the_pipeline(pipe, guidance_scale):
    ours = sampler(pipe, guidance_scale=guidance_scale).sample(NOISES)
    assert ours.dtype == torch.uint8
    assert ours.shape == (3, 3, 24, 24)
    for noise, image in zip(NOISES, ours, strict=True):
        plain = pipe(
            noise.prompt.text,
            num_inference_steps=2,
            guidance_scale=guidance_scale,
            generator=torch.Generator().manual_seed(noise.seed),
            output_type="pt",
        ).images[0]
        # One grey level: rounding of another batch size.
        assert ((plain * 255).round() - image).abs().max() <= 1


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_images_are_bit_for_bit_those_of_joined_embeddings(pipe, guidance_scale):
    ours = sampler(pipe, guidance_scale=guidance_scale)
    noises = [*NOISES, Noise(PROMPTS[0], 77)]
    guided = guidance_scale > 1
    encoded = [
        pipe.encode_prompt(
            n.prompt.text, None, None, negative_prompt="", do_classifier_free_guidance=guided
        )
        for n in noises
    ]
    embeds, negative, pooled, negative_pooled = (
        torch.cat(parts) if parts[0] is not None else None for parts in zip(*encoded, strict=True)
    )
    plain = pipe(
        prompt_embeds=embeds,
        negative_prompt_embeds=negative,
        pooled_prompt_embeds=pooled,
        negative_pooled_prompt_embeds=negative_pooled,
        num_inference_steps=2,
        guidance_scale=guidance_scale,
        generator=[torch.Generator().manual_seed(n.seed) for n in noises],
        output_type="pt",
    ).images
    expected = (plain * 255).round().to(torch.uint8)
    assert torch.equal(ours.sample(noises), expected)
    # The batch is now remembered.
    assert torch.equal(ours.sample(noises), expected)


def test_a_pipeline_that_writes_into_its_embeddings_does_not_change_later_images(pipe):
    ours = sampler(pipe)
    expected = ours.sample(NOISES)
    ours.before_call = lambda arguments: arguments["prompt_embeds"].mul_(0)
    blank = ours.sample(NOISES)
    ours.before_call = None
    assert not torch.equal(blank, expected)
    assert torch.equal(ours.sample(NOISES), expected)


def test_an_image_does_not_depend_on_its_neighbours_or_its_place(pipe):
    images = sampler(pipe).sample(NOISES)
    backwards = sampler(pipe).sample(NOISES[::-1])
    assert (images.int() - backwards.flip(0).int()).abs().max() <= 1


def test_seeds_and_prompts_make_different_images(pipe):
    same = sampler(pipe).sample([Noise(PROMPTS[0], 1), Noise(PROMPTS[0], 2), Noise(PROMPTS[1], 1)])
    assert len({image.numpy().tobytes() for image in same}) == 3


def test_every_prompt_is_encoded_once(pipe, monkeypatch):
    calls = []
    original = pipe.text_encoder.forward

    def counting(*args, **kwargs):
        calls.append(1)
        return original(*args, **kwargs)

    monkeypatch.setattr(pipe.text_encoder, "forward", counting)
    ours = sampler(pipe)
    ours.sample(NOISES)
    ours.sample([*NOISES, Noise(PROMPTS[0], 99)])
    assert len(calls) == len(PROMPTS)


def test_steps_can_be_changed_for_one_call(pipe):
    two = sampler(pipe)
    three = Sampler(pipe, SamplingConfig(num_inference_steps=3))
    assert torch.equal(two.sample(NOISES, Fidelity(num_inference_steps=3)), three.sample(NOISES))
    assert not torch.equal(two.sample(NOISES), three.sample(NOISES))


def test_nfe_counts_both_branches(pipe):
    assert sampler(pipe).nfe() == 2
    assert sampler(pipe, guidance_scale=3.0).nfe(5) == 10


def test_a_size_that_the_pipeline_refuses_is_said(pipe):
    asked = sampler(pipe, height=512, width=512)
    with pytest.raises(ConfigError, match="height 512, width 512"):
        asked.sample(NOISES[:1])


def test_an_unknown_pipeline_is_refused():
    class OtherPipeline:
        pass

    with pytest.raises(UnsupportedModelError, match="OtherPipeline"):
        Sampler(OtherPipeline(), SamplingConfig())

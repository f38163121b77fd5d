import json
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusion3Pipeline
from torch import Tensor

from calibri.shapes.paths import PIPELINE_PATH
from calibri.shapes.render import IMAGE_SIZE, render_batch
from calibri.shapes.scenes import VOCABULARY, parse_caption, sample_prompts

TEXT = "a small red circle above a large blue square"


@pytest.fixture(scope="module")
def pipe() -> StableDiffusion3Pipeline:
    pipeline = DiffusionPipeline.from_pretrained(PIPELINE_PATH, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


def embed(pipe: StableDiffusion3Pipeline, text: str) -> tuple[Tensor, Tensor]:
    """The text as the training sees it, by the components alone."""
    ids = pipe.tokenizer(text, padding="max_length", max_length=12, return_tensors="pt").input_ids
    outputs = [
        encoder(ids, output_hidden_states=True)
        for encoder in (pipe.text_encoder, pipe.text_encoder_2)
    ]
    tokens = torch.cat([output.hidden_states[-2] for output in outputs], -1)
    null = torch.zeros(1, 2, tokens.shape[-1])
    return torch.cat([tokens, null], 1), torch.cat([output.text_embeds for output in outputs], -1)


def test_it_loads_plainly_in_single_precision_and_is_small(pipe: StableDiffusion3Pipeline) -> None:
    assert type(pipe) is StableDiffusion3Pipeline
    modules = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    assert {p.dtype for part in modules for p in part.parameters()} == {torch.float32}
    files = [path for path in Path(PIPELINE_PATH).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 8e6
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".txt"}


def test_a_prompt_is_enough(pipe: StableDiffusion3Pipeline) -> None:
    image = pipe(TEXT, generator=generators(1), output_type="pt").images
    assert image.shape == (1, 3, IMAGE_SIZE, IMAGE_SIZE)
    assert image.isfinite().all()
    assert image.std() > 0.05


@torch.no_grad()
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_pipeline_samples_what_was_trained(
    pipe: StableDiffusion3Pipeline, guidance: float
) -> None:
    """An Euler sampler of the training's own flow gives the pipeline's images."""
    steps = 6
    noise = torch.randn(1, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generators(1)[0])
    sigmas = torch.cat([torch.linspace(1, 1e-3, steps), torch.zeros(1)])
    sample = noise
    for sigma, following in zip(sigmas[:-1], sigmas[1:], strict=True):
        velocity = [
            pipe.transformer(
                hidden_states=sample,
                encoder_hidden_states=tokens,
                pooled_projections=pooled,
                timestep=sigma.view(1) * 1000,
                return_dict=False,
            )[0]
            for tokens, pooled in (embed(pipe, TEXT), embed(pipe, ""))
        ]
        guided = velocity[1] + guidance * (velocity[0] - velocity[1])
        sample = sample + (following - sigma) * guided
    expected = ((sample / 1.6 - 0.5 + 1) / 2).clamp(0, 1)
    actual = pipe(
        TEXT,
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=generators(1),
        output_type="pt",
    ).images
    torch.testing.assert_close(actual, expected, atol=2e-3, rtol=0)


@torch.no_grad()
def test_the_third_text_encoder_adds_two_zero_tokens(pipe: StableDiffusion3Pipeline) -> None:
    embeddings = pipe.encode_prompt(TEXT, None, None)[0]
    assert embeddings.shape == (1, 14, 96)
    assert (embeddings[:, 12:] == 0).all()
    assert (embeddings[:, :12] != 0).any()


@torch.no_grad()
def test_the_autoencoder_returns_what_it_was_given(pipe: StableDiffusion3Pipeline) -> None:
    images = torch.rand(8, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generators(1)[0]) * 2 - 1
    latents = pipe.vae.encode(images).latents
    assert latents.abs().max() <= 0.101
    # Half a grey level of 255, in the range of 2.
    torch.testing.assert_close(pipe.vae.decode(latents).sample, images, atol=1 / 255, rtol=0)


@pytest.mark.parametrize("name", ["tokenizer", "tokenizer_2", "tokenizer_3"])
def test_every_word_is_one_token_of_its_own(pipe: StableDiffusion3Pipeline, name: str) -> None:
    tokenizer = getattr(pipe, name)
    ids = {word: tokenizer(word).input_ids for word in VOCABULARY}
    assert {len(found) for found in ids.values()} == {3}
    assert len({found[1] for found in ids.values()}) == len(VOCABULARY)


@pytest.mark.parametrize("name", ["tokenizer", "tokenizer_2", "tokenizer_3"])
def test_every_transformers_reads_the_same_tokens(
    pipe: StableDiffusion3Pipeline, name: str
) -> None:
    """Version 5 reads tokenizer.json; version 4 the other two. Both give the ids of the file."""
    folder = Path(PIPELINE_PATH) / name
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    assert json.loads((folder / "vocab.json").read_text()) == model["vocab"]
    header, *merges = (folder / "merges.txt").read_text().splitlines()
    assert header.startswith("#version")
    assert [tuple(merge.split(" ")) for merge in merges] == [tuple(m) for m in model["merges"]]
    vocabulary = model["vocab"]
    for text in ["", *sample_prompts(50, 0, "held_out")]:
        words = [vocabulary[f"{word}</w>"] for word in text.split()]
        ids = [vocabulary["<|startoftext|>"], *words, vocabulary["<|endoftext|>"]]
        assert getattr(pipe, name)(text).input_ids == ids


def test_the_tokenizers_number_the_words_alike(pipe: StableDiffusion3Pipeline) -> None:
    first, *others = (
        [tokenizer(word).input_ids for word in VOCABULARY]
        for tokenizer in (pipe.tokenizer, pipe.tokenizer_2, pipe.tokenizer_3)
    )
    assert all(other == first for other in others)


def test_no_caption_is_cut_off(pipe: StableDiffusion3Pipeline) -> None:
    texts = sample_prompts(300, 0, "held_out") + [TEXT.replace("above", "left of")]
    lengths = {len(pipe.tokenizer(text).input_ids) for text in texts}
    assert max(lengths) == pipe.tokenizer.model_max_length == 12
    assert pipe.text_encoder.config.max_position_embeddings == 12


@torch.no_grad()
def test_it_denoises_the_right_caption_better_than_a_wrong_one(
    pipe: StableDiffusion3Pipeline,
) -> None:
    """The flow matching loss, which training lowered, is lower with the caption it belongs to."""
    draw = torch.Generator().manual_seed(0)
    texts = sample_prompts(64, 1, "held_out")
    images = render_batch([parse_caption(text) for text in texts], draw).float()
    latents = 1.6 * (images / 127.5 - 1 + 0.5)
    noise = torch.randn(latents.shape, generator=draw)
    embedded = [embed(pipe, text) for text in texts]
    tokens = torch.cat([pair[0] for pair in embedded])
    pooled = torch.cat([pair[1] for pair in embedded])

    def loss(shift: int) -> float:
        velocity = pipe.transformer(
            hidden_states=torch.lerp(latents, noise, 0.75),
            encoder_hidden_states=tokens.roll(shift, 0),
            pooled_projections=pooled.roll(shift, 0),
            timestep=torch.full((64,), 750.0),
            return_dict=False,
        )[0]
        return float((velocity - (noise - latents)).square().mean())

    assert loss(0) < 0.6 * loss(1)
    assert loss(0) < 0.2

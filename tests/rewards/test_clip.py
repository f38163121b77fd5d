"""The rewards that are a CLIP: PickScore, the three CLIPScores, HPS v2.1, LAION's aesthetic."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPModel

from calibri.errors import RewardError
from calibri.rewards import clip, pickscore
from calibri.rewards.aesthetic import Aesthetic
from calibri.rewards.clip import ClipReward, vit_b32, vit_h14, vit_l14
from calibri.rewards.clipscore import ClipScore, CompBenchClip, OriginalClipScore
from calibri.rewards.hpsv2 import HpsV21, from_open_clip
from calibri.rewards.pickscore import PickScore
from calibri.rewards.pretrained import load_tokenizer
from calibri.rewards.reward import Reward
from calibri.rewards.weights import Checkpoint
from tests.needs import needs
from tests.rewards.differentiable import check_differentiable
from tests.rewards.oracles import (
    cosine,
    crop_pixels,
    double,
    gelu,
    hf_image,
    hf_text,
    linear,
    open_clip_image,
    open_clip_text,
    quick_gelu,
)
from tests.rewards.tiny_models import (
    HEADS,
    TEXT_LENGTH,
    WIDTH,
    Draw,
    clip_ids,
    clip_tensors,
    pictures,
    save,
    save_clip_tokenizer,
    tiny_clip,
)

TEXTS = ["a red cat, left of 12 dogs", "sky", "a very long prompt that does not fit at all"]
IMAGES = pictures(3, 24, 36)


@pytest.fixture(scope="module")
def laion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP with the exact GELU."""
    return save_clip(tmp_path_factory.mktemp("laion"), "gelu")


@pytest.fixture(scope="module")
def openai(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP with QuickGELU."""
    return save_clip(tmp_path_factory.mktemp("openai"), "quick_gelu")


def save_clip(folder: Path, hidden_act: str) -> Path:
    save(folder, "model.safetensors", clip_tensors(tiny_clip(hidden_act)))
    save_clip_tokenizer(folder)
    return folder


def at(folder: Path) -> Checkpoint:
    return Checkpoint("unused", folder=folder)


def pick(folder: Path, **options: object) -> PickScore:
    return PickScore(at(folder), config=lambda: tiny_clip("gelu"), **options)


def hf_cosines(folder: Path, texts: list[str], act: object = quick_gelu) -> list[float]:
    tensors = double(load_file(folder / "model.safetensors"))
    return [
        cosine(
            hf_image(tensors, crop_pixels(image, 16), HEADS, act),
            hf_text(tensors, clip_ids(text), HEADS, act),
        )
        for image, text in zip(IMAGES, texts, strict=True)
    ]


def close(scores: Tensor, expected: list[float], scale: float = 1.0) -> None:
    assert scores.dtype == torch.float32
    torch.testing.assert_close(
        scores.double(), torch.tensor(expected, dtype=torch.float64), atol=2e-6 * scale, rtol=0
    )


def test_long_prompts_of_these_tests_are_cut() -> None:
    assert len(clip_ids(TEXTS[2])) == TEXT_LENGTH
    assert len(clip_ids(TEXTS[2] + " more")) == TEXT_LENGTH


def test_pickscore_is_temperature_times_cosine(laion: Path) -> None:
    reward = pick(laion)
    assert isinstance(reward, Reward)
    expected = [math.exp(4.6055) * value for value in hf_cosines(laion, TEXTS, gelu)]
    close(reward.score(IMAGES, TEXTS), expected, scale=100)


def test_pickscore_is_raw_not_divided_by_26(laion: Path) -> None:
    scores = pick(laion).score(IMAGES, TEXTS)
    cosines = torch.tensor(hf_cosines(laion, TEXTS, gelu))
    torch.testing.assert_close(
        scores / cosines, torch.full((3,), math.exp(4.6055)), rtol=1e-4, atol=0
    )


def test_half_precision_does_not_round_the_temperature(laion: Path) -> None:
    reward = pick(laion, dtype=torch.bfloat16)
    ratio = reward.score(IMAGES, TEXTS) / reward.cosines(IMAGES, TEXTS)
    torch.testing.assert_close(ratio, torch.full((3,), math.exp(4.6055)), rtol=1e-5, atol=0)
    rounded = float(torch.tensor(4.6055).bfloat16().exp())
    assert abs(rounded / math.exp(4.6055) - 1) > 5e-3


def test_clipscore_is_a_hundred_times_the_cosine_above_zero(openai: Path) -> None:
    reward = ClipScore(at(openai), config=lambda: tiny_clip("quick_gelu"))
    expected = [100 * max(value, 0.0) for value in hf_cosines(openai, TEXTS)]
    assert min(expected) > 1
    close(reward.score(IMAGES, TEXTS), expected, scale=100)


def test_the_original_clipscore_prefixes_the_caption(openai: Path) -> None:
    reward = OriginalClipScore(at(openai), config=lambda: tiny_clip("quick_gelu"))
    texts = ["red", "sky", "up"]
    prefixed = [
        2.5 * max(v, 0.0) for v in hf_cosines(openai, [f"A photo depicts {t}" for t in texts])
    ]
    plain = [2.5 * max(v, 0.0) for v in hf_cosines(openai, texts)]
    close(reward.score(IMAGES, texts), prefixed, scale=2.5)
    assert max(abs(a - b) for a, b in zip(prefixed, plain, strict=True)) > 1e-3


def test_the_benchmarks_clip_score_is_the_plain_cosine(openai: Path) -> None:
    reward = CompBenchClip(at(openai), config=lambda: tiny_clip("quick_gelu"))
    close(reward.score(IMAGES, TEXTS), hf_cosines(openai, TEXTS))


def test_only_the_plain_cosine_can_be_negative(openai: Path) -> None:
    def config() -> object:
        return tiny_clip("quick_gelu")

    # One picture against many texts: some cosines have either sign.
    texts = [letter * 3 for letter in "abcdefghijklmnop"]
    images = IMAGES[:1].expand(len(texts), -1, -1, -1)
    plain = CompBenchClip(at(openai), config=config).score(images, texts)
    assert plain.min() < 0 < plain.max()
    clamped = ClipScore(at(openai), config=config).score(images, texts)
    torch.testing.assert_close(clamped, 100 * plain.clamp(min=0))


def test_openais_models_need_quick_gelu(openai: Path) -> None:
    right = ClipScore(at(openai), config=lambda: tiny_clip("quick_gelu")).score(IMAGES, TEXTS)
    naive = ClipScore(at(openai), config=lambda: tiny_clip("gelu")).score(IMAGES, TEXTS)
    assert (right - naive).abs().max() > 1e-2
    assert vit_l14().vision_config.hidden_act == vit_l14().text_config.hidden_act == "quick_gelu"
    assert vit_b32().vision_config.hidden_act == vit_b32().text_config.hidden_act == "quick_gelu"
    assert vit_h14().vision_config.hidden_act == vit_h14().text_config.hidden_act == "gelu"


@needs(transformers="5.0")
def test_the_library_returns_more_than_an_embedding(laion: Path) -> None:
    # What code for earlier versions normalises has no norm any more, and its first part is no
    # projected embedding.
    reward = pick(laion)
    output = reward.model.get_image_features(reward.pixels(IMAGES))
    assert not isinstance(output, Tensor)
    embeddings = reward.image_embeddings(IMAGES)
    assert embeddings.shape == (3, 8)
    torch.testing.assert_close(embeddings.norm(dim=-1), torch.ones(3))
    assert output[0].shape != embeddings.shape


def test_bilinear_resizing_gives_other_scores(laion: Path) -> None:
    tensors = double(load_file(laion / "model.safetensors"))
    linear_pixels = crop_pixels(IMAGES[0], 16, Image.Resampling.BILINEAR)
    naive = cosine(
        hf_image(tensors, linear_pixels, HEADS, gelu),
        hf_text(tensors, clip_ids(TEXTS[0]), HEADS, gelu),
    )
    assert abs(float(pick(laion).cosines(IMAGES[:1], TEXTS[:1])) - naive) > 1e-4


def test_a_text_is_embedded_once(laion: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    embed = CLIPModel.get_text_features

    def counted(self: CLIPModel, input_ids: Tensor, *args: object) -> object:
        seen.append(len(input_ids))
        return embed(self, input_ids, *args)

    monkeypatch.setattr(CLIPModel, "get_text_features", counted)
    reward = pick(laion, batch_size=2)
    images = IMAGES[[0, 1, 2, 0]]
    texts = [TEXTS[0], TEXTS[0], TEXTS[1], TEXTS[0]]
    first = reward.score(images, texts)
    assert seen == [1, 1]
    assert torch.equal(reward.score(images, texts), first)
    assert seen == [1, 1]
    assert first[0] == first[3] != first[1]


def test_a_score_does_not_depend_on_its_neighbours(laion: Path) -> None:
    together = pick(laion).score(IMAGES, TEXTS)
    for row in range(3):
        alone = pick(laion).score(IMAGES[row : row + 1], TEXTS[row : row + 1])
        torch.testing.assert_close(alone[0], together[row], atol=1e-4, rtol=0)


def test_loading_is_strict(laion: Path, tmp_path: Path) -> None:
    save_clip_tokenizer(tmp_path)
    tensors = clip_tensors(tiny_clip("gelu"))
    faults = {
        "1 keys missing": {k: v for k, v in tensors.items() if k != "visual_projection.weight"},
        "1 unknown": tensors | {"extra.weight": torch.zeros(1)},
        "1 of another shape": tensors | {"visual_projection.weight": torch.zeros(8, 3)},
    }
    for message, faulty in faults.items():
        save(tmp_path, "model.safetensors", faulty)
        with pytest.raises(RewardError, match=message):
            pick(tmp_path).score(IMAGES, TEXTS)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    save(tmp_path, "model.safetensors", clip_tensors(tiny_clip("gelu")))
    with pytest.raises(RewardError, match="tokenizer"):
        pick(tmp_path).score(IMAGES, TEXTS)


def test_the_tokenizer_is_that_of_the_folder_or_the_published_one(
    laion: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Checkpoint] = []

    def load(checkpoint: Checkpoint) -> object:
        asked.append(checkpoint)
        return load_tokenizer(at(laion))

    monkeypatch.setattr(clip, "load_tokenizer", load)
    for reward in (pick(laion), PickScore(config=lambda: tiny_clip("gelu"))):
        monkeypatch.setattr(reward, "load", pick(laion).load)
        reward.score(IMAGES, TEXTS)
    assert asked == [at(laion), pickscore.TOKENIZER]


@pytest.mark.parametrize(
    ("config", "count"), [(vit_b32, 151_277_313), (vit_l14, 427_616_513), (vit_h14, 986_109_441)]
)
def test_published_architectures_have_the_published_number_of_parameters(
    config: object, count: int
) -> None:
    with torch.device("meta"):
        model = CLIPModel(config())
    assert sum(parameter.numel() for parameter in model.parameters()) == count


# HPS v2.1


def open_clip_tensors(draw: Draw) -> dict[str, Tensor]:
    width, text, count = (
        WIDTH,
        12,
        len(clip_tensors(tiny_clip("gelu"))["text_model.embeddings.token_embedding.weight"]),
    )
    tensors = {
        "logit_scale": torch.tensor(4.6),
        "positional_embedding": draw(TEXT_LENGTH, text),
        "text_projection": draw(text, 8),
        "token_embedding.weight": draw(count, text),
        "visual.class_embedding": draw(width),
        "visual.positional_embedding": draw(5, width),
        "visual.proj": draw(width, 8),
        "visual.conv1.weight": draw(width, 3, 8, 8),
        **draw.norm("ln_final", text),
        **draw.norm("visual.ln_pre", width),
        **draw.norm("visual.ln_post", width),
    }
    for stem, size in (("transformer", text), ("visual.transformer", width)):
        for index in range(2):
            block = f"{stem}.resblocks.{index}"
            tensors |= draw.norm(f"{block}.ln_1", size) | draw.norm(f"{block}.ln_2", size)
            tensors[f"{block}.attn.in_proj_weight"] = draw(3 * size, size)
            tensors[f"{block}.attn.in_proj_bias"] = draw(3 * size)
            tensors |= draw.linear(f"{block}.attn.out_proj", size, size)
            tensors |= draw.linear(f"{block}.mlp.c_fc", 20, size)
            tensors |= draw.linear(f"{block}.mlp.c_proj", size, 20)
    return tensors


@pytest.fixture(scope="module")
def hps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hps")
    save(folder, "HPS_v2.1_compressed.safetensors", open_clip_tensors(Draw(3)))
    save_clip_tokenizer(folder)
    return folder


def hps_reward(folder: Path) -> HpsV21:
    return HpsV21(at(folder), config=lambda: tiny_clip("gelu"))


def letterbox(image: Tensor) -> Tensor:
    """The original's preprocessing of an image of 24 x 36: 11 x 16 in black rows."""
    inner = torch.nn.functional.interpolate(
        image[None].double() / 255, (11, 16), mode="bicubic", antialias=True
    )[0]
    square = torch.zeros(3, 16, 16, dtype=torch.float64)
    square[:, 2:13] = inner
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073], dtype=torch.float64)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711], dtype=torch.float64)
    return (square - mean[:, None, None]) / std[:, None, None]


def hps_oracle(folder: Path, pixels: list[Tensor]) -> list[float]:
    tensors = double(load_file(folder / "HPS_v2.1_compressed.safetensors"))
    return [
        cosine(open_clip_image(tensors, x, HEADS), open_clip_text(tensors, clip_ids(text), HEADS))
        for x, text in zip(pixels, TEXTS, strict=True)
    ]


def test_hps_is_the_cosine_of_the_open_clip_model(hps: Path) -> None:
    expected = hps_oracle(hps, [letterbox(image) for image in IMAGES])
    close(hps_reward(hps).score(IMAGES, TEXTS), expected)


def test_hps_of_a_non_square_image_is_not_that_of_its_central_square(hps: Path) -> None:
    naive = hps_oracle(hps, [crop_pixels(image, 16) for image in IMAGES])
    right = hps_reward(hps).score(IMAGES, TEXTS)
    assert (right - torch.tensor(naive)).abs().min() > 1e-3


def test_hps_loads_strictly(tmp_path: Path) -> None:
    save_clip_tokenizer(tmp_path)
    tensors = open_clip_tensors(Draw(3))
    for message, faulty in {
        "1 unknown": tensors | {"visual.attnpool.weight": torch.zeros(1)},
        "3 keys missing": {
            k: v for k, v in tensors.items() if k != "transformer.resblocks.1.attn.in_proj_bias"
        },
    }.items():
        save(tmp_path, "HPS_v2.1_compressed.safetensors", faulty)
        with pytest.raises(RewardError, match=message):
            hps_reward(tmp_path).score(IMAGES, TEXTS)


def test_every_tensor_of_open_clip_is_used_once() -> None:
    tensors = open_clip_tensors(Draw(0))
    mapped = from_open_clip(tensors)
    assert sum(v.numel() for v in mapped.values()) == sum(v.numel() for v in tensors.values())
    assert mapped["text_projection.weight"].shape == (8, 12)


def test_a_pickle_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "HPS_v2.1_compressed.pt").write_bytes(b"not opened")
    with pytest.raises(RewardError, match=r"HPS_v2.1_compressed.safetensors' is missing"):
        hps_reward(tmp_path).score(IMAGES, TEXTS)


# LAION's aesthetic predictor


def save_predictor(folder: Path) -> dict[str, Tensor]:
    draw = Draw(5, scale=0.2)
    sizes = ((0, 8, 1024), (2, 1024, 128), (4, 128, 64), (6, 64, 16), (7, 16, 1))
    tensors: dict[str, Tensor] = {}
    for index, inner, outer in sizes:
        tensors |= draw.linear(f"layers.{index}", outer, inner)
    save(folder, "model.safetensors", tensors)
    return double(tensors)


def aesthetic_oracle(clip: Path, head: dict[str, Tensor], unit: bool) -> list[float]:
    tensors = double(load_file(clip / "model.safetensors"))
    scores = []
    for image in IMAGES:
        x = hf_image(tensors, crop_pixels(image, 16), HEADS, quick_gelu)
        x = x / torch.sqrt((x * x).sum()) if unit else x
        for index in (0, 2, 4, 6, 7):
            x = linear(head, f"layers.{index}", x)
        scores.append(float(x))
    return scores


def test_the_aesthetic_score_is_linear_in_unit_embeddings(openai: Path, tmp_path: Path) -> None:
    head = save_predictor(tmp_path)
    reward = Aesthetic(at(tmp_path), clip=at(openai), config=lambda: tiny_clip("quick_gelu"))
    scores = reward.score(IMAGES, TEXTS)
    expected = aesthetic_oracle(openai, head, unit=True)
    close(scores, expected, scale=max(abs(x) for x in expected))
    naive = aesthetic_oracle(openai, head, unit=False)
    assert (scores - torch.tensor(naive)).abs().max() > 1
    assert torch.equal(scores, reward.score(IMAGES, TEXTS[::-1]))


def test_the_predictor_loads_strictly(openai: Path, tmp_path: Path) -> None:
    save(tmp_path, "model.safetensors", {"layers.0.weight": torch.zeros(1024, 8)})
    reward = Aesthetic(at(tmp_path), clip=at(openai), config=lambda: tiny_clip("quick_gelu"))
    with pytest.raises(RewardError, match="9 keys missing"):
        reward.score(IMAGES, TEXTS)


def test_every_reward_of_a_clip_scores_floats_with_a_gradient(
    laion: Path, openai: Path, hps: Path, tmp_path: Path
) -> None:
    def config() -> object:
        return tiny_clip("quick_gelu")

    save_predictor(tmp_path)
    check_differentiable(pick(laion), TEXTS)
    check_differentiable(hps_reward(hps), TEXTS)
    check_differentiable(Aesthetic(at(tmp_path), clip=at(openai), config=config), TEXTS)
    for kind in (ClipScore, OriginalClipScore, CompBenchClip):
        check_differentiable(kind(at(openai), config=config), TEXTS)


def test_half_precision_scores_floats_alike(laion: Path) -> None:
    reward = pick(laion, dtype=torch.bfloat16)
    found = reward.score_float(IMAGES / 255, TEXTS)
    assert torch.equal(found, reward.score(IMAGES, TEXTS))


def test_a_prompt_that_was_scored_first_takes_part_in_a_gradient(laion: Path) -> None:
    reward = pick(laion)
    reward.score(IMAGES, TEXTS)
    pixels = (IMAGES / 255).requires_grad_()
    reward.score_float(pixels, TEXTS).sum().backward()
    assert pixels.grad.any()


def test_no_reward_loads_anything_when_it_is_made() -> None:
    missing = Checkpoint("unused", folder=Path("nowhere"))  # reading it would raise
    made = [PickScore(missing), ClipScore(missing), HpsV21(missing), Aesthetic(missing)]
    assert all(str(missing) in reward.info.variant for reward in made)
    assert issubclass(PickScore, ClipReward)

"""The rewards that are a BLIP: ImageReward, BLIP-VQA and the attributes of T2I-CompBench++."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import BlipForQuestionAnswering, BlipTextModel, BlipVisionModel

from calibri.errors import RewardError
from calibri.rewards import blip_vqa
from calibri.rewards.blip import from_original, text_base, vision_base, vision_large
from calibri.rewards.blip_vqa import Architecture, BlipVqa, clean_question
from calibri.rewards.compbench import CompBenchAttribute
from calibri.rewards.imagereward import ImageReward
from calibri.rewards.weights import Checkpoint
from tests.rewards.differentiable import check_differentiable
from tests.rewards.oracles import (
    MEAN,
    STD,
    bert,
    blip_first_logits,
    blip_image,
    crop_pixels,
    double,
    linear,
)
from tests.rewards.tiny_models import (
    BERT_VOCABULARY,
    BLIP_START,
    HEADS,
    WIDTH,
    Draw,
    bert_ids,
    blip_text_tensors,
    blip_vision_tensors,
    pictures,
    save,
    save_bert_tokenizer,
    tiny_blip_text,
    tiny_blip_vision,
)

PUBLISHED_SIZE = blip_vqa.IMAGE_SIZE  # other tests make it small
IMAGES = pictures(3, 24, 36)
ARCHITECTURE = Architecture(tiny_blip_vision, lambda states: tiny_blip_text(states, WIDTH))
TEXTS = ["a red cat", "sky", "a very long prompt that will never fit in what the model reads"]


def at(folder: Path) -> Checkpoint:
    return Checkpoint("unused", folder=folder)


# ImageReward


@pytest.fixture(scope="module")
def rewarded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    folder, draw = tmp_path_factory.mktemp("imagereward"), Draw(1, scale=0.4)
    towers = blip_vision_tensors(draw, 4) | blip_text_tensors(draw, "text_encoder", WIDTH)
    tensors = {f"blip.{key}": value for key, value in towers.items()}
    sizes = ((0, 12, 1024), (2, 1024, 128), (4, 128, 64), (6, 64, 16), (7, 16, 1))
    for index, inner, outer in sizes:
        layer = draw.linear(f"mlp.layers.{index}", outer, inner)
        tensors |= {key: 3 * value / inner**0.5 for key, value in layer.items()}
    save(folder, "ImageReward.safetensors", tensors)
    save_bert_tokenizer(folder)
    return folder, double(tensors)


def image_reward(folder: Path, **options: object) -> ImageReward:
    return ImageReward(at(folder), vision=tiny_blip_vision, text=tiny_blip_text, **options)


def image_reward_oracle(tensors: dict[str, Tensor], image: Tensor, ids: list[int]) -> float:
    towers = {key.removeprefix("blip."): value for key, value in tensors.items()}
    states = blip_image(towers, crop_pixels(image, 16), HEADS)
    x = bert(towers, "text_encoder", ids, states, HEADS)[0]
    for index in (0, 2, 4, 6, 7):
        x = linear(tensors, f"mlp.layers.{index}", x)
    return (float(x) - 0.16717362830052426) / 1.0333394966054072


def test_imagereward_is_the_z_score_of_the_original_model(
    rewarded: tuple[Path, dict[str, Tensor]],
) -> None:
    folder, tensors = rewarded
    expected = [
        image_reward_oracle(tensors, x, bert_ids(text, 35))
        for x, text in zip(IMAGES, TEXTS, strict=True)
    ]
    scores = image_reward(folder).score(IMAGES, TEXTS)
    assert np.ptp(expected) > 1e-2
    torch.testing.assert_close(scores.double(), torch.tensor(expected).double(), atol=1e-5, rtol=0)


def test_imagereward_reads_35_tokens(rewarded: tuple[Path, dict[str, Tensor]]) -> None:
    folder, tensors = rewarded
    assert len(bert_ids(TEXTS[2], 40)) == 40
    whole = image_reward_oracle(tensors, IMAGES[0], bert_ids(TEXTS[2], 40))
    reward = image_reward(folder)
    read = reward.score(IMAGES[:1], TEXTS[2:])
    assert abs(float(read) - whole) > 1e-4
    assert torch.equal(reward.score(IMAGES[:1], [TEXTS[2] + " or says"]), read)
    assert "35 tokens" in reward.info.variant


def test_imagereward_reads_the_text_in_both_directions(
    rewarded: tuple[Path, dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = rewarded
    right = image_reward(folder).score(IMAGES, TEXTS)
    forward = BlipTextModel.forward

    def naive(self: BlipTextModel, *args: object, **kwargs: object) -> object:
        return forward(self, *args, **kwargs | {"is_decoder": True, "use_cache": False})

    monkeypatch.setattr(BlipTextModel, "forward", naive)
    assert (image_reward(folder).score(IMAGES, TEXTS) - right).abs().min() > 1e-4


def test_imagereward_loads_strictly(
    rewarded: tuple[Path, dict[str, Tensor]], tmp_path: Path
) -> None:
    tensors = {key: value.float() for key, value in rewarded[1].items()}
    lost = "blip.text_encoder.encoder.layer.1.crossattention.self.key.weight"
    for message, faulty in {
        "1 keys missing": {k: v for k, v in tensors.items() if k != lost},
        "1 unknown": tensors | {"blip.visual_encoder.blocks.0.extra.weight": torch.zeros(1)},
    }.items():
        save(tmp_path, "ImageReward.safetensors", faulty)
        save_bert_tokenizer(tmp_path)
        with pytest.raises(RewardError, match=message):
            image_reward(tmp_path).score(IMAGES, TEXTS)


def test_published_imagereward_has_the_size_of_blip_large() -> None:
    with torch.device("meta"):
        vision = BlipVisionModel(vision_large())
        text = BlipTextModel(text_base(1024), add_pooling_layer=False)
    # ViT-L/16 at 224 pixels without a classifier; BERT-base without pooler and token types, and
    # twelve cross-attentions to a width of 1024.
    bert_base = 109_482_240 - 590_592 - 2 * 768 + 2 * 768
    cross = 12 * (2 * (768 * 768 + 768) + 2 * (1024 * 768 + 768) + 2 * 768)
    assert sum(p.numel() for p in vision.parameters()) == 303_301_632
    assert sum(p.numel() for p in text.parameters()) == bert_base + cross
    assert text.config.num_attention_heads == 12
    assert vision_large().layer_norm_eps == vision_base().layer_norm_eps == 1e-6
    assert text.config.layer_norm_eps == 1e-12


# BLIP-VQA


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    """BLIP for questions in its authors' keys."""
    draw = Draw(2, scale=0.4)
    stem = "text_decoder.cls.predictions"
    found = blip_vision_tensors(draw, 9)
    # Question states are as wide as image states: the library's decoder shares their width.
    found |= blip_text_tensors(draw, "text_encoder", WIDTH, WIDTH)
    found |= blip_text_tensors(draw, "text_decoder.bert", WIDTH, WIDTH)
    found |= draw.linear(f"{stem}.transform.dense", WIDTH, WIDTH)
    found |= draw.norm(f"{stem}.transform.LayerNorm", WIDTH)
    found[f"{stem}.bias"] = draw(BLIP_START + 2)
    found[f"{stem}.decoder.bias"] = found[f"{stem}.bias"]
    words = found["text_decoder.bert.embeddings.word_embeddings.weight"]
    found[f"{stem}.decoder.weight"] = words
    return found


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, Tensor]) -> Path:
    """The checkpoint as transformers saves it: renamed, tied tensors once."""
    folder = tmp_path_factory.mktemp("vqa")
    tied = (
        "text_decoder.cls.predictions.decoder.weight",
        "text_decoder.cls.predictions.decoder.bias",
    )
    kept = {key: value for key, value in tensors.items() if key not in tied}
    save(folder, "model.safetensors", {from_original(k) or k: v for k, v in kept.items()})
    save_bert_tokenizer(folder)
    return folder


@pytest.fixture(autouse=True)
def _small_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blip_vqa, "IMAGE_SIZE", 24)


def vqa(folder: Path, **options: object) -> BlipVqa:
    return BlipVqa(at(folder), architecture=ARCHITECTURE, **options)


def squashed(image: Tensor) -> Tensor:
    picture = Image.fromarray(np.moveaxis(image.numpy(), 0, 2)).resize((24, 24), Image.BICUBIC)
    return torch.from_numpy(np.moveaxis((np.asarray(picture) / 255 - MEAN) / STD, 2, 0).copy())


def yes(tensors: dict[str, Tensor], pixels: Tensor, question: str, first: int) -> float:
    """P(yes) / (P(yes) + P(no)) of the whole softmax, with a given first question token."""
    t = double(tensors)
    ids = [first, *bert_ids(question, 35)[1:]]
    states = bert(t, "text_encoder", ids, blip_image(t, pixels, HEADS), HEADS)
    likely = blip_first_logits(t, BLIP_START, states, HEADS).softmax(0)
    good, bad = (float(likely[BERT_VOCABULARY.index(word)]) for word in ("yes", "no"))
    return good / (good + bad)


def test_blip_vqa_is_the_probability_of_yes(asked: Path, tensors: dict[str, Tensor]) -> None:
    expected = [
        yes(tensors, squashed(x), f"{text}?", BLIP_START + 1)
        for x, text in zip(IMAGES, TEXTS, strict=True)
    ]
    scores = vqa(asked).score(IMAGES, TEXTS)
    assert np.ptp(expected) > 1e-2
    torch.testing.assert_close(scores.double(), torch.tensor(expected).double(), atol=2e-6, rtol=0)


def test_the_authors_own_checkpoint_gives_the_same(
    asked: Path, tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    save(tmp_path, "model.safetensors", tensors)
    save_bert_tokenizer(tmp_path)
    assert torch.equal(vqa(tmp_path).score(IMAGES, TEXTS), vqa(asked).score(IMAGES, TEXTS))


def test_a_question_begins_with_blips_own_token(asked: Path, tensors: dict[str, Tensor]) -> None:
    naive = yes(tensors, squashed(IMAGES[0]), "a red cat?", BERT_VOCABULARY.index("[CLS]"))
    assert abs(float(vqa(asked).score(IMAGES[:1], TEXTS[:1])) - naive) > 1e-4


def test_images_are_squashed_not_cropped(asked: Path, tensors: dict[str, Tensor]) -> None:
    naive = yes(tensors, crop_pixels(IMAGES[0], 24), "a red cat?", BLIP_START + 1)
    assert abs(float(vqa(asked).score(IMAGES[:1], TEXTS[:1])) - naive) > 1e-5


def test_positions_of_another_image_size_are_interpolated(
    tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    # The hub's conversion cut the position embeddings down to 384 pixels; here 2 x 2 for 3 x 3.
    small = tensors | {"visual_encoder.pos_embed": Draw(4)(1, 5, WIDTH)}
    save(tmp_path, "model.safetensors", small)
    save_bert_tokenizer(tmp_path)
    grid = small["visual_encoder.pos_embed"][0, 1:].T.view(1, WIDTH, 2, 2)
    wide = torch.nn.functional.interpolate(grid, (3, 3), mode="bicubic")[0].flatten(1).T
    positions = torch.cat([small["visual_encoder.pos_embed"][:, :1], wide[None]], 1)
    expected = yes(
        small | {"visual_encoder.pos_embed": positions},
        squashed(IMAGES[0]),
        "a red cat?",
        BLIP_START + 1,
    )
    score = float(vqa(tmp_path).score(IMAGES[:1], TEXTS[:1]))
    assert score == pytest.approx(expected, abs=2e-6)


def test_a_question_does_not_depend_on_its_neighbours(asked: Path) -> None:
    together = vqa(asked).score(IMAGES, TEXTS)
    alone = vqa(asked, batch_size=1).score(IMAGES, TEXTS)
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)


def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path) -> None:
    save(tmp_path, "model.safetensors", {"weight": torch.zeros(1)})
    with pytest.raises(RewardError, match="question answering"):
        vqa(tmp_path).score(IMAGES, TEXTS)


def test_blip_vqa_loads_strictly(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    for message, faulty in {
        "1 keys missing": {k: v for k, v in tensors.items() if k != "visual_encoder.norm.bias"},
        "1 unknown": tensors | {"itm_head.weight": torch.zeros(1)},
    }.items():
        save(tmp_path, "model.safetensors", faulty)
        with pytest.raises(RewardError, match=message):
            vqa(tmp_path).score(IMAGES, TEXTS)


def test_questions_are_cleaned_as_in_training() -> None:
    assert clean_question('A "red" Cat; (big): *very* #1~!?') == "a red cat big very 1?"
    assert clean_question("word " * 60 + "?") == " ".join(["word"] * 50)


def test_published_blip_vqa_is_blip_base_at_480_pixels() -> None:
    config = Architecture().config(480)
    assert config.text_config.num_attention_heads == 12
    assert vision_base().image_size == 480
    assert (BLIP_START, config.text_config.bos_token_id) == (len(BERT_VOCABULARY), 30522)
    with torch.device("meta"):
        model = BlipForQuestionAnswering(config)
    # ViT-B/16 at 480 pixels without a classifier.
    vision = sum(p.numel() for p in model.vision_model.parameters())
    assert vision == 85_798_656 + (900 - 196) * 768


# T2I-CompBench++'s attributes

CHUNKS = {"a red cat and a blue sky": ["a red cat", "a blue sky"], "sky": ["sky"]}


def attribute(folder: Path, chunks: object = None) -> CompBenchAttribute:
    return CompBenchAttribute(at(folder), noun_chunks=chunks, architecture=ARCHITECTURE)


def test_an_attribute_prompt_scores_the_product_over_its_noun_chunks(
    asked: Path, tensors: dict[str, Tensor]
) -> None:
    prompts = [*CHUNKS, "sky"]
    expected = [
        np.prod([yes(tensors, squashed(x), f"{c}?", BLIP_START + 1) for c in CHUNKS[prompt]])
        for x, prompt in zip(IMAGES, prompts, strict=True)
    ]
    scores = attribute(asked, CHUNKS).score(IMAGES, prompts)
    torch.testing.assert_close(scores.double(), torch.tensor(expected).double(), atol=2e-6, rtol=0)
    whole = vqa(asked).score(IMAGES[:1], prompts[:1])
    assert abs(float(scores[0]) - float(whole)) > 1e-3


def test_noun_chunks_come_from_a_file(asked: Path, tmp_path: Path) -> None:
    path = tmp_path / "chunks.json"
    path.write_text(json.dumps(CHUNKS))
    prompts = list(CHUNKS)
    from_file = attribute(asked, str(path)).score(IMAGES[:2], prompts)
    assert torch.equal(from_file, attribute(asked, CHUNKS).score(IMAGES[:2], prompts))


def test_chunks_that_name_no_object_are_left_out_before_the_first_eight_are_taken() -> None:
    given = ["top", "the left", *(f"thing {i}" for i in range(9)), "the side"]
    reward = CompBenchAttribute(noun_chunks={"p": given, "q": ["the right"]})
    assert reward.noun_chunks("p") == [f"thing {i}" for i in range(8)]
    with pytest.raises(RewardError, match="no noun chunk"):
        reward.noun_chunks("q")


def test_an_unknown_prompt_is_refused(asked: Path) -> None:
    with pytest.raises(RewardError, match="'a dog' are not given"):
        attribute(asked, CHUNKS).score(IMAGES[:1], ["a dog"])


@pytest.mark.parametrize("content", ["[]", "{", '{"a": []}', '{"a": "b"}', '{"a": [1]}'])
def test_a_malformed_file_of_noun_chunks_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "chunks.json"
    path.write_text(content)
    with pytest.raises(RewardError, match=r"chunks\.json"):
        CompBenchAttribute(noun_chunks=path).noun_chunks("a")


def test_without_noun_chunks_and_spacy_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(RewardError, match="pip install spacy"):
        CompBenchAttribute().noun_chunks("a red cat")


def test_questions_are_about_images_of_480_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []

    def vision_model(pixels: torch.Tensor, interpolate_pos_encoding: bool) -> SimpleNamespace:
        seen.append(tuple(pixels.shape))
        return SimpleNamespace(last_hidden_state=pixels)

    monkeypatch.setattr(blip_vqa, "IMAGE_SIZE", PUBLISHED_SIZE)
    monkeypatch.setattr(BlipVqa, "model", SimpleNamespace(vision_model=vision_model))
    BlipVqa().embed(torch.zeros(2, 3, 30, 50, dtype=torch.uint8))
    assert seen == [(2, 3, 480, 480)]


def test_every_reward_of_a_blip_scores_floats_with_a_gradient(
    rewarded: tuple[Path, dict[str, Tensor]], asked: Path
) -> None:
    check_differentiable(image_reward(rewarded[0]), TEXTS)
    check_differentiable(vqa(asked), TEXTS)
    check_differentiable(attribute(asked, CHUNKS), [*CHUNKS, "sky"])

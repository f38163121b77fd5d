from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPVisionModel, T5Config, T5ForConditionalGeneration, T5Model, T5Tokenizer

from calibri.errors import RewardError
from calibri.rewards.clip import vision_l14
from calibri.rewards.vqascore import AFTER, BEFORE, ClipT5, VqaScore
from calibri.rewards.weights import Checkpoint
from tests.needs import is_older
from tests.rewards.differentiable import check_differentiable
from tests.rewards.oracles import (
    MEAN,
    STD,
    depth,
    double,
    gelu,
    hf_tower,
    hf_vision_input,
    linear,
    quick_gelu,
)
from tests.rewards.tiny_models import CHARACTERS, HEADS, Draw, pictures, save, tiny_clip

IMAGES = pictures(3, 24, 36)
TEXTS = ["a red cat", "sky", "two dogs, left of a <image> of a house"]
WIDTH = 12
# More rows than the tokenizer has tokens, as T5 pads its embeddings.
ROWS_TO_SPARE = 7

VISION = "vision_tower.vision_tower.vision_model."


def t5_tokenizer() -> T5Tokenizer:
    pieces = ["▁", *CHARACTERS, *CHARACTERS.upper(), "Yes", "▁Yes"]
    if is_older("transformers", "5.0"):
        pytest.skip("transformers 4 makes the tokenizer of T5 from a file of SentencePiece alone")
    scores = [(piece, -1.0 - len(piece)) for piece in dict.fromkeys(pieces)]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    return T5Tokenizer(vocab=[*special, *scores], extra_ids=0)


def t5_config() -> T5Config:
    return T5Config(
        vocab_size=len(t5_tokenizer()) + ROWS_TO_SPARE,
        d_model=WIDTH,
        d_kv=6,
        d_ff=20,
        num_layers=2,
        num_heads=HEADS,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,  # and so decoder states are not scaled
        relative_attention_num_buckets=8,
        relative_attention_max_distance=20,
    )


def checkpoint_tensors() -> dict[str, Tensor]:
    """CLIP-FlanT5 as its authors saved it: T5's keys, the image tower's and the projector's."""
    draw = Draw(0, scale=0.3)
    with torch.device("meta"):
        t5 = T5ForConditionalGeneration(t5_config()).state_dict()
        vision = CLIPVisionModel(tiny_clip("quick_gelu").vision_config).state_dict()
    tensors = draw.like(t5)
    shared = tensors["shared.weight"]
    for name in (
        "encoder.embed_tokens.weight",
        "decoder.embed_tokens.weight",
        "embed_tokens.weight",
    ):
        tensors[name] = shared
    tensors |= {VISION + key: value for key, value in draw.like(vision).items()}
    tensors[f"{VISION}embeddings.position_ids"] = torch.arange(5)[None]
    tensors |= draw.linear("mm_projector.0", WIDTH, 16) | draw.linear(
        "mm_projector.2", WIDTH, WIDTH
    )
    return tensors


def write(folder: Path, tensors: dict[str, Tensor], **settings: object) -> Path:
    published = {
        "model_type": "clip_t5",
        "architectures": ["CLIPT5ForConditionalGeneration"],
        "tie_word_embeddings": False,
        "decoder_start_token_id": 0,
        "mm_hidden_size": 16,
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_vision_tower": "openai/clip-vit-large-patch14-336",
    }
    config = t5_config().to_dict() | published | settings
    (folder / "config.json").write_text(json.dumps(config))
    save(folder, "model.safetensors", tensors)
    t5_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("vqascore"), checkpoint_tensors())


def score(folder: Path, **options: object) -> VqaScore:
    place = Checkpoint("unused", folder=folder)
    return VqaScore(place, vision=lambda: tiny_clip("quick_gelu").vision_config, **options)


def image_states(tensors: dict[str, Tensor], image: Tensor, first: int) -> Tensor:
    """Projected patches of the last layer but one, of the image on a square of CLIP's mean."""
    square = Image.new("RGB", (36, 36), tuple(int(value * 255) for value in MEAN))
    square.paste(Image.fromarray(np.moveaxis(image.numpy(), 0, 2)), (0, 6))
    array = np.asarray(square.resize((16, 16), Image.BICUBIC)) / 255
    pixels = torch.from_numpy(np.moveaxis((array - MEAN) / STD, 2, 0).copy())
    vision = {
        key.removeprefix("vision_tower.vision_tower."): value
        for key, value in tensors.items()
        if key.startswith(VISION)
    }
    last = depth(vision, "vision_model.encoder.layers.") - 1
    kept = {k: v for k, v in vision.items() if f"encoder.layers.{last}." not in k}
    states = hf_tower(
        kept, "vision_model", hf_vision_input(vision, pixels), HEADS, quick_gelu, causal=False
    )
    return linear(
        tensors, "mm_projector.2", gelu(linear(tensors, "mm_projector.0", states[first:]))
    )


def oracle(
    folder: Path, image: Tensor, text: str, first: int = 1, rows: int | None = None
) -> float:
    """One image, no padding, and the decoder one step at a time."""
    tensors = double(load_file(folder / "model.safetensors"))
    # Without a head: the library would share it with the embeddings.
    model = T5Model(t5_config()).double().eval()
    model.load_state_dict({key: tensors[key] for key in model.state_dict()})
    tokenizer = t5_tokenizer()
    end = tokenizer.eos_token_id
    pieces = [
        tokenizer(part, add_special_tokens=False)["input_ids"] + [end] for part in around(text)
    ]
    words = tensors["shared.weight"]
    read = torch.cat([words[pieces[0]], image_states(tensors, image, first), words[pieces[1]]])
    answer = [*tokenizer("Yes", add_special_tokens=False)["input_ids"], end]
    rows = rows or len(tokenizer)
    total, given = 0.0, [0]
    with torch.no_grad():
        states = model.encoder(inputs_embeds=read[None])[0]
        for token in answer:
            decoded = model.decoder(torch.tensor([given]), encoder_hidden_states=states)[0]
            logits = (decoded[0, -1] @ tensors["lm_head.weight"].T)[:rows]
            total += float(logits[token] - logits.logsumexp(0))
            given.append(token)
    return float(np.exp(total / len(answer)))


def around(text: str) -> tuple[str, str]:
    system = (
        "A chat between a curious user and an artificial intelligence assistant. The assistant "
        "gives helpful, detailed, and polite answers to the user's questions."
    )
    question = f'Does this figure show "{text}"? Please answer yes or no.'
    return f"{system} USER: ", f"\n{question} ASSISTANT: "


def test_the_question_is_the_published_one() -> None:
    assert (BEFORE, AFTER.replace("{prompt}", "x")) == around("x")


def test_the_score_is_the_geometric_mean_of_the_answers_probabilities(folder: Path) -> None:
    expected = [oracle(folder, x, text) for x, text in zip(IMAGES, TEXTS, strict=True)]
    assert np.ptp(expected) > 1e-4
    scores = score(folder).score(IMAGES, TEXTS)
    torch.testing.assert_close(scores.double(), torch.tensor(expected).double(), atol=0, rtol=2e-5)


def test_the_cls_token_is_dropped_unless_the_checkpoint_says_otherwise(
    folder: Path, tmp_path: Path
) -> None:
    other = write(tmp_path, checkpoint_tensors(), mm_vision_select_feature="cls_patch")
    kept = float(score(other).score(IMAGES[:1], TEXTS[:1]))
    assert kept == pytest.approx(oracle(folder, IMAGES[0], TEXTS[0], first=0), rel=2e-5)
    assert abs(kept / oracle(folder, IMAGES[0], TEXTS[0]) - 1) > 1e-4


def test_what_a_configuration_leaves_out_is_as_published(folder: Path, tmp_path: Path) -> None:
    bare = write(tmp_path, checkpoint_tensors())
    config = json.loads((bare / "config.json").read_text())
    for name in ("mm_projector_type", "mm_vision_select_layer", "mm_vision_select_feature"):
        del config[name]
    (bare / "config.json").write_text(json.dumps(config))
    expected = oracle(folder, IMAGES[0], TEXTS[0])
    assert float(score(bare).score(IMAGES[:1], TEXTS[:1])) == pytest.approx(expected, rel=2e-5)


def test_rows_beyond_the_tokenizer_take_no_probability(folder: Path) -> None:
    wide = oracle(folder, IMAGES[0], TEXTS[0], rows=len(t5_tokenizer()) + ROWS_TO_SPARE)
    assert abs(float(score(folder).score(IMAGES[:1], TEXTS[:1])) / wide - 1) > 1e-2


def test_a_prompt_may_contain_the_image_marker(folder: Path) -> None:
    scores = score(folder).score(IMAGES[2:], TEXTS[2:])
    assert scores.isfinite().all()
    assert "<image>" in TEXTS[2]


def test_the_head_is_not_the_embeddings(folder: Path) -> None:
    model = score(folder).model
    tensors = load_file(folder / "model.safetensors")
    assert torch.equal(model.t5.lm_head.weight, tensors["lm_head.weight"])
    assert torch.equal(model.t5.shared.weight, tensors["shared.weight"])
    assert not torch.equal(tensors["lm_head.weight"], tensors["shared.weight"])


def test_padding_does_not_change_a_score(folder: Path) -> None:
    together = score(folder).score(IMAGES, TEXTS)
    alone = score(folder, batch_size=1).score(IMAGES, TEXTS)
    torch.testing.assert_close(together, alone, atol=0, rtol=1e-5)


def test_shards_and_one_file_are_the_same(folder: Path, tmp_path: Path) -> None:
    tensors = checkpoint_tensors()
    write(tmp_path, tensors)
    (tmp_path / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"a-1.safetensors": names[::2], "a-2.safetensors": names[1::2]}
    for part, keys in parts.items():
        save(tmp_path, part, {key: tensors[key] for key in keys})
    index = {"weight_map": {key: part for part, keys in parts.items() for key in keys}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert torch.equal(score(tmp_path).score(IMAGES, TEXTS), score(folder).score(IMAGES, TEXTS))


def test_embeddings_that_are_saved_once_are_used_thrice(folder: Path, tmp_path: Path) -> None:
    copies = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "embed_tokens.weight")
    write(tmp_path, {k: v for k, v in checkpoint_tensors().items() if k not in copies})
    assert torch.equal(score(tmp_path).score(IMAGES, TEXTS), score(folder).score(IMAGES, TEXTS))


def test_an_image_tower_kept_elsewhere_is_read_from_there(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = checkpoint_tensors()
    apart = tmp_path / "clip"
    apart.mkdir()
    tower = {
        f"vision_model.{k.removeprefix(VISION)}": v
        for k, v in tensors.items()
        if k.startswith(VISION)
    }
    save(apart, "model.safetensors", tower | {"logit_scale": torch.zeros(())})
    monkeypatch.setattr("calibri.rewards.vqascore.VISION", Checkpoint("unused", folder=apart))
    write(tmp_path, {k: v for k, v in tensors.items() if not k.startswith(VISION)})
    assert torch.equal(score(tmp_path).score(IMAGES, TEXTS), score(folder).score(IMAGES, TEXTS))


def test_loading_is_strict(tmp_path: Path) -> None:
    tensors = checkpoint_tensors()
    for message, faulty in {
        "1 keys missing": {k: v for k, v in tensors.items() if k != "mm_projector.2.bias"},
        "1 unknown": tensors | {"extra.weight": torch.zeros(1)},
    }.items():
        write(tmp_path, faulty)
        with pytest.raises(RewardError, match=message):
            score(tmp_path).score(IMAGES, TEXTS)


def test_another_projector_is_refused(tmp_path: Path) -> None:
    write(tmp_path, checkpoint_tensors(), mm_projector_type="linear")
    with pytest.raises(RewardError, match="'linear'"):
        score(tmp_path).score(IMAGES, TEXTS)


def test_the_published_model_is_flan_t5_xxl_with_clip_at_336_pixels() -> None:
    # T5-XXL of version 1.1, without a shared head, as google/flan-t5-xxl configures it.
    settings = dict(
        d_model=4096,
        d_kv=64,
        d_ff=10240,
        num_layers=24,
        num_heads=64,
        vocab_size=32128,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        model = ClipT5(settings, vision_l14(336))
    assert sum(p.numel() for p in model.t5.parameters()) == 11_135_332_352
    # The image tower of ViT-L/14 has 303,966,208 parameters at 336 pixels instead of 224.
    vision = sum(p.numel() for p in model.vision.parameters())
    assert vision == 303_179_776 + (24**2 - 16**2) * 1024


def test_it_scores_floats_with_a_gradient(folder: Path) -> None:
    check_differentiable(score(folder), TEXTS)

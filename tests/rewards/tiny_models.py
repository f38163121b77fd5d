"""Tiny random checkpoints in published key layouts, tokenizers of small vocabularies, pictures."""

from __future__ import annotations

import json
import string
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    BertTokenizer,
    BlipTextConfig,
    BlipVisionConfig,
    CLIPConfig,
    CLIPTextConfig,
    CLIPTokenizer,
    CLIPVisionConfig,
)

from tests.needs import is_older

HEADS = 2
WIDTH = 16
TEXT_LENGTH = 24
CHARACTERS = string.ascii_lowercase + string.digits + string.punctuation
CLIP_VOCABULARY = ["<|startoftext|>", *CHARACTERS, *(f"{c}</w>" for c in CHARACTERS)]
CLIP_VOCABULARY.append("<|endoftext|>")
CLIP_END = len(CLIP_VOCABULARY) - 1
BERT_VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "yes", "no", *CHARACTERS]
BERT_VOCABULARY += [f"##{c}" for c in CHARACTERS]
# BLIP adds its decoder's start and its encoder's first token behind BERT's vocabulary.
BLIP_START = len(BERT_VOCABULARY)


def pictures(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Smooth colours and some noise: resizing them in different ways gives different pixels."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(count, 3, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(small, (height, width), mode="bilinear")
    noise = torch.rand(count, 3, height, width, generator=generator)
    return ((0.7 * smooth + 0.3 * noise) * 255).byte()


class Draw:
    """Random tensors of one seed; those of norms are near one."""

    def __init__(self, seed: int = 0, scale: float = 0.25) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._scale = scale

    def __call__(self, *shape: int, mean: float = 0.0) -> Tensor:
        return mean + self._scale * torch.randn(shape, generator=self._generator)

    def like(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Random tensors of the given names and shapes."""
        return {
            key: self(*value.shape, mean=1.0 if "norm" in key.lower() and "weight" in key else 0.0)
            for key, value in sorted(tensors.items())
        }

    def linear(self, name: str, rows: int, columns: int) -> dict[str, Tensor]:
        return {f"{name}.weight": self(rows, columns), f"{name}.bias": self(rows)}

    def norm(self, name: str, width: int) -> dict[str, Tensor]:
        return {f"{name}.weight": self(width, mean=1.0), f"{name}.bias": self(width)}


def save(folder: Path, name: str, tensors: Mapping[str, Tensor]) -> None:
    save_file({k: v.contiguous().clone() for k, v in tensors.items()}, folder / name)


def tiny_clip(hidden_act: str, image_size: int = 16) -> CLIPConfig:
    shared = dict(
        intermediate_size=20,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        projection_dim=8,
        hidden_act=hidden_act,
    )
    text = CLIPTextConfig(
        vocab_size=len(CLIP_VOCABULARY),
        hidden_size=12,
        max_position_embeddings=TEXT_LENGTH,
        bos_token_id=0,
        eos_token_id=CLIP_END,
        **shared,
    )
    vision = CLIPVisionConfig(hidden_size=WIDTH, image_size=image_size, patch_size=8, **shared)
    parts = dict(text_config=text.to_dict(), vision_config=vision.to_dict())
    return CLIPConfig(**parts, projection_dim=8)


def clip_tensors(config: CLIPConfig, seed: int = 10) -> dict[str, Tensor]:
    """Random tensors of a CLIP as transformers saved it before version 5, counters included."""
    from transformers import CLIPModel

    with torch.device("meta"):
        shapes = CLIPModel(config).state_dict()
    tensors = Draw(seed).like(shapes)
    tensors["logit_scale"] = torch.tensor(4.6055)
    tensors["text_model.embeddings.position_ids"] = torch.arange(TEXT_LENGTH)[None]
    return tensors


def save_clip_tokenizer(folder: Path) -> None:
    ids = {token: index for index, token in enumerate(CLIP_VOCABULARY)}
    if is_older("transformers", "5.0"):  # whose tokenizers are made from files
        (folder / "vocab.json").write_text(json.dumps(ids))
        (folder / "merges.txt").write_text("#version: 0.2\n")
        files = [str(folder / name) for name in ("vocab.json", "merges.txt")]
        CLIPTokenizer(*files).save_pretrained(folder)
    else:
        CLIPTokenizer(vocab=ids, merges=[]).save_pretrained(folder)


def clip_ids(text: str) -> list[int]:
    """Token ids of a text, by hand: letters, the last of a word marked, cut with the end kept."""
    ids = [0]
    for word in text.lower().split():
        pieces = _runs(word)
        for piece in pieces:
            ids += [CLIP_VOCABULARY.index(c) for c in piece[:-1]]
            ids.append(CLIP_VOCABULARY.index(f"{piece[-1]}</w>"))
    return [*ids[: TEXT_LENGTH - 1], CLIP_END]


def _runs(word: str) -> list[str]:
    """Split a word into runs of letters, single digits, and runs of other characters."""
    runs: list[str] = []
    for character in word:
        kind = character.isalpha()
        if runs and not character.isdigit() and kind == runs[-1][-1].isalpha():
            runs[-1] += character
        else:
            runs.append(character)
    return runs


def save_bert_tokenizer(folder: Path) -> None:
    ids = {token: index for index, token in enumerate(BERT_VOCABULARY)}
    if is_older("transformers", "5.0"):
        (folder / "vocab.txt").write_text("\n".join(ids) + "\n")
        BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    else:
        BertTokenizer(vocab=ids).save_pretrained(folder)


def bert_ids(text: str, length: int) -> list[int]:
    """Token ids of lower-case words of letters, by hand, cut with the end kept."""
    ids = [BERT_VOCABULARY.index("[CLS]")]
    for word in text.replace("?", " ? ").split():
        ids.append(BERT_VOCABULARY.index(word[0]))
        ids += [BERT_VOCABULARY.index(f"##{c}") for c in word[1:]]
    return [*ids[: length - 1], BERT_VOCABULARY.index("[SEP]")]


def tiny_blip_vision(image_size: int = 16) -> BlipVisionConfig:
    return BlipVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=20,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        image_size=image_size,
        patch_size=8,
        layer_norm_eps=1e-6,
    )


def tiny_blip_text(encoder_hidden_size: int, width: int = 12) -> BlipTextConfig:
    return BlipTextConfig(
        vocab_size=BLIP_START + 2,
        hidden_size=width,
        encoder_hidden_size=encoder_hidden_size,
        intermediate_size=20,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        max_position_embeddings=40,
        bos_token_id=BLIP_START,
        sep_token_id=BERT_VOCABULARY.index("[SEP]"),
    )


def blip_vision_tensors(draw: Draw, positions: int, patch: int = 8) -> dict[str, Tensor]:
    """BLIP's image tower in its authors' keys."""
    stem = "visual_encoder"
    tensors = {
        f"{stem}.cls_token": draw(1, 1, WIDTH),
        f"{stem}.pos_embed": draw(1, 1 + positions, WIDTH),
        f"{stem}.patch_embed.proj.weight": draw(WIDTH, 3, patch, patch),
        f"{stem}.patch_embed.proj.bias": draw(WIDTH),
        **draw.norm(f"{stem}.norm", WIDTH),
    }
    for index in range(2):
        block = f"{stem}.blocks.{index}"
        tensors |= draw.norm(f"{block}.norm1", WIDTH) | draw.norm(f"{block}.norm2", WIDTH)
        tensors |= draw.linear(f"{block}.attn.qkv", 3 * WIDTH, WIDTH)
        tensors |= draw.linear(f"{block}.attn.proj", WIDTH, WIDTH)
        tensors |= draw.linear(f"{block}.mlp.fc1", 20, WIDTH)
        tensors |= draw.linear(f"{block}.mlp.fc2", WIDTH, 20)
    return tensors


def blip_text_tensors(draw: Draw, stem: str, states: int, width: int = 12) -> dict[str, Tensor]:
    """A text tower of BLIP that looks at states of the given width, in its authors' keys."""
    tensors = {
        f"{stem}.embeddings.position_ids": torch.arange(40)[None],
        f"{stem}.embeddings.word_embeddings.weight": draw(BLIP_START + 2, width),
        f"{stem}.embeddings.position_embeddings.weight": draw(40, width),
        **draw.norm(f"{stem}.embeddings.LayerNorm", width),
    }
    for index in range(2):
        layer = f"{stem}.encoder.layer.{index}"
        for attention, inner in (("attention", width), ("crossattention", states)):
            name = f"{layer}.{attention}"
            tensors |= draw.linear(f"{name}.self.query", width, width)
            tensors |= draw.linear(f"{name}.self.key", width, inner)
            tensors |= draw.linear(f"{name}.self.value", width, inner)
            tensors |= draw.linear(f"{name}.output.dense", width, width)
            tensors |= draw.norm(f"{name}.output.LayerNorm", width)
        tensors |= draw.linear(f"{layer}.intermediate.dense", 20, width)
        tensors |= draw.linear(f"{layer}.output.dense", width, 20)
        tensors |= draw.norm(f"{layer}.output.LayerNorm", width)
    return tensors

"""CLIP, BLIP and DINOv2 written plainly in double precision over the tensors of their checkpoints.

Each function reads the key layout its model was published in, one image or text at a time, with
loops where the library has batched kernels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from PIL import Image
from torch import Tensor

Tensors = Mapping[str, Tensor]
Activation = Callable[[Tensor], Tensor]

MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
STD = np.array([0.26862954, 0.26130258, 0.27577711])


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def quick_gelu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-1.702 * x))


def double(tensors: Tensors) -> dict[str, Tensor]:
    return {key: value.double() for key, value in tensors.items()}


def linear(t: Tensors, name: str, x: Tensor) -> Tensor:
    y = x @ t[f"{name}.weight"].T
    return y + t[f"{name}.bias"] if f"{name}.bias" in t else y


def norm(t: Tensors, name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    spread = (centred * centred).mean(-1, keepdim=True)
    return centred / torch.sqrt(spread + eps) * t[f"{name}.weight"] + t[f"{name}.bias"]


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, causal: bool = False) -> Tensor:
    """Queries (L, D), keys and values (M, D) to (L, D), head by head and row by row."""
    width = q.shape[-1] // heads
    out = torch.zeros_like(q)
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        for row in range(len(q)):
            last = row + 1 if causal else len(k)
            weights = (k[:last, part] @ q[row, part] / math.sqrt(width)).softmax(0)
            out[row, part] = weights @ v[:last, part]
    return out


def crop_pixels(image: Tensor, size: int, resample: int = Image.BICUBIC) -> Tensor:
    """uint8 (3, H, W) to CLIP's double (3, S, S); sizes here leave an even remainder to crop."""
    height, width = image.shape[1:]
    picture = Image.fromarray(np.moveaxis(image.numpy(), 0, 2))
    if height < width:
        picture = picture.resize((math.floor(size * width / height), size), resample)
    else:
        picture = picture.resize((size, math.floor(size * height / width)), resample)
    array = np.asarray(picture).astype(np.float64)
    assert (array.shape[0] - size) % 2 == 0
    assert (array.shape[1] - size) % 2 == 0
    top, left = (array.shape[0] - size) // 2, (array.shape[1] - size) // 2
    array = array[top : top + size, left : left + size]
    return torch.from_numpy(np.moveaxis((array / 255 - MEAN) / STD, 2, 0).copy())


def patches(pixels: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolution of non-overlapping patches, (3, S, S) to (P, D), patch by patch."""
    size = weight.shape[-1]
    rows = []
    for top in range(0, pixels.shape[1], size):
        for left in range(0, pixels.shape[2], size):
            patch = pixels[:, top : top + size, left : left + size]
            rows.append((weight * patch).sum((1, 2, 3)) + (0 if bias is None else bias))
    return torch.stack(rows)


def depth(t: Tensors, stem: str) -> int:
    return 1 + max(int(k.removeprefix(stem).split(".")[0]) for k in t if k.startswith(stem))


# CLIP as transformers saves it.


def hf_tower(
    t: Tensors, tower: str, x: Tensor, heads: int, act: Activation, causal: bool
) -> Tensor:
    stem = f"{tower}.encoder.layers."
    for index in range(depth(t, stem)):
        layer = f"{stem}{index}"
        y = norm(t, f"{layer}.layer_norm1", x)
        q, k, v = (linear(t, f"{layer}.self_attn.{name}_proj", y) for name in "qkv")
        x = x + linear(t, f"{layer}.self_attn.out_proj", attend(q, k, v, heads, causal))
        y = norm(t, f"{layer}.layer_norm2", x)
        x = x + linear(t, f"{layer}.mlp.fc2", act(linear(t, f"{layer}.mlp.fc1", y)))
    return x


def hf_vision_input(t: Tensors, pixels: Tensor) -> Tensor:
    stem = "vision_model.embeddings"
    tokens = patches(pixels, t[f"{stem}.patch_embedding.weight"])
    tokens = torch.cat([t[f"{stem}.class_embedding"][None], tokens])
    return norm(t, "vision_model.pre_layrnorm", tokens + t[f"{stem}.position_embedding.weight"])


def hf_image(t: Tensors, pixels: Tensor, heads: int, act: Activation) -> Tensor:
    """Projected, not normalised, image embedding of double (3, S, S)."""
    x = hf_tower(t, "vision_model", hf_vision_input(t, pixels), heads, act, causal=False)
    return norm(t, "vision_model.post_layernorm", x[0]) @ t["visual_projection.weight"].T


def hf_text(t: Tensors, ids: list[int], heads: int, act: Activation) -> Tensor:
    """Projected, not normalised, embedding of token ids whose last is the end token."""
    stem = "text_model.embeddings"
    x = t[f"{stem}.token_embedding.weight"][ids]
    x = x + t[f"{stem}.position_embedding.weight"][: len(ids)]
    x = hf_tower(t, "text_model", x, heads, act, causal=True)
    return norm(t, "text_model.final_layer_norm", x[-1]) @ t["text_projection.weight"].T


def cosine(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum() / torch.sqrt((a * a).sum() * (b * b).sum()))


# CLIP as open_clip saves it.


def open_clip_tower(t: Tensors, stem: str, x: Tensor, heads: int, causal: bool) -> Tensor:
    for index in range(depth(t, stem)):
        layer = f"{stem}{index}"
        y = norm(t, f"{layer}.ln_1", x)
        packed = y @ t[f"{layer}.attn.in_proj_weight"].T + t[f"{layer}.attn.in_proj_bias"]
        width = x.shape[-1]
        q, k, v = packed[:, :width], packed[:, width : 2 * width], packed[:, 2 * width :]
        x = x + linear(t, f"{layer}.attn.out_proj", attend(q, k, v, heads, causal))
        y = norm(t, f"{layer}.ln_2", x)
        x = x + linear(t, f"{layer}.mlp.c_proj", gelu(linear(t, f"{layer}.mlp.c_fc", y)))
    return x


def open_clip_image(t: Tensors, pixels: Tensor, heads: int) -> Tensor:
    tokens = patches(pixels, t["visual.conv1.weight"])
    tokens = torch.cat([t["visual.class_embedding"][None], tokens])
    x = norm(t, "visual.ln_pre", tokens + t["visual.positional_embedding"])
    x = open_clip_tower(t, "visual.transformer.resblocks.", x, heads, causal=False)
    return norm(t, "visual.ln_post", x[0]) @ t["visual.proj"]


def open_clip_text(t: Tensors, ids: list[int], heads: int) -> Tensor:
    x = t["token_embedding.weight"][ids] + t["positional_embedding"][: len(ids)]
    x = open_clip_tower(t, "transformer.resblocks.", x, heads, causal=True)
    return norm(t, "ln_final", x[-1]) @ t["text_projection"]


# BLIP as its authors saved it.


def blip_image(t: Tensors, pixels: Tensor, heads: int) -> Tensor:
    """All image tokens (1 + P, D) of double (3, S, S) in the size of the position embeddings."""
    stem = "visual_encoder"
    conv = f"{stem}.patch_embed.proj"
    tokens = patches(pixels, t[f"{conv}.weight"], t[f"{conv}.bias"])
    x = torch.cat([t[f"{stem}.cls_token"][0], tokens]) + t[f"{stem}.pos_embed"][0]
    for index in range(depth(t, f"{stem}.blocks.")):
        block = f"{stem}.blocks.{index}"
        packed = linear(t, f"{block}.attn.qkv", norm(t, f"{block}.norm1", x, 1e-6))
        q, k, v = packed.chunk(3, -1)
        x = x + linear(t, f"{block}.attn.proj", attend(q, k, v, heads))
        y = norm(t, f"{block}.norm2", x, 1e-6)
        x = x + linear(t, f"{block}.mlp.fc2", gelu(linear(t, f"{block}.mlp.fc1", y)))
    return norm(t, f"{stem}.norm", x, 1e-6)


def _bert_attention(
    t: Tensors, name: str, x: Tensor, states: Tensor, heads: int, causal: bool
) -> Tensor:
    query = linear(t, f"{name}.self.query", x)
    key, value = (linear(t, f"{name}.self.{part}", states) for part in ("key", "value"))
    attended = attend(query, key, value, heads, causal)
    y = linear(t, f"{name}.output.dense", attended) + x
    return norm(t, f"{name}.output.LayerNorm", y, 1e-12)


def bert(
    t: Tensors, stem: str, ids: list[int], states: Tensor, heads: int, causal: bool = False
) -> Tensor:
    """Hidden states (L, D) of unpadded token ids that also look at ``states`` (M, D')."""
    x = t[f"{stem}.embeddings.word_embeddings.weight"][ids]
    x = x + t[f"{stem}.embeddings.position_embeddings.weight"][: len(ids)]
    x = norm(t, f"{stem}.embeddings.LayerNorm", x, 1e-12)
    for index in range(depth(t, f"{stem}.encoder.layer.")):
        layer = f"{stem}.encoder.layer.{index}"
        x = _bert_attention(t, f"{layer}.attention", x, x, heads, causal)
        x = _bert_attention(t, f"{layer}.crossattention", x, states, heads, False)
        y = gelu(linear(t, f"{layer}.intermediate.dense", x))
        x = norm(t, f"{layer}.output.LayerNorm", linear(t, f"{layer}.output.dense", y) + x, 1e-12)
    return x


def blip_first_logits(t: Tensors, start: int, states: Tensor, heads: int) -> Tensor:
    """Logits (V,) of the first answer token of BLIP's decoder after question states (L, D)."""
    x = bert(t, "text_decoder.bert", [start], states, heads, causal=True)[0]
    stem = "text_decoder.cls.predictions"
    x = norm(t, f"{stem}.transform.LayerNorm", gelu(linear(t, f"{stem}.transform.dense", x)), 1e-12)
    return t["text_decoder.bert.embeddings.word_embeddings.weight"] @ x + t[f"{stem}.bias"]


# DINOv2 as the hub has it.


def dinov2(t: Tensors, pixels: Tensor, heads: int) -> Tensor:
    """CLS token (D,) after the last norm of double (3, S, S)."""
    conv = "embeddings.patch_embeddings.projection"
    tokens = patches(pixels, t[f"{conv}.weight"], t[f"{conv}.bias"])
    x = torch.cat([t["embeddings.cls_token"][0], tokens]) + t["embeddings.position_embeddings"][0]
    for index in range(depth(t, "encoder.layer.")):
        layer = f"encoder.layer.{index}"
        y = norm(t, f"{layer}.norm1", x, 1e-6)
        stem = f"{layer}.attention.attention"
        q, k, v = (linear(t, f"{stem}.{part}", y) for part in ("query", "key", "value"))
        y = linear(t, f"{layer}.attention.output.dense", attend(q, k, v, heads))
        x = x + y * t[f"{layer}.layer_scale1.lambda1"]
        y = gelu(linear(t, f"{layer}.mlp.fc1", norm(t, f"{layer}.norm2", x, 1e-6)))
        x = x + linear(t, f"{layer}.mlp.fc2", y) * t[f"{layer}.layer_scale2.lambda1"]
    return norm(t, "layernorm", x, 1e-6)[0]

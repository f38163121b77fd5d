"""HPSv3 written plainly in double precision over the tensors of its checkpoint, in its own keys."""

import math
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from transformers import Qwen2VLConfig

from calibri.rewards.hpsv3_network import rotary_settings

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Sizes:
    hidden: int = 32
    heads: int = 2
    kv_heads: int = 1
    mlp: int = 48
    layers: int = 2
    vision: int = 32
    vision_heads: int = 2
    vision_layers: int = 2

    def config(self, vocab_size: int) -> Qwen2VLConfig:
        return Qwen2VLConfig(
            text_config={
                "vocab_size": vocab_size,
                "hidden_size": self.hidden,
                "intermediate_size": self.mlp,
                "num_hidden_layers": self.layers,
                "num_attention_heads": self.heads,
                "num_key_value_heads": self.kv_heads,
                "rms_norm_eps": 1e-6,
                **rotary_settings(1e6, [2, 3, 3]),
            },
            vision_config={
                "depth": self.vision_layers,
                "embed_dim": self.vision,
                "hidden_size": self.hidden,
                "num_heads": self.vision_heads,
            },
        )


def checkpoint(sizes: Sizes, vocab: int, seed: int) -> dict[str, Tensor]:
    """Random weights under the keys that transformers 4.45 wrote."""
    d, v = sizes.hidden, sizes.vision
    kv = d // sizes.heads * sizes.kv_heads
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocab, d),
        "model.norm.weight": (d,),
        "lm_head.weight": (vocab, d),
        "visual.patch_embed.proj.weight": (v, 3, 2, 14, 14),
    }
    linears = {
        "visual.merger.mlp.0": (4 * v, 4 * v),
        "visual.merger.mlp.2": (d, 4 * v),
        "rm_head.0": (1024, d),
        "rm_head.3": (16, 1024),
        "rm_head.5": (2, 16),
    }
    norms = {"visual.merger.ln_q": v}
    for i in range(sizes.vision_layers):
        at = f"visual.blocks.{i}"
        norms |= {f"{at}.norm1": v, f"{at}.norm2": v}
        linears |= {f"{at}.attn.qkv": (3 * v, v), f"{at}.attn.proj": (v, v)}
        linears |= {f"{at}.mlp.fc1": (4 * v, v), f"{at}.mlp.fc2": (v, 4 * v)}
    for i in range(sizes.layers):
        at = f"model.layers.{i}"
        linears |= {f"{at}.self_attn.q_proj": (d, d)}
        linears |= {f"{at}.self_attn.{x}_proj": (kv, d) for x in "kv"}
        shapes |= {
            f"{at}.self_attn.o_proj.weight": (d, d),
            f"{at}.mlp.gate_proj.weight": (sizes.mlp, d),
            f"{at}.mlp.up_proj.weight": (sizes.mlp, d),
            f"{at}.mlp.down_proj.weight": (d, sizes.mlp),
            f"{at}.input_layernorm.weight": (d,),
            f"{at}.post_attention_layernorm.weight": (d,),
        }
    for name, shape in linears.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for name, width in norms.items():
        shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    generator = torch.Generator().manual_seed(seed)
    return {name: _draw(name, shape, generator) for name, shape in shapes.items()}


def _draw(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    noise = torch.randn(shape, generator=generator)
    if len(shape) == 1:
        return 0.1 * noise + (1.0 if "norm" in name or "ln_q.weight" in name else 0.0)
    return noise * 1.5 / math.sqrt(math.prod(shape[1:]))


class Oracle:
    """Scores one image and one row of token ids; ``w`` are the checkpoint's tensors."""

    def __init__(self, tensors: dict[str, Tensor], sizes: Sizes) -> None:
        self.w = {name: value.double() for name, value in tensors.items()}
        self.sizes = sizes

    def linear(self, x: Tensor, name: str) -> Tensor:
        y = x @ self.w[f"{name}.weight"].T
        return y + self.w[f"{name}.bias"] if f"{name}.bias" in self.w else y

    def layer_norm(self, x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        y = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return y * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def rms_norm(self, x: Tensor, name: str) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * self.w[f"{name}.weight"]

    def image_features(self, image: Image.Image) -> Tensor:
        """One feature per 2 x 2 patches; the patches are visited row by row."""
        rows, columns = image.height // 14, image.width // 14
        flat = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        pixels = flat.view(image.height, image.width, 3).double()
        pixels = (pixels / 255 - torch.tensor(MEAN).double()) / torch.tensor(STD).double()
        # The still image is two equal frames: the two halves of the kernel add up.
        kernel = self.w["visual.patch_embed.proj.weight"].sum(2).permute(0, 2, 3, 1).flatten(1)
        places = [(r, c) for r in range(rows) for c in range(columns)]
        cut = [pixels[14 * r : 14 * r + 14, 14 * c : 14 * c + 14].flatten() for r, c in places]
        x = torch.stack(cut) @ kernel.T
        angles = self._patch_angles(places)
        for i in range(self.sizes.vision_layers):
            x = self._vision_block(x, f"visual.blocks.{i}", angles)
        x = self.layer_norm(x, "visual.merger.ln_q")
        at = {place: x[i] for i, place in enumerate(places)}
        merged = [
            torch.cat([at[r, c], at[r, c + 1], at[r + 1, c], at[r + 1, c + 1]])
            for r in range(0, rows, 2)
            for c in range(0, columns, 2)
        ]
        hidden = torch.nn.functional.gelu(self.linear(torch.stack(merged), "visual.merger.mlp.0"))
        return self.linear(hidden, "visual.merger.mlp.2")

    def _patch_angles(self, places: list[tuple[int, int]]) -> Tensor:
        quarter = self.sizes.vision // self.sizes.vision_heads // 4
        speeds = [10000 ** (-i / quarter) for i in range(quarter)]
        rows = [[r * s for s in speeds] + [c * s for s in speeds] for r, c in places]
        return torch.tensor(rows).double()

    def _vision_block(self, x: Tensor, at: str, angles: Tensor) -> Tensor:
        q, k, v = self.linear(self.layer_norm(x, f"{at}.norm1"), f"{at}.attn.qkv").chunk(3, -1)
        width = self.sizes.vision // self.sizes.vision_heads
        heads = []
        for h in range(self.sizes.vision_heads):
            part = slice(h * width, (h + 1) * width)
            scores = turn(q[:, part], angles) @ turn(k[:, part], angles).T / math.sqrt(width)
            heads.append(scores.softmax(-1) @ v[:, part])
        x = x + self.linear(torch.cat(heads, -1), f"{at}.attn.proj")
        hidden = self.linear(self.layer_norm(x, f"{at}.norm2"), f"{at}.mlp.fc1")
        return x + self.linear(hidden * torch.sigmoid(1.702 * hidden), f"{at}.mlp.fc2")

    def _decoder_layer(self, x: Tensor, at: str, angles: Tensor) -> Tensor:
        normed = self.rms_norm(x, f"{at}.input_layernorm")
        q, k, v = (self.linear(normed, f"{at}.self_attn.{name}_proj") for name in "qkv")
        width = self.sizes.hidden // self.sizes.heads
        later = torch.ones(len(x), len(x)).triu(1).bool()
        heads = []
        for h in range(self.sizes.heads):
            shared = h * self.sizes.kv_heads // self.sizes.heads
            mine = slice(h * width, (h + 1) * width)
            group = slice(shared * width, (shared + 1) * width)
            scores = turn(q[:, mine], angles) @ turn(k[:, group], angles).T / math.sqrt(width)
            heads.append(scores.masked_fill(later, -math.inf).softmax(-1) @ v[:, group])
        x = x + self.linear(torch.cat(heads, -1), f"{at}.self_attn.o_proj")
        normed = self.rms_norm(x, f"{at}.post_attention_layernorm")
        gate = self.linear(normed, f"{at}.mlp.gate_proj")
        gated = gate * torch.sigmoid(gate) * self.linear(normed, f"{at}.mlp.up_proj")
        return x + self.linear(gated, f"{at}.mlp.down_proj")

    def __call__(self, image: Image.Image, ids: list[int], image_id: int, reward_id: int) -> float:
        """Score a resized image and the tokens of its conversation, positions 0, 1, 2, ..."""
        x = self.w["model.embed_tokens.weight"][ids].clone()
        x[[i for i, token in enumerate(ids) if token == image_id]] = self.image_features(image)
        half = self.sizes.hidden // self.sizes.heads // 2
        speeds = torch.tensor([1e6 ** (-i / half) for i in range(half)]).double()
        angles = torch.arange(len(ids)).double()[:, None] * speeds
        for i in range(self.sizes.layers):
            x = self._decoder_layer(x, f"model.layers.{i}", angles)
        hidden = self.rms_norm(x[ids.index(reward_id)], "model.norm")
        hidden = self.linear(hidden, "rm_head.0").clamp(min=0)
        hidden = self.linear(hidden, "rm_head.3").clamp(min=0)
        return float(self.linear(hidden, "rm_head.5")[0])


def turn(x: Tensor, angles: Tensor) -> Tensor:
    """Rotary embedding: channel i and i + half are one complex number, turned by its angle."""
    real, imaginary = x.chunk(2, -1)
    turned = torch.complex(real, imaginary) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([turned.real, turned.imag], -1)

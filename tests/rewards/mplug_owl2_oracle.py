"""Q-Align written plainly in double precision over the tensors of its checkpoint."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

VISION, ABSTRACTOR = "model.vision_model", "model.visual_abstractor"


@dataclass(frozen=True)
class Sizes:
    width: int = 16
    heads: int = 2
    vision_mlp: int = 32
    abstractor_mlp: int = 24
    queries: int = 3
    hidden: int = 24
    mlp: int = 40
    layers: int = 2
    image: int = 28
    vocab: int = 32000
    eps: float = 1e-5

    @property
    def patches(self) -> int:
        return (self.image // 14) ** 2

    def config(self) -> dict[str, object]:
        """What config.json says, in the words of the original."""
        shared = {"hidden_size": self.width, "num_attention_heads": self.heads}
        shared |= {"num_hidden_layers": self.layers}
        vision = {"intermediate_size": self.vision_mlp, "image_size": self.image, "patch_size": 14}
        abstractor = {"intermediate_size": self.abstractor_mlp}
        abstractor |= {"num_learnable_queries": self.queries, "encoder_hidden_size": self.width}
        return {
            "model_type": "mplug_owl2",
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "intermediate_size": self.mlp,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "rms_norm_eps": self.eps,
            "visual_config": {
                "visual_model": shared | vision,
                "visual_abstractor": shared | abstractor,
            },
        }


def checkpoint(sizes: Sizes, seed: int) -> dict[str, Tensor]:
    """Random weights under the keys of the original; norms are small, so that each eps matters."""
    w, d, tokens = sizes.width, sizes.hidden, sizes.patches + 1
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (sizes.vocab, d),
        "lm_head.weight": (sizes.vocab, d),
        "model.norm.weight": (d,),
        f"{VISION}.embeddings.cls_token": (1, 1, w),
        f"{VISION}.embeddings.position_embedding": (1, tokens, w),
        f"{VISION}.embeddings.patch_embed.weight": (w, 3, 14, 14),
        f"{ABSTRACTOR}.query_embeds": (1, sizes.queries, w),
        f"{ABSTRACTOR}.vit_eos": (1, 1, d),
    }
    linears = {f"{ABSTRACTOR}.visual_fc": (d, w)}
    norms = {f"{VISION}.embeddings.pre_layernorm": w, f"{VISION}.post_layernorm": w}
    for i in range(sizes.layers):
        at = f"{VISION}.encoder.layers.{i}"
        linears |= {f"{at}.self_attn.query_key_value": (3 * w, w), f"{at}.self_attn.dense": (w, w)}
        linears |= {f"{at}.mlp.fc1": (sizes.vision_mlp, w), f"{at}.mlp.fc2": (w, sizes.vision_mlp)}
        norms |= {f"{at}.input_layernorm": w, f"{at}.post_attention_layernorm": w}
        at = f"{ABSTRACTOR}.encoder.layers.{i}.crossattention"
        linears |= {f"{at}.attention.{name}": (w, w) for name in ("query", "key", "value")}
        linears |= {f"{at}.output.out_proj": (w, w)}
        linears |= {f"{at}.output.mlp.{name}": (sizes.abstractor_mlp, w) for name in ("w1", "w3")}
        linears |= {f"{at}.output.mlp.w2": (w, sizes.abstractor_mlp)}
        norms |= {f"{at}.norm1": w, f"{at}.normk": w, f"{at}.output.norm2": w}
        norms |= {f"{at}.output.mlp.ffn_ln": sizes.abstractor_mlp}
        shapes |= {f"{at}.attention.q_pos_embed": (sizes.queries, w)}
        shapes |= {f"{at}.attention.k_pos_embed": (tokens, w)}
        at = f"model.layers.{i}"
        shapes |= {f"{at}.self_attn.{name}_proj.weight": (d, d) for name in "qo"}
        for copy in range(2):
            shapes |= {f"{at}.self_attn.{x}_proj.multiway.{copy}.weight": (d, d) for x in "kv"}
            shapes |= {f"{at}.input_layernorm.multiway.{copy}.weight": (d,)}
            shapes |= {f"{at}.post_attention_layernorm.multiway.{copy}.weight": (d,)}
        shapes |= {f"{at}.mlp.{name}_proj.weight": (sizes.mlp, d) for name in ("gate", "up")}
        shapes |= {f"{at}.mlp.down_proj.weight": (d, sizes.mlp)}
    for name, shape in linears.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for name, width in norms.items():
        shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    generator = torch.Generator().manual_seed(seed)
    return {name: _draw(name, shape, generator) for name, shape in shapes.items()}


# Scales under which the inputs of every norm are so small that its epsilon shows in the score.
_SMALL = {
    "embed_tokens.weight": 5e-3,
    "vit_eos": 5e-3,
    "cls_token": 3e-3,
    "position_embedding": 3e-3,
    "patch_embed.weight": 3e-3,
    "post_layernorm.weight": 1e-2,
    "post_layernorm.bias": 0.0,
    "norm1.weight": 1e-2,
    "norm1.bias": 0.0,
    "out_proj.weight": 1e-2,
    "out_proj.bias": 0.0,
    "w1.weight": 6e-2,
    "w3.weight": 6e-2,
    "w1.bias": 0.0,
    "w3.bias": 0.0,
    "visual_fc.weight": 5e-3,
    "visual_fc.bias": 0.0,
    "o_proj.weight": 1e-2,
    "down_proj.weight": 1e-2,
}


def _draw(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    noise = torch.randn(shape, generator=generator)
    scale = next((s for end, s in _SMALL.items() if name.endswith(end)), 1.0)
    if "norm" in name or "ffn_ln" in name:
        centre = 1.0 if name.endswith("weight") else 0.0
        return scale * (centre + 0.2 * noise)
    if len(shape) == 1 or "embed" in name or name.endswith(("vit_eos", "cls_token")):
        return scale * noise * (0.3 if len(shape) == 1 else 1.0)
    return scale * noise * 1.2 / math.sqrt(math.prod(shape[1:]))


class Oracle:
    """Logits of answers after a question about an image; ``w`` are the checkpoint's tensors."""

    def __init__(self, tensors: dict[str, Tensor], sizes: Sizes) -> None:
        self.w = {name: value.double() for name, value in tensors.items()}
        self.sizes = sizes

    def linear(self, x: Tensor, name: str) -> Tensor:
        y = x @ self.w[f"{name}.weight"].T
        return y + self.w[f"{name}.bias"] if f"{name}.bias" in self.w else y

    def norm(self, x: Tensor, name: str, eps: float) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        y = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
        return y * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def rms(self, x: Tensor, name: str) -> Tensor:
        size = (x.square().mean(-1, keepdim=True) + self.sizes.eps).sqrt()
        return x / size * self.w[f"{name}.weight"]

    def vision(self, pixels: Tensor) -> Tensor:
        """Pixels (3, H, W) to tokens (1 + patches, width)."""
        at, side = f"{VISION}.embeddings", self.sizes.image // 14
        kernel = self.w[f"{at}.patch_embed.weight"].flatten(1)
        cut = [
            kernel @ pixels[:, 14 * r : 14 * r + 14, 14 * c : 14 * c + 14].double().flatten()
            for r in range(side)
            for c in range(side)
        ]
        x = torch.stack([self.w[f"{at}.cls_token"][0, 0], *cut])
        x = self.norm(x + self.w[f"{at}.position_embedding"][0], f"{at}.pre_layernorm", 1e-6)
        d = self.sizes.width // self.sizes.heads
        for i in range(self.sizes.layers):
            at = f"{VISION}.encoder.layers.{i}"
            normed = self.norm(x, f"{at}.input_layernorm", 1e-6)
            packed = self.linear(normed, f"{at}.self_attn.query_key_value")
            mixed = []
            for h in range(self.sizes.heads):
                q, k, v = packed[:, 3 * d * h : 3 * d * (h + 1)].split(d, -1)
                mixed.append((q @ k.T / math.sqrt(d)).softmax(-1) @ v)
            x = x + self.linear(torch.cat(mixed, -1), f"{at}.self_attn.dense")
            normed = self.norm(x, f"{at}.post_attention_layernorm", 1e-6)
            hidden = self.linear(normed, f"{at}.mlp.fc1")
            x = x + self.linear(hidden / (1 + (-1.702 * hidden).exp()), f"{at}.mlp.fc2")
        return self.norm(x, f"{VISION}.post_layernorm", 1e-6)

    def abstract(self, seen: Tensor) -> Tensor:
        """Vision tokens to the image tokens of the language model, the end token last."""
        x = self.w[f"{ABSTRACTOR}.query_embeds"][0]
        d = self.sizes.width // self.sizes.heads
        for i in range(self.sizes.layers):
            at = f"{ABSTRACTOR}.encoder.layers.{i}.crossattention"
            x = self.norm(x, f"{at}.norm1", 1e-5)
            both = torch.cat([x, self.norm(seen, f"{at}.normk", 1e-5)])
            own = self.w[f"{at}.attention.q_pos_embed"]
            places = torch.cat([own, self.w[f"{at}.attention.k_pos_embed"]])
            q = self.linear(x + own, f"{at}.attention.query")
            k = self.linear(both + places, f"{at}.attention.key")
            v = self.linear(both, f"{at}.attention.value")
            mixed = []
            for h in range(self.sizes.heads):
                part = slice(h * d, (h + 1) * d)
                scores = q[:, part] @ k[:, part].T / math.sqrt(d)
                mixed.append(scores.softmax(-1) @ v[:, part])
            x = x + self.linear(torch.cat(mixed, -1), f"{at}.output.out_proj")
            normed = self.norm(x, f"{at}.output.norm2", 1e-5)
            gate = self.linear(normed, f"{at}.output.mlp.w1")
            gated = gate / (1 + (-gate).exp()) * self.linear(normed, f"{at}.output.mlp.w3")
            gated = self.norm(gated, f"{at}.output.mlp.ffn_ln", 1e-6)
            x = x + self.linear(gated, f"{at}.output.mlp.w2")
        features = self.linear(x, f"{ABSTRACTOR}.visual_fc")
        return torch.cat([features, self.w[f"{ABSTRACTOR}.vit_eos"][0]])

    def by_kind(self, x: Tensor, name: str, kinds: list[int]) -> Tensor:
        """Each token through the copy of its kind: 0 text, 1 image."""
        apply = self.linear if "proj" in name else self.rms
        rows = [apply(x[i], f"{name}.multiway.{kind}") for i, kind in enumerate(kinds)]
        return torch.stack(rows)

    def __call__(
        self, pixels: Tensor, before: list[int], after: list[int], answers: list[int]
    ) -> Tensor:
        """Normalised pixels (3, H, W) and token ids to the logits of the answers."""
        image, embed = self.abstract(self.vision(pixels)), self.w["model.embed_tokens.weight"]
        x = torch.cat([embed[before], image, embed[after]])
        kinds = [0] * len(before) + [1] * len(image) + [0] * len(after)
        for i in range(self.sizes.layers):
            x = self.layer(x, f"model.layers.{i}", kinds)
        return self.linear(self.rms(x[-1], "model.norm"), "lm_head")[answers]

    def layer(self, x: Tensor, at: str, kinds: list[int]) -> Tensor:
        normed = self.by_kind(x, f"{at}.input_layernorm", kinds)
        q = self.linear(normed, f"{at}.self_attn.q_proj")
        k, v = (self.by_kind(normed, f"{at}.self_attn.{name}_proj", kinds) for name in "kv")
        d = self.sizes.hidden // self.sizes.heads
        later = torch.ones(len(x), len(x)).triu(1).bool()
        mixed = []
        for h in range(self.sizes.heads):
            part = slice(h * d, (h + 1) * d)
            scores = turn(q[:, part]) @ turn(k[:, part]).T / math.sqrt(d)
            mixed.append(scores.masked_fill(later, -math.inf).softmax(-1) @ v[:, part])
        x = x + self.linear(torch.cat(mixed, -1), f"{at}.self_attn.o_proj")
        normed = self.by_kind(x, f"{at}.post_attention_layernorm", kinds)
        gate = self.linear(normed, f"{at}.mlp.gate_proj")
        gated = gate / (1 + (-gate).exp()) * self.linear(normed, f"{at}.mlp.up_proj")
        return x + self.linear(gated, f"{at}.mlp.down_proj")


def turn(x: Tensor) -> Tensor:
    """Rotary embedding: channel i and i + half are one complex number, turned by its position."""
    half = x.shape[-1] // 2
    speeds = torch.tensor([10000 ** (-i / half) for i in range(half)]).double()
    angles = torch.arange(len(x)).double()[:, None] * speeds
    turned = torch.complex(x[:, :half], x[:, half:]) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([turned.real, turned.imag], -1)

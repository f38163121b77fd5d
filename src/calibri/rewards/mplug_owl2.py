"""mPLUG-Owl2 in plain torch, as far as Q-Align needs it: one image in one text, the last logits.

A vision transformer's patches are condensed into a few tokens by cross-attention (the abstractor)
and stand in the text of a LLaMA whose norms, keys and values have two copies: one for text tokens,
one for image tokens (Ye et al. 2023). Libraries no longer hold this architecture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from calibri.errors import RewardError


@dataclass(frozen=True)
class VisionSizes:
    """Vision transformer; the defaults are ViT-L/14 at 448 pixels."""

    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    image_size: int = 448
    patch_size: int = 14

    @property
    def tokens(self) -> int:
        """Patches and the class token."""
        return (self.image_size // self.patch_size) ** 2 + 1


@dataclass(frozen=True)
class AbstractorSizes:
    """Condenses the vision tokens into ``num_learnable_queries`` tokens of the same width."""

    hidden_size: int = 1024
    intermediate_size: int = 2816
    num_hidden_layers: int = 6
    num_attention_heads: int = 16
    num_learnable_queries: int = 64


@dataclass(frozen=True)
class OwlSizes:
    """The whole model; the language model's defaults are those of LLaMA-2-7B."""

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    vision: VisionSizes = field(default_factory=VisionSizes)
    abstractor: AbstractorSizes = field(default_factory=AbstractorSizes)

    @staticmethod
    def from_config(config: Mapping[str, Any]) -> OwlSizes:
        """Read the sizes in a checkpoint's ``config.json``.

        Raises:
            RewardError: one is missing.
        """
        try:
            visual = config["visual_config"]
            return OwlSizes(
                **_pick(OwlSizes, config, {"rope_theta": 10000.0}),
                vision=VisionSizes(**_pick(VisionSizes, visual["visual_model"])),
                abstractor=AbstractorSizes(**_pick(AbstractorSizes, visual["visual_abstractor"])),
            )
        except (KeyError, TypeError) as error:
            raise RewardError(
                f"The checkpoint's config.json is not one of mPLUG-Owl2: {error} is missing or no "
                "number. Use the checkpoint this reward names."
            ) from error


def _pick(cls: type, config: Mapping[str, Any], absent: Mapping[str, Any] | None = None) -> Any:
    names = [f.name for f in fields(cls) if f.name not in ("vision", "abstractor")]
    values = {**(absent or {}), **config}
    for name in names:
        if not isinstance(values[name], int | float):
            raise TypeError(f"'{name}'")
    return {name: values[name] for name in names}


def _heads(x: Tensor, count: int) -> Tensor:
    return x.view(*x.shape[:2], count, -1).transpose(1, 2)


def _attend(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
    return mixed.transpose(1, 2).flatten(2)


class _VisionLayer(nn.Module):
    def __init__(self, sizes: VisionSizes) -> None:
        super().__init__()
        width = sizes.hidden_size
        self.heads = sizes.num_attention_heads
        self.input_layernorm = nn.LayerNorm(width, eps=1e-6)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.dense = nn.Linear(width, width)
        self.post_attention_layernorm = nn.LayerNorm(width, eps=1e-6)
        self.fc1 = nn.Linear(width, sizes.intermediate_size)
        self.fc2 = nn.Linear(sizes.intermediate_size, width)

    def forward(self, x: Tensor) -> Tensor:
        # Query, key and value of one head lie side by side, head after head.
        packed = self.query_key_value(self.input_layernorm(x)).unflatten(-1, (self.heads, 3, -1))
        q, k, v = (part.transpose(1, 2) for part in packed.unbind(3))
        x = x + self.dense(_attend(q, k, v))
        hidden = self.fc1(self.post_attention_layernorm(x))
        result: Tensor = x + self.fc2(hidden * torch.sigmoid(1.702 * hidden))
        return result


class _Vision(nn.Module):
    def __init__(self, sizes: VisionSizes) -> None:
        super().__init__()
        width = sizes.hidden_size
        self.patch_embed = nn.Conv2d(
            3, width, sizes.patch_size, stride=sizes.patch_size, bias=False
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position_embedding = nn.Parameter(torch.zeros(1, sizes.tokens, width))
        self.pre_layernorm = nn.LayerNorm(width, eps=1e-6)
        self.layers = nn.ModuleList(_VisionLayer(sizes) for _ in range(sizes.num_hidden_layers))
        self.post_layernorm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch_embed(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(pixels), -1, -1), patches], 1)
        x = self.pre_layernorm(x + self.position_embedding)
        for layer in self.layers:
            x = layer(x)
        result: Tensor = self.post_layernorm(x)
        return result


class _AbstractorLayer(nn.Module):
    q_pos_embed: Tensor
    k_pos_embed: Tensor

    def __init__(self, sizes: AbstractorSizes, vision_tokens: int) -> None:
        super().__init__()
        width = sizes.hidden_size
        self.heads = sizes.num_attention_heads
        self.norm1, self.normk, self.norm2 = (nn.LayerNorm(width) for _ in range(3))
        self.query, self.key, self.value, self.out_proj = (
            nn.Linear(width, width) for _ in range(4)
        )
        # Fixed sinusoids, one-dimensional for queries, two-dimensional for patches; the checkpoint
        # holds them.
        self.register_buffer("q_pos_embed", torch.zeros(sizes.num_learnable_queries, width))
        self.register_buffer("k_pos_embed", torch.zeros(vision_tokens, width))
        self.w1 = nn.Linear(width, sizes.intermediate_size)
        self.w3 = nn.Linear(width, sizes.intermediate_size)
        self.ffn_ln = nn.LayerNorm(sizes.intermediate_size, eps=1e-6)
        self.w2 = nn.Linear(sizes.intermediate_size, width)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        # The residual starts from the normed queries; positions reach queries and keys only.
        x = self.norm1(x)
        both = torch.cat([x, self.normk(seen)], 1)
        positions = torch.cat([self.q_pos_embed, self.k_pos_embed])
        q = _heads(self.query(x + self.q_pos_embed), self.heads)
        k = _heads(self.key(both + positions), self.heads)
        v = _heads(self.value(both), self.heads)
        x = x + self.out_proj(_attend(q, k, v))
        y = self.norm2(x)
        result: Tensor = x + self.w2(self.ffn_ln(functional.silu(self.w1(y)) * self.w3(y)))
        return result


class _Abstractor(nn.Module):
    def __init__(self, sizes: OwlSizes) -> None:
        super().__init__()
        own, width = sizes.abstractor, sizes.abstractor.hidden_size
        self.query_embeds = nn.Parameter(torch.zeros(1, own.num_learnable_queries, width))
        self.layers = nn.ModuleList(
            _AbstractorLayer(own, sizes.vision.tokens) for _ in range(own.num_hidden_layers)
        )
        self.visual_fc = nn.Linear(width, sizes.hidden_size)
        self.vit_eos = nn.Parameter(torch.zeros(1, 1, sizes.hidden_size))

    def forward(self, seen: Tensor) -> Tensor:
        x = self.query_embeds.expand(len(seen), -1, -1)
        for layer in self.layers:
            x = layer(x, seen)
        return torch.cat([self.visual_fc(x), self.vit_eos.expand(len(seen), -1, -1)], 1)


class _Multiway(nn.ModuleList):
    """Two copies of a module: the first for text tokens, the second for image tokens."""

    def forward(self, x: Tensor, image: slice) -> Tensor:
        text, picture = self
        before, after = x[:, : image.start], x[:, image.stop :]
        return torch.cat([text(before), picture(x[:, image]), text(after)], 1)


class _DecoderLayer(nn.Module):
    def __init__(self, sizes: OwlSizes) -> None:
        super().__init__()
        width, inner = sizes.hidden_size, sizes.intermediate_size
        self.heads = sizes.num_attention_heads
        self.input_layernorm, self.post_attention_layernorm = (
            _Multiway(nn.RMSNorm(width, eps=sizes.rms_norm_eps) for _ in range(2)) for _ in range(2)
        )
        self.k_proj, self.v_proj = (
            _Multiway(nn.Linear(width, width, bias=False) for _ in range(2)) for _ in range(2)
        )
        self.q_proj, self.o_proj = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.gate_proj, self.up_proj = (nn.Linear(width, inner, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor, image: slice, turns: tuple[Tensor, Tensor]) -> Tensor:
        y = self.input_layernorm(x, image)
        q = _rotate(_heads(self.q_proj(y), self.heads), *turns)
        k = _rotate(_heads(self.k_proj(y, image), self.heads), *turns)
        v = _heads(self.v_proj(y, image), self.heads)
        x = x + self.o_proj(_attend(q, k, v, causal=True))
        y = self.post_attention_layernorm(x, image)
        result: Tensor = x + self.down_proj(functional.silu(self.gate_proj(y)) * self.up_proj(y))
        return result


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


class MPlugOwl2(nn.Module):
    """Logits of chosen tokens after a text with one image in it.

    Args:
        sizes: of all parts.
    """

    def __init__(self, sizes: OwlSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.vision_model = _Vision(sizes.vision)
        self.visual_abstractor = _Abstractor(sizes)
        self.embed_tokens = nn.Embedding(sizes.vocab_size, sizes.hidden_size)
        self.layers = nn.ModuleList(_DecoderLayer(sizes) for _ in range(sizes.num_hidden_layers))
        self.norm = nn.RMSNorm(sizes.hidden_size, eps=sizes.rms_norm_eps)
        self.lm_head = nn.Linear(sizes.hidden_size, sizes.vocab_size, bias=False)

    def forward(self, pixels: Tensor, before: Tensor, after: Tensor, answers: Tensor) -> Tensor:
        """Score possible next tokens.

        Args:
            pixels: (N, 3, image_size, image_size), normalised.
            before: (A,) tokens before the image, the beginning-of-sequence token among them.
            after: (B,) tokens after the image.
            answers: (C,) tokens.

        Returns:
            float32 (N, C): the logits of ``answers`` as the next token.
        """
        picture = self.visual_abstractor(self.vision_model(pixels))
        texts = [self.embed_tokens(ids).expand(len(pixels), -1, -1) for ids in (before, after)]
        x = torch.cat([texts[0], picture, texts[1]], 1)
        image = slice(len(before), len(before) + picture.shape[1])
        turns = self._turns(x)
        for layer in self.layers:
            x = layer(x, image, turns)
        logits: Tensor = self.norm(x[:, -1]) @ self.lm_head.weight[answers].T
        return logits.float()

    def _turns(self, x: Tensor) -> tuple[Tensor, Tensor]:
        half = self.sizes.hidden_size // self.sizes.num_attention_heads // 2
        exponents = torch.arange(half, device=x.device, dtype=torch.float32) / half
        positions = torch.arange(x.shape[1], device=x.device, dtype=torch.float32)
        angles = positions[:, None] / self.sizes.rope_theta**exponents
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


_CONTAINERS = {"model", "embeddings", "encoder", "self_attn", "mlp", "crossattention"}
_CONTAINERS |= {"attention", "output", "multiway"}


def rename(key: str) -> str | None:
    """Map a checkpoint key to ``MPlugOwl2``'s, which is flatter; drop computed frequencies."""
    if key.endswith("rotary_emb.inv_freq"):
        return None
    return ".".join(part for part in key.split(".") if part not in _CONTAINERS)

"""A Diffusion Transformer in plain torch, after the DiT paper, that no library knows."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        rows, tokens, width = x.shape
        split = self.qkv(x).reshape(rows, tokens, 3, self.heads, width // self.heads)
        q, k, v = split.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).reshape(rows, tokens, width))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm_a = nn.LayerNorm(width, elementwise_affine=False)
        self.mixer = SelfAttention(width, heads)
        self.norm_b = nn.LayerNorm(width, elementwise_affine=False)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        parts = self.modulation(c)[:, None].chunk(6, dim=-1)
        x = x + parts[2] * self.mixer(self.norm_a(x) * (1 + parts[1]) + parts[0])
        return x + parts[5] * self.mlp(self.norm_b(x) * (1 + parts[4]) + parts[3])


class Head(nn.Module):
    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, channels)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.modulation(c)[:, None].chunk(2, dim=-1)
        return self.out(self.norm(x) * (1 + scale) + shift)


class BareDiT(nn.Module):
    """Latents (rows, 4, 8, 8), times (rows,) and class labels (rows,) to latents."""

    def __init__(self, width: int = 16, depth: int = 2, heads: int = 2) -> None:
        super().__init__()
        self.width = width
        self.patches = nn.Conv2d(4, width, kernel_size=2, stride=2)
        self.times = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.labels = nn.Embedding(5, width)
        self.trunk = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.head = Head(width, 16)

    def forward(self, latents: Tensor, times: Tensor, labels: Tensor) -> Tensor:
        frequencies = torch.exp(-math.log(1e4) * torch.arange(self.width // 2) / self.width)
        angles = times[:, None] * frequencies
        c = self.times(torch.cat([angles.sin(), angles.cos()], dim=1)) + self.labels(labels)
        x = self.patches(latents).flatten(2).transpose(1, 2)
        for block in self.trunk:
            x = block(x, c)
        grid = self.head(x, c).reshape(-1, 4, 4, 4, 2, 2)
        return grid.permute(0, 3, 1, 4, 2, 5).reshape(-1, 4, 8, 8)

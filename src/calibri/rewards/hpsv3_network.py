"""The network of HPSv3: Qwen2-VL without its language head, and a regression head in float32."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch
from packaging.version import Version
from torch import Tensor, nn
from transformers import AutoModel, Qwen2VLConfig

from calibri.rewards.empty_weights import no_init_weights

_HEAD_WIDTHS = (1024, 16, 2)


def rotary_settings(theta: float, sections: list[int]) -> dict[str, Any]:
    """Return the settings of multimodal rotary positions, as the installed transformers has them.

    Args:
        theta: base of the frequencies.
        sections: frequencies for time, height and width.
    """
    rotary = {"rope_type": "default", "mrope_section": sections}
    if Version(version("transformers")) < Version("5.0.0.dev0"):
        return {"rope_theta": theta, "rope_scaling": rotary}
    return {"rope_parameters": rotary | {"rope_theta": theta}}


def published_config(vocab_size: int) -> Qwen2VLConfig:
    """Sizes of Qwen2-VL-7B-Instruct with the vocabulary of a checkpoint."""
    return Qwen2VLConfig(
        text_config={
            "vocab_size": vocab_size,
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "rms_norm_eps": 1e-6,
            **rotary_settings(1e6, [16, 24, 24]),
        },
        vision_config={"depth": 32, "embed_dim": 1280, "hidden_size": 3584, "num_heads": 16},
    )


class HPSv3Network(nn.Module):
    """Backbone and head; ``.to(dtype)`` casts the backbone's weights only.

    The head was trained in float32, and rotary frequencies rounded to bfloat16 are other positions.

    Args:
        config: sizes of the backbone.
        dtype: of the backbone's weights.
    """

    def __init__(self, config: Qwen2VLConfig, dtype: torch.dtype) -> None:
        super().__init__()
        # Billions of random numbers that the checkpoint overwrites would take minutes.
        with no_init_weights():
            self.backbone = AutoModel.from_config(config, dtype=dtype, attn_implementation="sdpa")
        hidden, middle, out = _HEAD_WIDTHS
        self.rm_head = nn.Sequential(
            nn.Linear(config.text_config.hidden_size, hidden),
            nn.ReLU(),
            nn.Dropout(0.05),
            nn.Linear(hidden, middle),
            nn.ReLU(),
            nn.Linear(middle, out),
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> HPSv3Network:
        exact = {id(tensor) for tensor in (*self.rm_head.parameters(), *self.buffers())}

        def guarded(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return tensor.to(moved.device) if id(tensor) in exact else moved

        super()._apply(guarded, recurse)  # type: ignore[no-untyped-call]
        return self

    def forward(self, ids: Tensor, lengths: Tensor, pixels: Tensor, grids: Tensor) -> Tensor:
        """Mean and log-deviation of the score, read at the last token of each row.

        Args:
            ids: (N, L) tokens, padded on the right; with causal attention padding needs no mask.
            lengths: (N,) tokens in each row.
            pixels: (patches of all images, 1176).
            grids: (N, 3) frames, rows and columns of patches of each image.

        Returns:
            float32 (N, 2).
        """
        # The official forward never hands the image grids to the text model, so HPSv3 was trained
        # with plain positions 0..L-1 on all three axes, not with M-RoPE.
        positions = torch.arange(ids.shape[1], device=ids.device).expand(3, *ids.shape)
        hidden = self.backbone(
            input_ids=ids,
            position_ids=positions,
            pixel_values=pixels,
            image_grid_thw=grids,
            use_cache=False,
        ).last_hidden_state
        at_reward = hidden[torch.arange(len(ids), device=ids.device), lengths - 1]
        scores: Tensor = self.rm_head(at_reward.float())
        return scores


def rename(key: str) -> str | None:
    """Map a checkpoint key to the network's, from the layouts before and since transformers 4.52.

    The language head is left out: no score depends on it.
    """
    if key == "lm_head.weight":
        return None
    for old, new in (
        ("model.visual.", "backbone.visual."),
        ("model.language_model.", "backbone.language_model."),
        ("visual.", "backbone.visual."),
        ("model.", "backbone.language_model."),
    ):
        if key.startswith(old):
            return new + key.removeprefix(old)
    return key

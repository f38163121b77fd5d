"""Inputs of text-to-image transformers."""

from __future__ import annotations

from typing import Any

import torch

from tests.pipelines.zoo.specimen import Draw, Inputs


def flux(draw: Draw, **more: Any) -> dict[str, Any]:
    return dict(
        hidden_states=draw.rows(9, 4),
        encoder_hidden_states=draw.rows(5, 16),
        timestep=draw.time(),
        img_ids=torch.zeros(9, 3),
        txt_ids=torch.zeros(5, 3),
        **more,
    )


def guided_flux(draw: Draw) -> dict[str, Any]:
    return flux(draw, pooled_projections=draw.rows(12), guidance=draw.time(3.5))


def flux2(draw: Draw) -> dict[str, Any]:
    return flux(draw) | dict(
        img_ids=torch.zeros(9, 4), txt_ids=torch.zeros(5, 4), guidance=draw.time(3.5)
    )


def sd3(draw: Draw) -> dict[str, Any]:
    return dict(
        hidden_states=draw.rows(4, 8, 8),
        encoder_hidden_states=draw.rows(5, 16),
        pooled_projections=draw.rows(12),
        timestep=draw.time(500),
    )


def captioned(channels: int, size: int = 8, time: float = 500) -> Inputs:
    def inputs(draw: Draw) -> dict[str, Any]:
        return dict(
            hidden_states=draw.rows(channels, size, size),
            encoder_hidden_states=draw.rows(5, 16),
            timestep=draw.time(time),
        )

    return inputs


def sizes(draw: Draw) -> dict[str, Any]:
    size = torch.full((draw.n, 2), 16.0)
    return captioned(4)(draw) | dict(
        original_size=size, target_size=size, crop_coords=torch.zeros(draw.n, 2)
    )


def qwen(draw: Draw) -> dict[str, Any]:
    return dict(
        hidden_states=draw.rows(16, 4),
        encoder_hidden_states=draw.rows(5, 16),
        encoder_hidden_states_mask=draw.ones(5).long(),
        timestep=draw.time(),
        img_shapes=[[(1, 4, 4)]] * draw.n,
    )


def qwen21(draw: Draw) -> dict[str, Any]:
    slots = torch.tensor([False] * 5 + [True] * 4).expand(draw.n, -1)
    return qwen(draw) | dict(img_mask=slots, encoder_hidden_states_mask=None)


def hunyuan_dit(draw: Draw) -> dict[str, Any]:
    angles = draw.shared(16, 8)
    return dict(
        hidden_states=draw.rows(4, 8, 8),
        timestep=draw.time(500),
        encoder_hidden_states=draw.rows(5, 16),
        text_embedding_mask=draw.ones(5),
        encoder_hidden_states_t5=draw.rows(6, 16),
        text_embedding_mask_t5=draw.ones(6),
        image_meta_size=torch.full((draw.n, 6), 16.0),
        style=torch.zeros(draw.n, dtype=torch.long),
        image_rotary_emb=(angles.cos(), angles.sin()),
    )


def lumina_next(draw: Draw) -> dict[str, Any]:
    return dict(
        hidden_states=draw.rows(4, 8, 8),
        timestep=draw.time(),
        encoder_hidden_states=draw.rows(5, 16),
        encoder_mask=draw.ones(5).bool(),
        cross_attention_kwargs={},
        image_rotary_emb=torch.polar(torch.ones(384, 384, 4), draw.shared(384, 384, 4)),
    )


def lumina2(draw: Draw) -> dict[str, Any]:
    return captioned(4)(draw) | dict(encoder_attention_mask=draw.ones(5).bool())


def z_image(draw: Draw) -> dict[str, Any]:
    return dict(
        x=[draw.shared(4, 1, 8, 8) for _ in range(draw.n)],
        t=draw.time(),
        cap_feats=[draw.shared(5, 16) for _ in range(draw.n)],
    )


def hidream(draw: Draw) -> dict[str, Any]:
    return dict(
        hidden_states=draw.rows(4, 8, 8),
        timesteps=draw.time(500),
        encoder_hidden_states_t5=draw.rows(5, 16),
        encoder_hidden_states_llama3=draw.shared(2, draw.n, 5, 16),
        pooled_embeds=draw.rows(12),
    )


def omnigen(draw: Draw) -> dict[str, Any]:
    tokens = 5 + 1 + 16
    return dict(
        hidden_states=draw.rows(4, 8, 8),
        timestep=draw.time(),
        input_ids=torch.randint(0, 30, (draw.n, 5), generator=draw.generator),
        input_img_latents=[],
        input_image_sizes={},
        attention_mask=torch.ones(draw.n, tokens, tokens),
        position_ids=torch.arange(tokens).expand(draw.n, -1),
    )


def ernie(draw: Draw) -> dict[str, Any]:
    return dict(
        hidden_states=draw.rows(4, 4, 4),
        timestep=draw.time(500),
        text_bth=draw.rows(5, 16),
        text_lens=torch.full((draw.n,), 5),
    )


def nucleus(draw: Draw) -> dict[str, Any]:
    return qwen(draw)


def krea(draw: Draw) -> dict[str, Any]:
    return dict(
        hidden_states=draw.rows(16, 4),
        encoder_hidden_states=draw.rows(5, 2, 16),
        timestep=draw.time(),
        position_ids=torch.arange(21)[:, None].expand(-1, 3),
    )


def ideogram(draw: Draw) -> dict[str, Any]:
    return dict(
        hidden_states=draw.rows(21, 4),
        timestep=draw.time(),
        encoder_hidden_states=draw.rows(21, 16),
        position_ids=torch.arange(21)[:, None].expand(draw.n, -1, 3),
        segment_ids=torch.ones(draw.n, 21, dtype=torch.long),
        indicator=torch.tensor([3] * 5 + [2] * 16).expand(draw.n, -1),
    )


def hunyuan_image(draw: Draw) -> dict[str, Any]:
    return captioned(4)(draw) | dict(encoder_attention_mask=draw.ones(5))


def fibo(draw: Draw) -> dict[str, Any]:
    layers = [draw.rows(5, 8) for _ in range(4)]
    return flux(draw, text_encoder_layers=layers)


def glm(draw: Draw) -> dict[str, Any]:
    size = torch.full((draw.n, 2), 16.0)
    return captioned(4)(draw) | dict(
        prior_token_id=torch.zeros(draw.n, 16, dtype=torch.long),
        prior_token_drop=torch.zeros(draw.n, dtype=torch.bool),
        target_size=size,
        crop_coords=torch.zeros(draw.n, 2),
    )

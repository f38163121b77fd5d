"""Inputs of video transformers."""

from __future__ import annotations

from typing import Any

import torch

from tests.pipelines.zoo.specimen import Draw, Inputs


def clip(
    channels: int = 4, frames: int = 2, size: int = 8, time: float = 500, **more: Any
) -> Inputs:
    """Make inputs of a video model: latents, five text tokens and a timestep."""

    def inputs(draw: Draw) -> dict[str, Any]:
        given = dict(
            hidden_states=draw.rows(channels, frames, size, size),
            encoder_hidden_states=draw.rows(5, 16),
            timestep=draw.time(time),
        )
        return given | {k: v(draw) if callable(v) else v for k, v in more.items()}

    return inputs


def cogvideo(draw: Draw) -> dict[str, Any]:
    return dict(
        hidden_states=draw.rows(2, 4, 8, 8),
        encoder_hidden_states=draw.rows(5, 16),
        timestep=draw.time(500),
    )


def mask(draw: Draw) -> torch.Tensor:
    return draw.ones(5)


def helios(draw: Draw) -> dict[str, Any]:
    short, middle, long = (torch.arange(n).expand(draw.n, -1) for n in (1, 2, 4))
    return clip()(draw) | dict(
        indices_hidden_states=torch.arange(7, 9).expand(draw.n, -1),
        indices_latents_history_short=short,
        indices_latents_history_mid=middle,
        indices_latents_history_long=long,
        latents_history_short=draw.rows(4, 1, 8, 8),
        latents_history_mid=draw.rows(4, 2, 8, 8),
        latents_history_long=draw.rows(4, 4, 8, 8),
    )


def framepack(draw: Draw) -> dict[str, Any]:
    return clip()(draw) | dict(
        encoder_attention_mask=draw.ones(5),
        pooled_projections=draw.rows(12),
        guidance=draw.time(3500),
        image_embeds=draw.rows(3, 10),
        indices_latents=torch.arange(2, 4),
        latents_clean=draw.rows(4, 1, 8, 8),
        indices_latents_clean=torch.arange(1),
        latents_history_2x=draw.rows(4, 2, 8, 8),
        indices_latents_history_2x=torch.arange(2),
        latents_history_4x=draw.rows(4, 4, 8, 8),
        indices_latents_history_4x=torch.arange(4),
    )


def far(draw: Draw) -> dict[str, Any]:
    return dict(
        hidden_states=draw.rows(3, 4, 8, 8),
        timestep=draw.ones(3) * 500,
        r_timestep=draw.ones(3) * 250,
        encoder_hidden_states=draw.rows(5, 16),
        chunk_partition=[1, 2],
    )


def anyflow(draw: Draw) -> dict[str, Any]:
    return dict(
        hidden_states=draw.rows(2, 4, 8, 8),
        timestep=draw.ones(2) * 500,
        r_timestep=draw.ones(2) * 250,
        encoder_hidden_states=draw.rows(5, 16),
    )


def animate(draw: Draw) -> dict[str, Any]:
    return dict(
        hidden_states=draw.rows(12, 3, 8, 8),
        timestep=draw.time(500),
        encoder_hidden_states=draw.rows(5, 16),
        encoder_hidden_states_image=draw.rows(4, 16),
        pose_hidden_states=draw.rows(4, 2, 8, 8),
        face_pixel_values=draw.rows(3, 5, 16, 16),
    )


def vace(draw: Draw) -> dict[str, Any]:
    return clip()(draw) | dict(
        control_hidden_states=draw.rows(8, 2, 8, 8), control_hidden_states_scale=torch.ones(2)
    )


def ltx(draw: Draw) -> dict[str, Any]:
    return dict(
        hidden_states=draw.rows(8, 4),
        encoder_hidden_states=draw.rows(5, 16),
        timestep=draw.time(500),
        encoder_attention_mask=draw.ones(5).long(),
        num_frames=2,
        height=2,
        width=2,
    )


def refiner(draw: Draw) -> dict[str, Any]:
    angles = draw.shared(1, 8, 16)
    return dict(
        hidden_states=draw.rows(8, 4),
        encoder_hidden_states=draw.rows(5, 16),
        timestep=draw.ones(8) * draw.time(500)[:, None],
        video_rotary_emb=(angles.cos(), angles.sin()),
        encoder_attention_mask=draw.ones(5).long(),
    )


def ltx2(draw: Draw) -> dict[str, Any]:
    return ltx(draw) | dict(
        audio_hidden_states=draw.rows(6, 4),
        audio_encoder_hidden_states=draw.rows(5, 16),
        audio_encoder_attention_mask=draw.ones(5).long(),
        audio_num_frames=6,
        sigma=draw.time(),
        audio_sigma=draw.time(),
    )


def kandinsky(draw: Draw) -> dict[str, Any]:
    return dict(
        hidden_states=draw.rows(2, 8, 8, 4),
        encoder_hidden_states=draw.rows(5, 16),
        timestep=draw.time(500),
        pooled_projections=draw.rows(12),
        visual_rope_pos=[torch.arange(2), torch.arange(4), torch.arange(4)],
        text_rope_pos=torch.arange(5),
    )


def easy_animate(draw: Draw) -> dict[str, Any]:
    return clip()(draw)


def allegro(draw: Draw) -> dict[str, Any]:
    return clip(attention_mask=lambda d: d.ones(2, 8, 8), encoder_attention_mask=mask)(draw)


def motif(draw: Draw) -> dict[str, Any]:
    return clip(9, encoder_attention_mask=mask)(draw)

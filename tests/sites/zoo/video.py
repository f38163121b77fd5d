"""Video transformers."""

from __future__ import annotations

from typing import Any

import torch

from tests.sites.zoo.specimen import Draw, Inputs, Specimen

_WAN = dict(
    num_attention_heads=2,
    attention_head_dim=12,
    in_channels=4,
    out_channels=4,
    text_dim=16,
    freq_dim=8,
    ffn_dim=32,
    num_layers=2,
    rope_max_seq_len=32,
)
_HUNYUAN = dict(
    in_channels=4,
    out_channels=4,
    num_attention_heads=2,
    attention_head_dim=8,
    num_layers=2,
    num_single_layers=2,
    num_refiner_layers=1,
    patch_size=2,
    patch_size_t=1,
    text_embed_dim=16,
    rope_axes_dim=(4, 2, 2),
)
_COGVIDEO = dict(
    num_attention_heads=2,
    attention_head_dim=8,
    in_channels=4,
    out_channels=4,
    time_embed_dim=8,
    text_embed_dim=16,
    num_layers=2,
    sample_width=8,
    sample_height=8,
    sample_frames=5,
    max_text_seq_length=5,
)
_SANA_VIDEO = dict(
    in_channels=4,
    out_channels=4,
    num_attention_heads=2,
    attention_head_dim=12,
    num_layers=2,
    num_cross_attention_heads=2,
    cross_attention_head_dim=12,
    cross_attention_dim=24,
    caption_channels=16,
    sample_size=4,
    rope_max_seq_len=32,
)


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


def _cogvideo(draw: Draw) -> dict[str, Any]:
    return dict(
        hidden_states=draw.rows(2, 4, 8, 8),
        encoder_hidden_states=draw.rows(5, 16),
        timestep=draw.time(500),
    )


def _mask(draw: Draw) -> torch.Tensor:
    return draw.ones(5)


def _helios(draw: Draw) -> dict[str, Any]:
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


def _framepack(draw: Draw) -> dict[str, Any]:
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


def _far(draw: Draw) -> dict[str, Any]:
    return dict(
        hidden_states=draw.rows(3, 4, 8, 8),
        timestep=draw.ones(3) * 500,
        r_timestep=draw.ones(3) * 250,
        encoder_hidden_states=draw.rows(5, 16),
        chunk_partition=[1, 2],
    )


def _anyflow(draw: Draw) -> dict[str, Any]:
    return dict(
        hidden_states=draw.rows(2, 4, 8, 8),
        timestep=draw.ones(2) * 500,
        r_timestep=draw.ones(2) * 250,
        encoder_hidden_states=draw.rows(5, 16),
    )


def _animate(draw: Draw) -> dict[str, Any]:
    return dict(
        hidden_states=draw.rows(12, 3, 8, 8),
        timestep=draw.time(500),
        encoder_hidden_states=draw.rows(5, 16),
        encoder_hidden_states_image=draw.rows(4, 16),
        pose_hidden_states=draw.rows(4, 2, 8, 8),
        face_pixel_values=draw.rows(3, 5, 16, 16),
    )


def _vace(draw: Draw) -> dict[str, Any]:
    return clip()(draw) | dict(
        control_hidden_states=draw.rows(8, 2, 8, 8), control_hidden_states_scale=torch.ones(2)
    )


def _ltx(draw: Draw) -> dict[str, Any]:
    return dict(
        hidden_states=draw.rows(8, 4),
        encoder_hidden_states=draw.rows(5, 16),
        timestep=draw.time(500),
        encoder_attention_mask=draw.ones(5).long(),
        num_frames=2,
        height=2,
        width=2,
    )


def _refiner(draw: Draw) -> dict[str, Any]:
    angles = draw.shared(1, 8, 16)
    return dict(
        hidden_states=draw.rows(8, 4),
        encoder_hidden_states=draw.rows(5, 16),
        timestep=draw.ones(8) * draw.time(500)[:, None],
        video_rotary_emb=(angles.cos(), angles.sin()),
        encoder_attention_mask=draw.ones(5).long(),
    )


def _ltx2(draw: Draw) -> dict[str, Any]:
    return _ltx(draw) | dict(
        audio_hidden_states=draw.rows(6, 4),
        audio_encoder_hidden_states=draw.rows(5, 16),
        audio_encoder_attention_mask=draw.ones(5).long(),
        audio_num_frames=6,
        sigma=draw.time(),
        audio_sigma=draw.time(),
    )


def _kandinsky(draw: Draw) -> dict[str, Any]:
    return dict(
        hidden_states=draw.rows(2, 8, 8, 4),
        encoder_hidden_states=draw.rows(5, 16),
        timestep=draw.time(500),
        pooled_projections=draw.rows(12),
        visual_rope_pos=[torch.arange(2), torch.arange(4), torch.arange(4)],
        text_rope_pos=torch.arange(5),
    )


def _easy_animate(draw: Draw) -> dict[str, Any]:
    return clip()(draw)


def _allegro(draw: Draw) -> dict[str, Any]:
    return clip(attention_mask=lambda d: d.ones(2, 8, 8), encoder_attention_mask=_mask)(draw)


def _motif(draw: Draw) -> dict[str, Any]:
    return clip(9, encoder_attention_mask=_mask)(draw)


_LTX2 = dict(
    in_channels=4,
    out_channels=4,
    num_attention_heads=2,
    attention_head_dim=8,
    cross_attention_dim=16,
    audio_in_channels=4,
    audio_out_channels=4,
    audio_num_attention_heads=2,
    audio_attention_head_dim=4,
    audio_cross_attention_dim=8,
    num_layers=2,
    caption_channels=16,
    vae_scale_factors=(4, 4, 4),
)
_MOTIF = dict(
    in_channels=9,
    out_channels=4,
    num_attention_heads=2,
    attention_head_dim=8,
    num_layers=2,
    num_single_layers=2,
    text_embed_dim=16,
    rope_axes_dim=(4, 2, 2),
)
_EASY = dict(
    num_attention_heads=2,
    attention_head_dim=16,
    in_channels=4,
    out_channels=4,
    patch_size=2,
    sample_width=8,
    sample_height=8,
    num_layers=2,
    mmdit_layers=1,
    time_embed_dim=8,
    text_embed_dim=16,
)
_JOY = dict(
    in_channels=4,
    hidden_size=16,
    num_attention_heads=2,
    text_dim=16,
    num_layers=2,
    rope_dim_list=[4, 2, 2],
)
_COSMOS = dict(
    in_channels=4,
    out_channels=4,
    num_attention_heads=2,
    attention_head_dim=12,
    num_layers=2,
    text_embed_dim=16,
    adaln_lora_dim=4,
    max_size=(4, 16, 16),
    concat_padding_mask=False,
)

VIDEO = (
    Specimen("WanTransformer3DModel", _WAN, clip()),
    Specimen(
        "WanTransformer3DModel",
        _WAN | dict(image_dim=16, added_kv_proj_dim=24),
        clip(encoder_hidden_states_image=lambda d: d.rows(4, 16)),
        variant="image",
    ),
    Specimen("ChronoEditTransformer3DModel", _WAN | dict(rope_temporal_skip_len=2), clip()),
    Specimen("SkyReelsV2Transformer3DModel", _WAN, clip()),
    Specimen("AnyFlowTransformer3DModel", _WAN, _anyflow),
    Specimen(
        "AnyFlowFARTransformer3DModel",
        _WAN | dict(chunk_partition=(1, 2), full_chunk_limit=2),
        _far,
    ),
    Specimen(
        "HeliosTransformer3DModel",
        {k: v for k, v in _WAN.items() if k != "rope_max_seq_len"} | dict(rope_dim=(4, 4, 4)),
        _helios,
    ),
    Specimen(
        "WanAnimateTransformer3DModel",
        _WAN
        | dict(
            in_channels=12,
            latent_channels=4,
            image_dim=16,
            added_kv_proj_dim=24,
            motion_encoder_channel_sizes={"4": 8, "8": 8, "16": 8},
            motion_encoder_size=16,
            motion_style_dim=8,
            motion_dim=4,
            motion_encoder_dim=8,
            face_encoder_hidden_dim=8,
            face_encoder_num_heads=2,
            inject_face_latents_blocks=2,
        ),
        _animate,
    ),
    Specimen(
        "WanVACETransformer3DModel",
        _WAN | dict(num_layers=3, vace_layers=[0, 2], vace_in_channels=8),
        _vace,
    ),
    Specimen(
        "HunyuanVideoTransformer3DModel",
        _HUNYUAN | dict(pooled_projection_dim=12),
        clip(
            encoder_attention_mask=_mask,
            pooled_projections=lambda d: d.rows(12),
            guidance=lambda d: d.time(3500),
        ),
    ),
    Specimen(
        "HunyuanVideoTransformer3DModel",
        _HUNYUAN | dict(pooled_projection_dim=12, image_condition_type="token_replace"),
        clip(
            encoder_attention_mask=_mask,
            pooled_projections=lambda d: d.rows(12),
            guidance=lambda d: d.time(3500),
        ),
        variant="token_replace",
    ),
    Specimen(
        "HunyuanVideoFramepackTransformer3DModel",
        _HUNYUAN
        | dict(
            pooled_projection_dim=12,
            has_image_proj=True,
            image_proj_dim=10,
            has_clean_x_embedder=True,
        ),
        _framepack,
    ),
    Specimen(
        "HunyuanVideo15Transformer3DModel",
        {k: v for k, v in _HUNYUAN.items() if k != "num_single_layers"}
        | dict(text_embed_2_dim=12, image_embed_dim=10),
        clip(
            encoder_attention_mask=_mask,
            encoder_hidden_states_2=lambda d: d.rows(4, 12),
            encoder_attention_mask_2=lambda d: d.ones(4),
            image_embeds=lambda d: d.rows(3, 10),
        ),
    ),
    Specimen("MotifVideoTransformer3DModel", _MOTIF, _motif),
    Specimen(
        "MotifVideoTransformer3DModel",
        _MOTIF
        | dict(enable_text_cross_attention_dual=True, enable_text_cross_attention_single=True),
        _motif,
        variant="cross",
    ),
    Specimen("CogVideoXTransformer3DModel", _COGVIDEO, _cogvideo),
    Specimen("ConsisIDTransformer3DModel", _COGVIDEO, _cogvideo),
    Specimen("EasyAnimateTransformer3DModel", _EASY, _easy_animate),
    Specimen(
        "EasyAnimateTransformer3DModel",
        _EASY | dict(after_norm=True),
        _easy_animate,
        variant="after_norm",
    ),
    Specimen(
        "MochiTransformer3DModel",
        dict(
            patch_size=2,
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=3,
            pooled_projection_dim=12,
            in_channels=4,
            text_embed_dim=16,
            time_embed_dim=8,
            max_sequence_length=5,
        ),
        clip(encoder_attention_mask=lambda d: d.ones(5).bool()),
    ),
    Specimen(
        "LatteTransformer3DModel",
        dict(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            cross_attention_dim=16,
            sample_size=8,
            patch_size=2,
            activation_fn="gelu-approximate",
            num_embeds_ada_norm=8,
            norm_type="ada_norm_single",
            norm_elementwise_affine=False,
            caption_channels=16,
            video_length=2,
        ),
        clip(),
    ),
    Specimen(
        "AllegroTransformer3DModel",
        dict(
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            cross_attention_dim=24,
            sample_height=8,
            sample_width=8,
            sample_frames=2,
            caption_channels=16,
        ),
        _allegro,
    ),
    Specimen(
        "LTXVideoTransformer3DModel",
        dict(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=8,
            cross_attention_dim=16,
            num_layers=2,
            caption_channels=16,
        ),
        _ltx,
    ),
    Specimen("LTX2VideoTransformer3DModel", _LTX2, _ltx2),
    Specimen(
        "LTX2VideoTransformer3DModel",
        _LTX2
        | dict(
            gated_attn=True, audio_gated_attn=True, cross_attn_mod=True, audio_cross_attn_mod=True
        ),
        _ltx2,
        variant="gated",
    ),
    Specimen("SanaWMLTX2RefinerTransformer3DModel", _LTX2, _refiner),
    Specimen("SanaVideoTransformer3DModel", _SANA_VIDEO, clip()),
    Specimen("CosmosTransformer3DModel", _COSMOS, clip()),
    Specimen(
        "Kandinsky5Transformer3DModel",
        dict(
            in_visual_dim=4,
            in_text_dim=16,
            in_text_dim2=12,
            time_dim=8,
            out_visual_dim=4,
            model_dim=16,
            ff_dim=24,
            num_text_blocks=1,
            num_visual_blocks=2,
            axes_dims=(4, 2, 2),
        ),
        _kandinsky,
    ),
    Specimen("JoyImageEditTransformer3DModel", _JOY, clip()),
    Specimen(
        "JoyImageEditPlusTransformer3DModel",
        _JOY,
        lambda d: (
            clip()(d)
            | dict(hidden_states=d.rows(32, 4, 1, 2, 2), shape_list=[[(1, 4, 4), (1, 4, 4)]] * d.n)
        ),
    ),
    Specimen(
        "Kandinsky6SRTransformer3DModel",
        dict(
            in_visual_dim=4,
            out_visual_dim=4,
            time_dim=8,
            model_dim=16,
            ff_dim=24,
            num_visual_blocks=2,
            axes_dims=(4, 2, 2),
        ),
        lambda d: dict(hidden_states=d.rows(2, 8, 8, 9), timestep=d.time(500)),
    ),
)

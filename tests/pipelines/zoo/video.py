"""Video transformers."""

from __future__ import annotations

from tests.pipelines.zoo.specimen import Specimen
from tests.pipelines.zoo.video_inputs import (
    allegro,
    animate,
    anyflow,
    clip,
    cogvideo,
    easy_animate,
    far,
    framepack,
    helios,
    kandinsky,
    ltx,
    ltx2,
    mask,
    motif,
    refiner,
    vace,
)

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
    Specimen("AnyFlowTransformer3DModel", _WAN, anyflow),
    Specimen(
        "AnyFlowFARTransformer3DModel",
        _WAN | dict(chunk_partition=(1, 2), full_chunk_limit=2),
        far,
    ),
    Specimen(
        "HeliosTransformer3DModel",
        {k: v for k, v in _WAN.items() if k != "rope_max_seq_len"} | dict(rope_dim=(4, 4, 4)),
        helios,
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
        animate,
    ),
    Specimen(
        "WanVACETransformer3DModel",
        _WAN | dict(num_layers=3, vace_layers=[0, 2], vace_in_channels=8),
        vace,
    ),
    Specimen(
        "HunyuanVideoTransformer3DModel",
        _HUNYUAN | dict(pooled_projection_dim=12),
        clip(
            encoder_attention_mask=mask,
            pooled_projections=lambda d: d.rows(12),
            guidance=lambda d: d.time(3500),
        ),
    ),
    Specimen(
        "HunyuanVideoTransformer3DModel",
        _HUNYUAN | dict(pooled_projection_dim=12, image_condition_type="token_replace"),
        clip(
            encoder_attention_mask=mask,
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
        framepack,
    ),
    Specimen(
        "HunyuanVideo15Transformer3DModel",
        {k: v for k, v in _HUNYUAN.items() if k != "num_single_layers"}
        | dict(text_embed_2_dim=12, image_embed_dim=10),
        clip(
            encoder_attention_mask=mask,
            encoder_hidden_states_2=lambda d: d.rows(4, 12),
            encoder_attention_mask_2=lambda d: d.ones(4),
            image_embeds=lambda d: d.rows(3, 10),
        ),
    ),
    Specimen("MotifVideoTransformer3DModel", _MOTIF, motif),
    Specimen(
        "MotifVideoTransformer3DModel",
        _MOTIF
        | dict(enable_text_cross_attention_dual=True, enable_text_cross_attention_single=True),
        motif,
        variant="cross",
    ),
    Specimen("CogVideoXTransformer3DModel", _COGVIDEO, cogvideo),
    Specimen("ConsisIDTransformer3DModel", _COGVIDEO, cogvideo),
    Specimen("EasyAnimateTransformer3DModel", _EASY, easy_animate),
    Specimen(
        "EasyAnimateTransformer3DModel",
        _EASY | dict(after_norm=True),
        easy_animate,
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
        allegro,
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
        ltx,
    ),
    Specimen("LTX2VideoTransformer3DModel", _LTX2, ltx2),
    Specimen(
        "LTX2VideoTransformer3DModel",
        _LTX2
        | dict(
            gated_attn=True, audio_gated_attn=True, cross_attn_mod=True, audio_cross_attn_mod=True
        ),
        ltx2,
        variant="gated",
    ),
    Specimen("SanaWMLTX2RefinerTransformer3DModel", _LTX2, refiner),
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
        kandinsky,
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

"""Audio, omni-modal and remaining transformers."""

from __future__ import annotations

from typing import Any

import torch

from tests.pipelines.zoo.specimen import Draw, Specimen


def _wan_animate_2_cache() -> Any:
    # Imported with the model: an older diffusers has neither.
    from diffusers.models.transformers.transformer_wan_animate_2 import WanAnimate2KVCache

    return WanAnimate2KVCache(2)


def _flux3(draw: Draw) -> dict[str, Any]:
    return dict(
        hidden_states=draw.rows(9, 4),
        encoder_hidden_states=draw.rows(5, 16),
        timestep=draw.time(),
        img_ids=torch.zeros(9, 4),
        txt_ids=torch.zeros(5, 4),
        image_cond_hidden_states=draw.rows(4, 4),
        image_cond_ids=torch.zeros(4, 4),
    )


def _kandinsky6(draw: Draw) -> dict[str, Any]:
    return dict(
        hidden_states=draw.rows(2, 8, 8, 9),
        encoder_hidden_states=draw.rows(5, 16),
        pooled_projections=draw.rows(12),
        timestep=draw.time(500),
        audio_hidden_states=draw.rows(6, 4),
    )


def _stable_audio(draw: Draw) -> dict[str, Any]:
    angles = draw.shared(9, 4)
    return dict(
        hidden_states=draw.rows(4, 8),
        timestep=draw.time(),
        encoder_hidden_states=draw.rows(5, 16),
        global_hidden_states=draw.rows(1, 12),
        rotary_embedding=(angles.cos(), angles.sin()),
    )


def _stable_audio3(draw: Draw) -> dict[str, Any]:
    return dict(
        hidden_states=draw.rows(4, 8),
        timestep=draw.time(),
        encoder_hidden_states=draw.rows(5, 16),
        global_hidden_states=draw.rows(12),
        local_add_cond=draw.rows(5, 8),
    )


def _ace(draw: Draw) -> dict[str, Any]:
    return dict(
        hidden_states=draw.rows(8, 4),
        timestep=draw.time(),
        timestep_r=draw.time(),
        encoder_hidden_states=draw.rows(5, 16),
        context_latents=draw.rows(8, 8),
    )


def _longcat_audio(draw: Draw) -> dict[str, Any]:
    return dict(
        hidden_states=draw.rows(8, 4),
        encoder_hidden_states=draw.rows(5, 16),
        encoder_attention_mask=draw.ones(5).bool(),
        timestep=draw.time(),
        attention_mask=draw.ones(8).bool(),
        latent_cond=draw.rows(8, 4),
    )


def _music3(draw: Draw) -> dict[str, Any]:
    return dict(
        hidden_states=draw.rows(4, 8),
        timestep=draw.time(),
        encoder_hidden_states=draw.rows(8, 16),
    )


def _minimax_h3(draw: Draw) -> dict[str, Any]:
    video, audio, text = torch.arange(8), torch.arange(8, 12), torch.arange(12, 17)
    return dict(
        hidden_states=draw.rows(8, 16),
        audio_hidden_states=draw.rows(4, 4),
        encoder_hidden_states=draw.rows(5, 16),
        timestep=torch.tensor([0.5, 0.0]),
        timestep_indices=torch.tensor([0] * 12 + [1] * 5),
        token_tags=torch.tensor([0] * 8 + [2] * 4 + [1] * 5),
        position_ids=torch.arange(17)[:, None].expand(-1, 3),
        video_indices=video,
        audio_indices=audio,
        text_indices=text,
    )


def _cosmos3(draw: Draw) -> dict[str, Any]:
    return dict(
        input_ids=torch.arange(5),
        text_indexes=torch.arange(5),
        position_ids=torch.arange(13).expand(3, -1),
        und_len=5,
        sequence_length=13,
        vision_tokens=[draw.shared(1, 4, 2, 4, 4)],
        vision_token_shapes=[(2, 2, 2)],
        vision_sequence_indexes=torch.arange(5, 13),
        vision_mse_loss_indexes=torch.arange(5, 13),
        vision_timesteps=torch.full((8,), 500.0),
        vision_noisy_frame_indexes=[torch.arange(2)],
    )


def _sana_wm(draw: Draw) -> dict[str, Any]:
    return dict(
        hidden_states=draw.rows(4, 2, 4, 4),
        timestep=draw.ones(1, 2) * 500,
        encoder_hidden_states=draw.rows(1, 5, 16),
        encoder_attention_mask=draw.ones(5),
        camera_conditions=draw.rows(2, 20),
        chunk_plucker=draw.rows(8, 2, 4, 4),
    )


def _prior(draw: Draw) -> dict[str, Any]:
    return dict(
        hidden_states=draw.rows(8),
        timestep=draw.time(500),
        proj_embedding=draw.rows(8),
        encoder_hidden_states=draw.rows(5, 8),
    )


def _animate2(draw: Draw) -> dict[str, Any]:
    grid = torch.tensor([[2, 4, 4]] * draw.n)
    return dict(
        hidden_states=[draw.shared(4, 2, 8, 8) for _ in range(draw.n)],
        timestep=draw.time(500),
        encoder_hidden_states=[draw.shared(5, 16) for _ in range(draw.n)],
        condition_latents=[draw.shared(8, 2, 8, 8) for _ in range(draw.n)],
        kv_cache=_wan_animate_2_cache(),
        kv_cache_mode="extract",
        seq_len=32,
        offset_grid_sizes=grid,
        encoder_hidden_states_image=draw.rows(4, 1280),
    )


OTHER = (
    Specimen(
        "Flux3Transformer2DModel",
        dict(
            in_channels=4,
            cond_in_channels=4,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=16,
            timestep_channels=8,
            axes_dims_rope=(2, 2, 2, 2),
        ),
        _flux3,
    ),
    Specimen(
        "Kandinsky6Transformer3DModel",
        dict(
            in_visual_dim=4,
            out_visual_dim=4,
            in_text_dim=16,
            in_text_dim2=12,
            time_dim=8,
            model_dim=16,
            ff_dim=24,
            num_text_blocks=1,
            num_visual_blocks=2,
            axes_dims=(4, 2, 2),
            in_audio_dim=4,
            out_audio_dim=4,
            model_dim_a=16,
            time_dim_a=8,
            ff_dim_a=24,
            axes_dims_a=(4, 2, 2),
        ),
        _kandinsky6,
    ),
    Specimen(
        "Cosmos3OmniTransformer",
        dict(
            dtype="float32",
            head_dim=8,
            hidden_size=16,
            intermediate_size=24,
            latent_channel=4,
            num_attention_heads=2,
            num_hidden_layers=2,
            num_key_value_heads=1,
            patch_latent_dim=16,
            rope_axes_dim=(2, 1, 1),
            vocab_size=32,
        ),
        _cosmos3,
        batched=False,
    ),
    Specimen(
        "MiniMaxH3Transformer3DModel",
        dict(
            num_attention_heads=2,
            attention_head_dim=12,
            hidden_size=24,
            num_layers=2,
            num_refiner_layers=1,
            ffn_dim=24,
            in_channels=4,
            audio_in_channels=4,
            text_dim=16,
            freq_dim=8,
            time_embed_hidden_dim=16,
            time_embed_dim=8,
            rope_freq_dim=2,
        ),
        _minimax_h3,
    ),
    Specimen(
        "SanaWMTransformer3DModel",
        dict(
            in_channels=4,
            num_layers=2,
            hidden_size=16,
            num_attention_heads=2,
            softmax_every_n=2,
            linear_head_dim=8,
            chunk_plucker_channels=8,
            chunk_plucker_post_attn_blocks=2,
            caption_channels=16,
            image_size=64,
        ),
        _sana_wm,
    ),
    Specimen(
        "StableAudioDiTModel",
        dict(
            sample_size=8,
            in_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            num_key_value_attention_heads=1,
            out_channels=4,
            cross_attention_dim=16,
            time_proj_dim=8,
            global_states_input_dim=12,
            cross_attention_input_dim=16,
        ),
        _stable_audio,
    ),
    Specimen(
        "StableAudio3DiTModel",
        dict(
            io_channels=4,
            embed_dim=16,
            depth=2,
            num_heads=2,
            cond_token_dim=16,
            global_cond_dim=12,
            local_add_cond_dim=5,
            timestep_features_dim=8,
            num_memory_tokens=2,
        ),
        _stable_audio3,
    ),
    Specimen(
        "AceStepTransformer1DModel",
        dict(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            in_channels=12,
            audio_acoustic_hidden_dim=4,
            sliding_window=4,
        ),
        _ace,
    ),
    Specimen(
        "LongCatAudioDiTTransformer",
        dict(dit_dim=16, dit_depth=2, dit_heads=2, dit_text_dim=16, latent_dim=4),
        _longcat_audio,
    ),
    Specimen(
        "MiniMaxMusic3Transformer1DModel",
        dict(
            in_channels=4,
            condition_dim=16,
            num_layers=2,
            num_attention_heads=2,
            attention_head_dim=8,
            ff_inner_dim=24,
            rotary_dim=4,
            fourier_embedding_dim=8,
        ),
        _music3,
    ),
    Specimen(
        "Transformer2DModel",
        dict(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            sample_size=8,
            patch_size=2,
            num_embeds_ada_norm=8,
            norm_type="ada_norm_zero",
            norm_elementwise_affine=False,
        ),
        lambda d: dict(
            hidden_states=d.rows(4, 8, 8), timestep=d.time(500), class_labels=torch.arange(d.n)
        ),
        variant="patches",
    ),
    Specimen(
        "WanAnimate2Transformer3DModel",
        dict(
            text_len=5,
            in_dim=12,
            dim=24,
            ffn_dim=32,
            freq_dim=8,
            text_dim=16,
            out_dim=4,
            num_heads=2,
            num_layers=2,
        ),
        _animate2,
    ),
    Specimen(
        "PriorTransformer",
        dict(
            num_attention_heads=2,
            attention_head_dim=4,
            num_layers=2,
            embedding_dim=8,
            num_embeddings=5,
            additional_embeddings=4,
        ),
        _prior,
    ),
)

"""Text-to-image transformers."""

from __future__ import annotations

import torch

from tests.sites.zoo.specimen import Draw, Specimen

_FLUX = dict(
    patch_size=1,
    in_channels=4,
    num_layers=2,
    num_single_layers=2,
    attention_head_dim=8,
    num_attention_heads=2,
    joint_attention_dim=16,
    axes_dims_rope=(2, 2, 4),
)


def _flux(draw: Draw, **more: object) -> dict[str, object]:
    return dict(
        hidden_states=draw.rows(9, 4),
        encoder_hidden_states=draw.rows(5, 16),
        timestep=draw.time(),
        img_ids=torch.zeros(9, 3),
        txt_ids=torch.zeros(5, 3),
        **more,
    )


def _guided_flux(draw: Draw) -> dict[str, object]:
    return _flux(draw, pooled_projections=draw.rows(12), guidance=draw.time(3.5))


def _flux2(draw: Draw) -> dict[str, object]:
    return _flux(draw) | dict(
        img_ids=torch.zeros(9, 4), txt_ids=torch.zeros(5, 4), guidance=draw.time(3.5)
    )


def _sd3(draw: Draw) -> dict[str, object]:
    return dict(
        hidden_states=draw.rows(4, 8, 8),
        encoder_hidden_states=draw.rows(5, 16),
        pooled_projections=draw.rows(12),
        timestep=draw.time(500),
    )


def _captioned(channels: int, size: int = 8, time: float = 500) -> object:
    def inputs(draw: Draw) -> dict[str, object]:
        return dict(
            hidden_states=draw.rows(channels, size, size),
            encoder_hidden_states=draw.rows(5, 16),
            timestep=draw.time(time),
        )

    return inputs


def _sizes(draw: Draw) -> dict[str, object]:
    size = torch.full((draw.n, 2), 16.0)
    return _captioned(4)(draw) | dict(
        original_size=size, target_size=size, crop_coords=torch.zeros(draw.n, 2)
    )


def _qwen(draw: Draw) -> dict[str, object]:
    return dict(
        hidden_states=draw.rows(16, 4),
        encoder_hidden_states=draw.rows(5, 16),
        encoder_hidden_states_mask=draw.ones(5).long(),
        timestep=draw.time(),
        img_shapes=[[(1, 4, 4)]] * draw.n,
    )


def _qwen21(draw: Draw) -> dict[str, object]:
    slots = torch.tensor([False] * 5 + [True] * 4).expand(draw.n, -1)
    return _qwen(draw) | dict(img_mask=slots, encoder_hidden_states_mask=None)


def _hunyuan_dit(draw: Draw) -> dict[str, object]:
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


def _lumina_next(draw: Draw) -> dict[str, object]:
    return dict(
        hidden_states=draw.rows(4, 8, 8),
        timestep=draw.time(),
        encoder_hidden_states=draw.rows(5, 16),
        encoder_mask=draw.ones(5).bool(),
        cross_attention_kwargs={},
        image_rotary_emb=torch.polar(torch.ones(384, 384, 4), draw.shared(384, 384, 4)),
    )


def _lumina2(draw: Draw) -> dict[str, object]:
    return _captioned(4)(draw) | dict(encoder_attention_mask=draw.ones(5).bool())


def _z_image(draw: Draw) -> dict[str, object]:
    return dict(
        x=[draw.shared(4, 1, 8, 8) for _ in range(draw.n)],
        t=draw.time(),
        cap_feats=[draw.shared(5, 16) for _ in range(draw.n)],
    )


def _hidream(draw: Draw) -> dict[str, object]:
    return dict(
        hidden_states=draw.rows(4, 8, 8),
        timesteps=draw.time(500),
        encoder_hidden_states_t5=draw.rows(5, 16),
        encoder_hidden_states_llama3=draw.shared(2, draw.n, 5, 16),
        pooled_embeds=draw.rows(12),
    )


def _omnigen(draw: Draw) -> dict[str, object]:
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


def _ernie(draw: Draw) -> dict[str, object]:
    return dict(
        hidden_states=draw.rows(4, 4, 4),
        timestep=draw.time(500),
        text_bth=draw.rows(5, 16),
        text_lens=torch.full((draw.n,), 5),
    )


def _nucleus(draw: Draw) -> dict[str, object]:
    return _qwen(draw)


def _krea(draw: Draw) -> dict[str, object]:
    return dict(
        hidden_states=draw.rows(16, 4),
        encoder_hidden_states=draw.rows(5, 2, 16),
        timestep=draw.time(),
        position_ids=torch.arange(21)[:, None].expand(-1, 3),
    )


def _ideogram(draw: Draw) -> dict[str, object]:
    return dict(
        hidden_states=draw.rows(21, 4),
        timestep=draw.time(),
        encoder_hidden_states=draw.rows(21, 16),
        position_ids=torch.arange(21)[:, None].expand(draw.n, -1, 3),
        segment_ids=torch.ones(draw.n, 21, dtype=torch.long),
        indicator=torch.tensor([3] * 5 + [2] * 16).expand(draw.n, -1),
    )


def _hunyuan_image(draw: Draw) -> dict[str, object]:
    return _captioned(4)(draw) | dict(encoder_attention_mask=draw.ones(5))


def _fibo(draw: Draw) -> dict[str, object]:
    layers = [draw.rows(5, 8) for _ in range(4)]
    return _flux(draw, text_encoder_layers=layers)


def _glm(draw: Draw) -> dict[str, object]:
    size = torch.full((draw.n, 2), 16.0)
    return _captioned(4)(draw) | dict(
        prior_token_id=torch.zeros(draw.n, 16, dtype=torch.long),
        prior_token_drop=torch.zeros(draw.n, dtype=torch.bool),
        target_size=size,
        crop_coords=torch.zeros(draw.n, 2),
    )


_QWEN = dict(
    patch_size=2,
    in_channels=4,
    out_channels=1,
    num_layers=2,
    attention_head_dim=8,
    num_attention_heads=2,
    joint_attention_dim=16,
    axes_dims_rope=(2, 2, 4),
)
_COGVIEW = dict(
    patch_size=2,
    in_channels=4,
    out_channels=4,
    num_layers=2,
    attention_head_dim=8,
    num_attention_heads=2,
    text_embed_dim=16,
    time_embed_dim=8,
    condition_dim=4,
)
_SD3 = dict(
    sample_size=8,
    patch_size=2,
    in_channels=4,
    out_channels=4,
    num_layers=3,
    attention_head_dim=8,
    num_attention_heads=2,
    joint_attention_dim=16,
    caption_projection_dim=16,
    pooled_projection_dim=12,
    pos_embed_max_size=8,
    qk_norm="rms_norm",
)

IMAGE = (
    Specimen(
        "FluxTransformer2DModel",
        _FLUX | dict(pooled_projection_dim=12, guidance_embeds=True),
        _guided_flux,
    ),
    Specimen("BriaTransformer2DModel", _FLUX, _flux),
    Specimen("BriaFiboTransformer2DModel", _FLUX | dict(text_encoder_dim=8), _fibo),
    Specimen("LongCatImageTransformer2DModel", _FLUX | dict(pooled_projection_dim=16), _flux),
    Specimen("OvisImageTransformer2DModel", _FLUX | dict(out_channels=4), _flux),
    Specimen(
        "ChromaTransformer2DModel",
        _FLUX
        | dict(approximator_num_channels=8, approximator_hidden_dim=16, approximator_layers=1),
        lambda d: _flux(d, attention_mask=d.ones(14)),
    ),
    Specimen(
        "Flux2Transformer2DModel",
        _FLUX | dict(axes_dims_rope=(2, 2, 2, 2), timestep_guidance_channels=8),
        _flux2,
    ),
    Specimen("SD3Transformer2DModel", _SD3, _sd3),
    Specimen(
        "SD3Transformer2DModel", _SD3 | dict(dual_attention_layers=(0, 1)), _sd3, variant="dual"
    ),
    Specimen(
        "AuraFlowTransformer2DModel",
        dict(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_mmdit_layers=2,
            num_single_dit_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=16,
            caption_projection_dim=16,
            pos_embed_max_size=64,
        ),
        _captioned(4, time=0.5),
    ),
    Specimen("QwenImageTransformer2DModel", _QWEN, _qwen),
    Specimen(
        "QwenImage21Transformer2DModel",
        dict(
            patch_size=1,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            context_in_dim=16,
            axes_dims_rope=(2, 2, 4),
        ),
        _qwen21,
    ),
    Specimen(
        "NucleusMoEImageTransformer2DModel",
        dict(
            patch_size=2,
            in_channels=4,
            out_channels=1,
            num_layers=5,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=16,
            axes_dims_rope=(2, 2, 4),
            num_experts=2,
            moe_intermediate_dim=8,
            mlp_ratio=16.0,
            capacity_factors=2.0,
        ),
        _nucleus,
    ),
    Specimen(
        "HiDreamImageTransformer2DModel",
        dict(
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            caption_channels=[16, 16],
            text_emb_dim=12,
            num_routed_experts=2,
            num_activated_experts=1,
            axes_dims_rope=(4, 2, 2),
            max_resolution=(16, 16),
            llama_layers=[0, 1],
        ),
        _hidream,
        row_axis=dict(encoder_hidden_states_llama3=1),
    ),
    Specimen(
        "DiTTransformer2DModel",
        dict(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            num_layers=2,
            sample_size=8,
            patch_size=2,
            num_embeds_ada_norm=8,
        ),
        lambda d: dict(
            hidden_states=d.rows(4, 8, 8), timestep=d.time(500), class_labels=torch.arange(d.n)
        ),
    ),
    Specimen(
        "PixArtTransformer2DModel",
        dict(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            out_channels=8,
            num_layers=2,
            cross_attention_dim=16,
            sample_size=8,
            caption_channels=16,
        ),
        lambda d: (
            _captioned(4)(d) | dict(added_cond_kwargs=dict(resolution=None, aspect_ratio=None))
        ),
    ),
    Specimen(
        "SanaTransformer2DModel",
        dict(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=2,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=16,
            sample_size=8,
        ),
        _captioned(4),
        # The weights of seed 0 amplify rounding tenfold, in this linear attention.
        seed=1,
    ),
    Specimen(
        "HunyuanDiT2DModel",
        dict(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            patch_size=2,
            sample_size=8,
            hidden_size=16,
            num_layers=4,
            cross_attention_dim=16,
            cross_attention_dim_t5=16,
            pooled_projection_dim=16,
            text_len=5,
            text_len_t5=6,
        ),
        _hunyuan_dit,
    ),
    Specimen(
        "LuminaNextDiT2DModel",
        dict(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            hidden_size=16,
            num_layers=2,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=16,
            cross_attention_dim=16,
        ),
        _lumina_next,
    ),
    Specimen(
        "Lumina2Transformer2DModel",
        dict(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            hidden_size=16,
            num_layers=2,
            num_refiner_layers=1,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=16,
            axes_dim_rope=(4, 2, 2),
            axes_lens=(32, 16, 16),
            cap_feat_dim=16,
        ),
        _lumina2,
    ),
    Specimen(
        "ZImageTransformer2DModel",
        dict(
            in_channels=4,
            dim=16,
            n_layers=2,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=16,
            axes_dims=[4, 2, 2],
            axes_lens=[64, 16, 16],
        ),
        _z_image,
    ),
    Specimen(
        "CogView3PlusTransformer2DModel",
        _COGVIEW | dict(pos_embed_max_size=8, sample_size=8),
        _sizes,
    ),
    Specimen("CogView4Transformer2DModel", _COGVIEW | dict(rope_axes_dim=(16, 16)), _sizes),
    Specimen(
        "GlmImageTransformer2DModel", _COGVIEW | dict(prior_vq_quantizer_codebook_size=8), _glm
    ),
    Specimen(
        "OmniGenTransformer2DModel",
        dict(
            in_channels=4,
            hidden_size=16,
            num_attention_heads=2,
            num_key_value_heads=2,
            intermediate_size=32,
            num_layers=2,
            pad_token_id=0,
            vocab_size=32,
            max_position_embeddings=64,
            original_max_position_embeddings=64,
            pos_embed_max_size=8,
            rope_scaling=dict(long_factor=[1.0] * 4, short_factor=[1.0] * 4),
        ),
        _omnigen,
    ),
    Specimen(
        "ErnieImageTransformer2DModel",
        dict(
            hidden_size=16,
            num_attention_heads=2,
            num_layers=2,
            ffn_hidden_size=24,
            in_channels=4,
            out_channels=4,
            text_in_dim=16,
            rope_axes_dim=(2, 2, 4),
        ),
        _ernie,
    ),
    Specimen(
        "PRXTransformer2DModel",
        dict(
            in_channels=4,
            patch_size=2,
            context_in_dim=16,
            hidden_size=16,
            num_heads=2,
            depth=2,
            axes_dim=[4, 4],
        ),
        _captioned(4, time=0.5),
    ),
    Specimen(
        "Krea2Transformer2DModel",
        dict(
            in_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            num_key_value_heads=1,
            intermediate_size=24,
            timestep_embed_dim=8,
            text_hidden_dim=16,
            num_text_layers=2,
            text_num_attention_heads=2,
            text_num_key_value_heads=2,
            text_intermediate_size=24,
            num_layerwise_text_blocks=1,
            num_refiner_text_blocks=1,
            axes_dims_rope=(4, 2, 2),
        ),
        _krea,
    ),
    Specimen(
        "Ideogram4Transformer2DModel",
        dict(
            in_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            intermediate_size=24,
            adaln_dim=8,
            llm_features_dim=16,
            mrope_section=(2, 1, 1),
        ),
        _ideogram,
    ),
    Specimen(
        "HunyuanImageTransformer2DModel",
        dict(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=2,
            num_single_layers=2,
            num_refiner_layers=1,
            text_embed_dim=16,
            rope_axes_dim=(4, 4),
        ),
        _hunyuan_image,
    ),
    Specimen(
        "BriaFibo2Transformer2DModel",
        dict(
            in_channels=4,
            dim=32,
            n_layers=3,
            n_refiner_layers=1,
            n_heads=4,
            cap_feat_dim=16,
            injection_layer_ids=(1,),
            perceiver_num_layers=1,
            min_num_gist_tokens=4,
            max_num_gist_tokens=8,
            gist_step=2,
            gist_min_text_len=4,
            gist_max_text_len=32,
            axes_dims=(4, 2, 2),
            axes_lens=(64, 16, 16),
        ),
        lambda d: _captioned(4, time=0.5)(d) | dict(encoder_hidden_states=d.rows(2, 5, 16)),
    ),
)

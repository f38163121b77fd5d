"""Pipelines that have two transformers, with tiny random components."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from torch import Tensor, nn
from transformers import Qwen3VLTextConfig, Qwen3VLTextModel

from tests.needs import of_diffusers
from tests.pipelines.zoo import ZOO
from tests.sampling.pipelines import CASES, Tokenizer
from tests.tiny import randomise

_WAN = next(case for case in CASES if case.name == "WanPipeline")
_SPECIMEN = next(specimen for specimen in ZOO if specimen.model_class == _WAN.transformer)


def wan_2_2(boundary_ratio: float | None = 0.75) -> Any:
    """Wan 2.2: the first of three steps with one transformer, the others with the other."""
    second = randomise(type(_SPECIMEN.model())(**_SPECIMEN.config), seed=7)
    return _WAN.build(transformer_2=second, boundary_ratio=boundary_ratio)


def sample_wan(pipe: Any, guidance_scale: float = 3.0) -> Tensor:
    return _sampled(pipe, negative_prompt="ugly", guidance_scale=guidance_scale, **_WAN.call)


class _QwenText(nn.Module):
    """The language model of a Qwen3-VL, tiny, with its real number of layers."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self) -> None:
        super().__init__()
        sizes = dict(vocab_size=64, hidden_size=4, intermediate_size=4, head_dim=8)
        heads = dict(num_hidden_layers=36, num_attention_heads=1, num_key_value_heads=1)
        rope = dict(rope_type="default", mrope_section=[2, 1, 1], rope_theta=1e4)
        config = Qwen3VLTextConfig(
            **sizes, **heads, max_position_embeddings=64, rope_parameters=rope
        )
        self.language_model = randomise(Qwen3VLTextModel(config), seed=3)


class _Decoder(nn.Module):
    """Shows the mean of the latent channels."""

    device, dtype = torch.device("cpu"), torch.float32
    config = SimpleNamespace(block_out_channels=(1, 1, 1, 1), batch_norm_eps=0.0)

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(4)

    def decode(self, latents: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        return (latents.mean(1, keepdim=True).repeat_interleave(3, dim=1) / 4,)


def ideogram_4() -> Any:
    """Ideogram 4: one transformer for the prompt, one for the unconditional branch."""
    first, second = (
        randomise(
            of_diffusers("Ideogram4Transformer2DModel")(
                in_channels=4,
                num_layers=2,
                attention_head_dim=8,
                num_attention_heads=2,
                intermediate_size=24,
                adaln_dim=8,
                llm_features_dim=52,
                mrope_section=(2, 1, 1),
            ),
            seed,
        )
        for seed in (0, 1)
    )
    pipe = of_diffusers("Ideogram4Pipeline")(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=_Decoder(),
        text_encoder=_QwenText(),
        tokenizer=Tokenizer(),
        transformer=first,
        unconditional_transformer=second,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sample_ideogram(pipe: Any, guidance_scale: float = 3.0) -> Tensor:
    size = dict(height=64, width=64, max_sequence_length=16)
    return _sampled(pipe, guidance_scale=guidance_scale, guidance_schedule=None, **size)


def _sampled(pipe: Any, **options: Any) -> Tensor:
    images: Tensor = pipe(
        prompt="a red circle",
        num_inference_steps=3,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
        return_dict=False,
        **options,
    )[0]
    assert images.isfinite().all()
    return images

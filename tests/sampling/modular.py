"""Modular pipelines of diffusers around tiny random models."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from tests.needs import of_diffusers
from tests.pipelines.zoo import ZOO
from tests.sampling.pipelines import (
    CLIP_PAIR,
    ProjectedTextEncoder,
    TextEncoder,
    Tokenizer,
)


class Letters(Tokenizer):
    """One token per letter: of a template as many as the real tokenizer makes, or more."""

    def __call__(self, text: Any, **options: Any) -> Any:
        texts = [text] if isinstance(text, str) else text
        return super().__call__([" ".join(each.replace(" ", "_")) for each in texts], **options)


class Deep(TextEncoder):
    """Returns as many hidden states as a large language model."""

    def forward(self, input_ids: Tensor, *args: Any, **options: Any) -> Any:
        out = super().forward(input_ids)
        out.hidden_states = out.hidden_states[:1] * 40
        return out


@dataclass(frozen=True)
class ModularCase:
    """A modular pipeline and how to call it.

    Attributes:
        name: of the class of its blocks.
        transformer: class of its transformer.
        call: arguments of the pipeline besides the prompts.
        parts: further components.
        config: arguments of the transformer that differ from its specimen's.
        guided: whether a guider is among its components.
        shift: whether its scheduler has a shift for each size.
        without: further blocks that are left out.
        negative: whether a call takes a negative prompt.
    """

    name: str
    transformer: str
    call: dict[str, Any] = field(default_factory=dict)
    parts: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    guided: bool = True
    negative: bool = True
    shift: bool = False
    without: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        return self.name.removesuffix("Blocks").removesuffix("Auto")

    def build(self, **parts: Any) -> Any:
        """Build the pipeline."""
        found = next(s for s in ZOO if s.model_class == self.transformer)
        specimen = replace(found, config=found.config | self.config)
        blocks = of_diffusers(self.name)()
        for name in ("decode", *self.without):
            blocks.sub_blocks.pop(name)
        pipe = blocks.init_pipeline()
        pipe.update_components(
            transformer=specimen.model(),
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=self.shift),
            **(dict(text_encoder=TextEncoder(), tokenizer=Tokenizer()) | self.parts | parts),
        )
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def sample(self, pipe: Any, output: str = "latents", **more: Any) -> Any:
        """Sample latents with fixed noise."""
        negative = dict(negative_prompt="ugly") if self.negative else {}
        return pipe(
            prompt="a red circle",
            generator=torch.Generator().manual_seed(0),
            output=output,
            **dict(num_inference_steps=3) | negative | self.call | more,
        )


SIZE = dict(height=16, width=16)


class Chat:
    """The processor of a language model: a tokenizer inside, a template around."""

    tokenizer = Letters()

    def apply_chat_template(self, messages: Any, **options: Any) -> str:
        return str(messages[0]["content"])


class Conditioner(nn.Module):
    """Stands for Anima's conditioner, which makes tokens of Qwen's out of T5's."""

    dtype = torch.float32

    def forward(self, source_hidden_states: Tensor, **options: Any) -> Tensor:
        return source_hidden_states


CASES = (
    ModularCase(
        "FluxAutoBlocks",
        "FluxTransformer2DModel",
        call=SIZE | dict(max_sequence_length=8),
        parts=CLIP_PAIR,
        guided=False,
        negative=False,
    ),
    ModularCase(
        "StableDiffusion3AutoBlocks",
        "SD3Transformer2DModel",
        call=SIZE | dict(max_sequence_length=8),
        parts=dict(
            text_encoder=ProjectedTextEncoder(8, 6),
            text_encoder_2=ProjectedTextEncoder(8, 6),
            tokenizer_2=Tokenizer(),
            text_encoder_3=TextEncoder(),
            tokenizer_3=Tokenizer(),
        ),
    ),
    ModularCase(
        "QwenImageAutoBlocks",
        "QwenImageTransformer2DModel",
        call=SIZE,
        parts=dict(tokenizer=Letters()),
        shift=True,
    ),
    ModularCase(
        "ZImageAutoBlocks",
        "ZImageTransformer2DModel",
        call=SIZE | dict(max_sequence_length=8),
    ),
    ModularCase(
        "WanBlocks",
        "WanTransformer3DModel",
        call=SIZE | dict(num_frames=5, max_sequence_length=8),
        config=dict(in_channels=16, out_channels=16),
    ),
    ModularCase(
        "Krea2AutoBlocks",
        "Krea2Transformer2DModel",
        call=SIZE | dict(max_sequence_length=8),
        parts=dict(text_encoder=Deep(), tokenizer=Letters()),
        config=dict(num_text_layers=12),
        shift=True,
    ),
    ModularCase(
        "Flux3AutoBlocks",
        "Flux3Transformer2DModel",
        call=SIZE | dict(max_sequence_length=12, text_encoder_out_layers=(1,)),
        parts=dict(text_encoder=Deep(), tokenizer=Chat()),
        without=("prompt_upsampler",),
    ),
    ModularCase(
        "AnimaAutoBlocks",
        "CosmosTransformer3DModel",
        call=SIZE | dict(max_sequence_length=8),
        parts=dict(t5_tokenizer=Tokenizer(), text_conditioner=Conditioner()),
    ),
    ModularCase(
        "LTXAutoBlocks",
        "LTXVideoTransformer3DModel",
        call=dict(height=64, width=64, num_frames=9, max_sequence_length=8),
    ),
)

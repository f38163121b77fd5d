"""Real diffusers pipelines around tiny random transformers and a text encoder of embeddings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, ClassVar

import diffusers
import torch
from torch import Tensor, nn
from transformers import BatchEncoding
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.clip.modeling_clip import CLIPTextModelOutput

from tests.needs import of_diffusers
from tests.pipelines.zoo import ZOO

_VOCABULARY = 64


class Tokenizer:
    """One token per word, by its letters, and one at the end; padded on the right."""

    model_max_length = 8
    padding_side = "right"
    added_tokens_encoder: ClassVar[dict[str, int]] = {}

    def __call__(self, text: Any, **options: Any) -> BatchEncoding:
        texts = [text] if isinstance(text, str) else text
        rows = [[sum(map(ord, word)) % 61 + 2 for word in t.split()] + [1] for t in texts]
        length = max(len(row) for row in rows)
        if options.get("padding") == "max_length":
            length = options["max_length"]
        rows = [row[:length] for row in rows]
        mask = [[1] * len(row) + [0] * (length - len(row)) for row in rows]
        ids = [row + [0] * (length - len(row)) for row in rows]
        return BatchEncoding({"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)})

    def tokenize(self, text: str) -> list[str]:
        return text.split()

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self(text).input_ids[0].tolist()
        return ids

    def batch_decode(self, ids: Tensor) -> list[str]:
        return [" ".join(map(str, row)) for row in ids.tolist()]

    def apply_chat_template(self, messages: Any, **options: Any) -> str:
        return f"user {messages[0]['content']} assistant"


class TextEncoder(nn.Module):
    """Embeds tokens; every hidden state is the same."""

    dtype = torch.float32
    device = torch.device("cpu")

    def __init__(self, width: int = 16, pooled: int = 12) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        table = torch.randn(_VOCABULARY, width, generator=generator)
        self.table = nn.Parameter(table, requires_grad=False)
        self.pool = nn.Parameter(torch.randn(width, pooled, generator=generator), False)

    def forward(self, input_ids: Tensor, *args: Any, **options: Any) -> Any:
        # What a token becomes depends on its place, as in any encoder.
        places = torch.linspace(0.5, 1.0, input_ids.shape[1])[:, None]
        hidden = self.table[input_ids] * places
        return BaseModelOutputWithPooling(hidden, hidden.mean(1) @ self.pool, (hidden,) * 3)


class ProjectedTextEncoder(TextEncoder):
    """Returns the projected embedding of the text first, as CLIP's with projection does."""

    def forward(self, input_ids: Tensor, *args: Any, **options: Any) -> Any:
        out = super().forward(input_ids)
        return CLIPTextModelOutput(out.pooler_output, hidden_states=out.hidden_states)


class Decoder(nn.Module):
    """Shows the mean of the latent channels: stands for every image decoder."""

    dtype = torch.float32
    device = torch.device("cpu")
    temperal_downsample = (False, True, True)
    config = SimpleNamespace(
        block_out_channels=(1, 1, 1, 1),
        scaling_factor=1.0,
        shift_factor=0.0,
        latents_mean=[0.0],
        latents_std=[1.0],
        z_dim=1,
    )

    def decode(self, latents: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        return (latents.mean(1, keepdim=True).repeat_interleave(3, dim=1) / 4,)


class Guardrail(nn.Module):
    """Finds every text and picture harmless: Cosmos is not called without a guard."""

    dtype = torch.float32
    device = torch.device("cpu")

    def check_text_safety(self, text: str) -> bool:
        return True


@dataclass(frozen=True)
class PipelineCase:
    """A pipeline and how to call it.

    Attributes:
        name: of the pipeline class.
        transformer: class of its transformer.
        guidance: the argument that holds the scale of classifier-free guidance.
        call: further arguments of the pipeline.
        parts: components besides the transformer.
        settings: attributes of the pipeline.
        config: arguments of the transformer that differ from its specimen's.
        offset: w of the formula is the argument plus this.
        rows: branches of each call, in order.
        context: equal texts can be told apart: the pipeline names the branch of each call, or
            masks the prompt alone, or puts an instruction before it.
        steps: the fewest that the pipeline can do.
        normalised: the combination gets the norm of the conditional prediction.
        prefix: what the pipeline puts before the prompt, and not before the negative prompt.
    """

    name: str
    transformer: str
    scheduler: Callable[[], Any]
    rows: tuple[tuple[int, ...], ...]
    guidance: str = "guidance_scale"
    offset: float = 0.0
    call: dict[str, Any] = field(default_factory=dict)
    parts: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    context: bool = False
    steps: int = 1
    normalised: bool = False
    prefix: str = ""

    @property
    def id(self) -> str:
        return self.name.removesuffix("Pipeline")

    def build(self, **parts: Any) -> Any:
        found = next(s for s in ZOO if s.model_class == self.transformer)
        specimen = replace(found, config=found.config | self.config)
        kinds: dict[str, Any] = dict(tokenizer=Tokenizer(), text_encoder=TextEncoder(), vae=None)
        pipe = of_diffusers(self.name)(
            transformer=specimen.model(), scheduler=self.scheduler(), **(kinds | self.parts | parts)
        )
        pipe.set_progress_bar_config(disable=True)
        for name, value in self.settings.items():
            setattr(pipe, name, value)
        return pipe


def _flow(**options: Any) -> Callable[[], Any]:
    return lambda: diffusers.FlowMatchEulerDiscreteScheduler(**options)


CLIP_PAIR = dict(text_encoder_2=TextEncoder(), tokenizer_2=Tokenizer())
SHORT = dict(height=16, width=16, max_sequence_length=8)
VIDEO = SHORT | dict(num_frames=5)

APART = ((0,), (1,))
UNCONDITIONAL_FIRST = ((1, 0),)

CASES = (
    PipelineCase(
        "FluxPipeline",
        "FluxTransformer2DModel",
        _flow(),
        APART,
        context=True,
        guidance="true_cfg_scale",
        call=SHORT | dict(guidance_scale=3.5),
        parts=CLIP_PAIR,
    ),
    PipelineCase(
        "StableDiffusion3Pipeline",
        "SD3Transformer2DModel",
        _flow(),
        UNCONDITIONAL_FIRST,
        call=SHORT,
        parts=dict(
            text_encoder=ProjectedTextEncoder(8, 6),
            text_encoder_2=ProjectedTextEncoder(8, 6),
            tokenizer_2=Tokenizer(),
            text_encoder_3=TextEncoder(),
            tokenizer_3=Tokenizer(),
        ),
    ),
    PipelineCase(
        "QwenImagePipeline",
        "QwenImageTransformer2DModel",
        _flow(use_dynamic_shifting=True),
        APART,
        context=True,
        normalised=True,
        guidance="true_cfg_scale",
        call=dict(height=16, width=16),
        settings=dict(prompt_template_encode="{}", prompt_template_encode_start_idx=0),
    ),
    *(
        PipelineCase(
            name,
            "PixArtTransformer2DModel",
            diffusers.DDIMScheduler,
            UNCONDITIONAL_FIRST,
            call=SHORT | dict(use_resolution_binning=False),
            config=dict(sample_size=32),  # which the pipeline knows sizes for
        )
        for name in ("PixArtSigmaPipeline", "PixArtAlphaPipeline")
    ),
    PipelineCase(
        "SanaPipeline",
        "SanaTransformer2DModel",
        _flow(),
        UNCONDITIONAL_FIRST,
        call=dict(
            height=64,
            width=64,
            max_sequence_length=8,
            use_resolution_binning=False,
        ),
        context=True,  # an instruction stands before the prompt alone
        config=dict(sample_size=32),
    ),
    PipelineCase("WanPipeline", "WanTransformer3DModel", _flow(), APART, call=VIDEO, context=True),
    PipelineCase(
        "ZImagePipeline",
        "ZImageTransformer2DModel",
        _flow(),
        ((0, 1),),
        offset=1.0,
        call=SHORT,
    ),
    PipelineCase(
        "Lumina2Pipeline",
        "Lumina2Transformer2DModel",
        _flow(),
        APART,
        prefix="You are an assistant designed to generate superior images with the superior degree "
        "of image-text alignment based on textual prompts or user prompts. <Prompt Start> ",
        # Its normalisation is not linear in the branches.
        call=dict(height=64, width=64, max_sequence_length=8) | dict(cfg_normalization=False),
        config=dict(axes_lens=(512, 16, 16)),
    ),
    PipelineCase(
        "LTXPipeline",
        "LTXVideoTransformer3DModel",
        _flow(),
        UNCONDITIONAL_FIRST,
        call=dict(height=64, width=64, num_frames=9, max_sequence_length=8),
    ),
    PipelineCase(
        "CogVideoXPipeline",
        "CogVideoXTransformer3DModel",
        diffusers.CogVideoXDDIMScheduler,
        UNCONDITIONAL_FIRST,
        call=dict(height=64, width=64, num_frames=17, max_sequence_length=5),
    ),
    PipelineCase("ChromaPipeline", "ChromaTransformer2DModel", _flow(), APART, call=SHORT),
    PipelineCase(
        "AuraFlowPipeline",
        "AuraFlowTransformer2DModel",
        _flow(),
        UNCONDITIONAL_FIRST,
        call=SHORT,
    ),
    PipelineCase(
        "OvisImagePipeline",
        "OvisImageTransformer2DModel",
        _flow(),
        APART,
        call=SHORT,
        context=True,
        settings=dict(system_prompt="", user_prompt_begin_id=0),
    ),
    PipelineCase(
        "AllegroPipeline",
        "AllegroTransformer3DModel",
        diffusers.DDIMScheduler,
        UNCONDITIONAL_FIRST,
        call=SHORT | dict(num_frames=8),
    ),
    PipelineCase(
        "MochiPipeline",
        "MochiTransformer3DModel",
        _flow(),
        UNCONDITIONAL_FIRST,
        call=dict(height=16, width=16, num_frames=7, max_sequence_length=5),
        steps=2,
    ),
    PipelineCase(
        "LattePipeline",
        "LatteTransformer3DModel",
        diffusers.DDIMScheduler,
        UNCONDITIONAL_FIRST,
        call=dict(height=64, width=64, video_length=2),
        context=True,
        config=dict(out_channels=8),  # the pipeline drops the half that is the variance
    ),
    PipelineCase(
        "HunyuanVideoPipeline",
        "HunyuanVideoTransformer3DModel",
        _flow(),
        APART,
        guidance="true_cfg_scale",
        call=VIDEO | dict(guidance_scale=6.0, prompt_template={"template": "{}", "crop_start": 0}),
        parts=CLIP_PAIR,
        context=True,
    ),
    PipelineCase(
        "Krea2Pipeline",
        "Krea2Transformer2DModel",
        _flow(use_dynamic_shifting=True),
        APART,
        offset=1.0,
        call=SHORT,
        parts=dict(text_encoder_select_layers=(0, 1)),
        settings=dict(
            prompt_template_encode_prefix="",
            prompt_template_encode_suffix="",
            prompt_template_encode_start_idx=0,
            prompt_template_encode_num_suffix_tokens=1,
        ),
    ),
    PipelineCase(
        "Cosmos2TextToImagePipeline",
        "CosmosTransformer3DModel",
        _flow(use_karras_sigmas=True),
        APART,
        offset=1.0,
        call=SHORT,
        parts=dict(safety_checker=Guardrail()),
    ),
    PipelineCase(
        "CosmosTextToWorldPipeline",
        "CosmosTransformer3DModel",
        diffusers.EDMEulerScheduler,
        APART,
        offset=1.0,
        call=VIDEO,
        parts=dict(safety_checker=Guardrail()),
    ),
)

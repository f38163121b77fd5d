"""Real pipelines that take pictures besides the prompt, around tiny random models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image
from transformers import BatchEncoding

from tests.sampling.pipelines import PipelineCase, Tokenizer
from tests.tiny import randomise

PROMPTS = ("a red circle", "two blue squares here")
NEGATIVE = "ugly"


def picture(size: int = 16, seed: int = 0) -> Image.Image:
    """A picture of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def mask(size: int = 16) -> Image.Image:
    """A mask of the left half."""
    pixels = np.zeros((size, size), dtype=np.uint8)
    pixels[:, : size // 2] = 255
    return Image.fromarray(pixels)


@dataclass(frozen=True)
class ConditionedCase(PipelineCase):
    """A pipeline that takes pictures.

    Attributes:
        pictures: names of the arguments that take one picture for each prompt.
        masks: names of those that take a mask for each prompt.
        count: prompts of a call; some pipelines edit one picture at a time.
        size: of the pictures.
        embedded: guidance is an input of the model, and there is no negative prompt.
        make: makes more parts, which need weights of their own in each pipeline.
    """

    pictures: tuple[str, ...] = ("image",)
    masks: tuple[str, ...] = ()
    count: int = 2
    size: int = 16
    embedded: bool = False
    make: Callable[[], dict[str, Any]] = field(default=dict)

    def build(self, **parts: Any) -> Any:
        """Build the pipeline."""
        return super().build(**(self.make() | parts))

    def arguments(self) -> dict[str, Any]:
        """Return prompts, pictures and what else a call takes but guidance."""
        pictures = {
            name: [picture(self.size, i) for i in range(self.count)] for name in self.pictures
        }
        masks = {name: [mask(self.size)] * self.count for name in self.masks}
        if self.count == 1:
            pictures = {name: each[0] for name, each in pictures.items()}
            masks = {name: each[0] for name, each in masks.items()}
        prompts = list(PROMPTS[: self.count])
        return {"prompt": prompts, **pictures, **masks, **self.call}


def sample(case: ConditionedCase, pipe: Any, scale: float, steps: int = 2, **more: Any) -> Any:
    """Sample latents under guidance, with a fixed seed for each prompt."""
    torch.manual_seed(0)  # some pipelines encode control pictures without a generator
    generators = [torch.Generator().manual_seed(i) for i in range(case.count)]
    negative = {} if case.embedded else dict(negative_prompt=[NEGATIVE] * case.count)
    latents = pipe(
        **case.arguments()
        | negative
        | dict(
            num_inference_steps=steps,
            generator=generators if case.count > 1 else generators[0],
            output_type="latent",
            return_dict=False,
        )
        | {case.guidance: scale}
        | more
    )[0]
    assert latents.isfinite().all()
    return latents


def kl(channels: int, **options: Any) -> Any:
    vae = diffusers.AutoencoderKL(
        latent_channels=channels,
        block_out_channels=(4, 4, 4, 4),
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        layers_per_block=1,
        norm_num_groups=2,
        shift_factor=0.0,
        **options,
    )
    return randomise(vae)


def qwen_vae(channels: int = 1) -> Any:
    vae = diffusers.AutoencoderKLQwenImage(
        base_dim=4,
        z_dim=channels,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=[0.0] * channels,
        latents_std=[1.0] * channels,
    )
    return randomise(vae)


def dc() -> Any:
    vae = diffusers.AutoencoderDC(
        in_channels=3,
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=(4, 4),
        decoder_block_out_channels=(4, 4),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=1.0,
    )
    return randomise(vae)


class Processor:
    """Puts a token for the mean colour of the pictures before those of the text."""

    def __call__(self, text: Any, images: Any = None, **options: Any) -> BatchEncoding:
        encoded = Tokenizer()(text)
        if images is None:
            return encoded
        shown = images if isinstance(images, list) else [images]
        shade = sum(float(torch.as_tensor(np.array(each)).float().mean()) for each in shown)
        rows = len(encoded.input_ids)
        ids = torch.full((rows, 1), 2 + int(shade * 100) % 61)
        return BatchEncoding(
            {
                "input_ids": torch.cat([ids, encoded.input_ids], dim=1),
                "attention_mask": torch.cat([torch.ones_like(ids), encoded.attention_mask], dim=1),
            }
        )

"""Networks of published geometry with random weights, and plain ways to scale and to quantise them.

Needs torch and diffusers; transformers too for the text encoder and the reward.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel, SD3Transformer2DModel
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

Inputs = dict[str, Tensor]

# From the published config.json of each model.
_FLUX_DEV: dict[str, Any] = dict(
    patch_size=1,
    in_channels=64,
    num_layers=19,
    num_single_layers=38,
    attention_head_dim=128,
    num_attention_heads=24,
    joint_attention_dim=4096,
    pooled_projection_dim=768,
    guidance_embeds=True,
)
_SD35_MEDIUM: dict[str, Any] = dict(
    sample_size=128,
    patch_size=2,
    in_channels=16,
    out_channels=16,
    num_layers=24,
    attention_head_dim=64,
    num_attention_heads=24,
    joint_attention_dim=4096,
    caption_projection_dim=1536,
    pooled_projection_dim=2048,
    pos_embed_max_size=384,
    dual_attention_layers=tuple(range(13)),
    qk_norm="rms_norm",
)
_FLUX_VAE: dict[str, Any] = dict(
    block_out_channels=(128, 256, 512, 512),
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    latent_channels=16,
    layers_per_block=2,
    use_quant_conv=False,
    use_post_quant_conv=False,
)
_TINY_FLUX = _FLUX_DEV | dict(
    in_channels=16,
    num_layers=2,
    num_single_layers=3,
    attention_head_dim=16,
    num_attention_heads=2,
    joint_attention_dim=32,
    pooled_projection_dim=16,
    axes_dims_rope=(4, 6, 6),
)
_TINY_SD3 = _SD35_MEDIUM | dict(
    sample_size=16,
    num_layers=3,
    attention_head_dim=16,
    num_attention_heads=2,
    joint_attention_dim=32,
    caption_projection_dim=32,
    pooled_projection_dim=16,
    pos_embed_max_size=8,
    dual_attention_layers=(0,),
)


@dataclass(frozen=True)
class Geometry:
    """A transformer without its weights, and what it is called with at 512 x 512 pixels.

    Attributes:
        side: of the picture, in tokens.
        text_tokens: of the prompt.
        steps: of a generation.
    """

    name: str
    kind: type[nn.Module]
    config: dict[str, Any]
    side: int
    text_tokens: int
    steps: int

    def make(self, device: str, dtype: torch.dtype) -> nn.Module:
        """Build the transformer on a device with random weights."""
        with torch.device(device):
            model = self.kind(**self.config)
        return randomise(model.to(dtype)).eval()

    def inputs(self, rows: int, device: str, dtype: torch.dtype, seed: int = 0) -> Inputs:
        """Make the arguments of a forward; everything random."""
        generator = torch.Generator().manual_seed(seed)

        def noise(*shape: int) -> Tensor:
            return torch.randn(rows, *shape, generator=generator).to(device, dtype)

        text = noise(self.text_tokens, self.config["joint_attention_dim"])
        pooled = noise(self.config["pooled_projection_dim"])
        inputs: Inputs = {"encoder_hidden_states": text, "pooled_projections": pooled}
        if self.kind is SD3Transformer2DModel:
            size = self.side * self.config["patch_size"]
            inputs["hidden_states"] = noise(self.config["in_channels"], size, size)
            inputs["timestep"] = torch.full((rows,), 500.0, device=device, dtype=dtype)
            return inputs
        places = torch.cartesian_prod(torch.zeros(1), *[torch.arange(self.side).float()] * 2)
        inputs["hidden_states"] = noise(self.side**2, self.config["in_channels"])
        inputs["timestep"] = torch.full((rows,), 0.5, device=device, dtype=dtype)
        inputs["guidance"] = torch.full((rows,), 3.5, device=device, dtype=dtype)
        inputs["img_ids"] = places.to(device, dtype)
        inputs["txt_ids"] = torch.zeros(self.text_tokens, 3, device=device, dtype=dtype)
        return inputs

    def flops(self) -> float:
        """FLOPs of a forward of one row, a multiply-add counting two."""
        with torch.device("meta"):
            model = self.kind(**self.config)
        inputs = {k: v.to("meta") for k, v in self.inputs(1, "cpu", torch.float32).items()}
        counter = FlopCounterMode(display=False)
        with torch.no_grad(), counter:
            model(**inputs, return_dict=False)
        return float(counter.get_total_flops())


FLUX = Geometry("FLUX.1-dev", FluxTransformer2DModel, _FLUX_DEV, 32, 512, 15)
SD35 = Geometry("SD3.5-medium", SD3Transformer2DModel, _SD35_MEDIUM, 32, 333, 15)
TINY_FLUX = Geometry("tiny FLUX", FluxTransformer2DModel, _TINY_FLUX, 4, 5, 3)
TINY_SD35 = Geometry("tiny SD3.5", SD3Transformer2DModel, _TINY_SD3, 4, 5, 3)


@torch.no_grad()
def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Fill every parameter with noise: zeros and ones would be multiplied faster than real weights.

    Matrices keep the variance of what they multiply; vectors are near 1 (weights) or 0 (biases).
    """
    for number, (name, parameter) in enumerate(model.named_parameters()):
        generator = torch.Generator(parameter.device).manual_seed(seed + number)
        fan_in = math.prod(parameter.shape[1:])
        std = fan_in**-0.5 if parameter.ndim > 1 else 0.02
        mean = 1.0 if parameter.ndim == 1 and name.endswith("weight") else 0.0
        parameter.normal_(mean, std, generator=generator)
    return model


def branches(model: nn.Module) -> Iterator[tuple[nn.Module, int | None]]:
    """Yield the modules whose outputs are gated, with the index of the output."""
    for block in getattr(model, "transformer_blocks", ()):
        yield block.attn, 0
        yield block.ff, None
        if not getattr(block, "context_pre_only", False):
            yield block.attn, 1
            yield block.ff_context, None
        if getattr(block, "attn2", None) is not None:
            yield block.attn2, None
    for block in getattr(model, "single_transformer_blocks", ()):
        yield block.proj_out, None


class PlainHooks:
    """One scalar for each gate and all rows, in the model's dtype, as in the authors' code."""

    def __init__(self, model: nn.Module) -> None:
        found = list(branches(model))
        first = next(model.parameters())
        self._scales = [torch.ones((), device=first.device, dtype=first.dtype) for _ in found]
        self._handles = [
            module.register_forward_hook(_multiply(scale, index))
            for scale, (module, index) in zip(self._scales, found, strict=True)
        ]

    def __len__(self) -> int:
        return len(self._scales)

    def set(self, values: Sequence[float]) -> None:
        """Set one value for each gate."""
        for scale, value in zip(self._scales, values, strict=True):
            scale.fill_(value)

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()


def _multiply(scale: Tensor, index: int | None) -> Callable[..., Any]:
    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        if not isinstance(output, tuple):
            return output * scale
        parts = list(output)
        parts[index or 0] = parts[index or 0] * scale
        return tuple(parts)

    return hook


_FP8 = torch.float8_e4m3fn
_FP8_MAX = torch.finfo(_FP8).max


def _to_fp8(tensor: Tensor) -> tuple[Tensor, Tensor]:
    scale = tensor.abs().amax().float().clamp(min=1e-12) / _FP8_MAX
    return (tensor / scale).clamp(-_FP8_MAX, _FP8_MAX).to(_FP8), scale


class Fp8Linear(nn.Module):
    """A linear layer in 8-bit floats: one scale for its weight, one for each input as it comes."""

    weight: Tensor
    weight_scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight, scale = _to_fp8(linear.weight.detach())
        self.register_buffer("weight", weight)
        self.register_buffer("weight_scale", scale)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        rows, scale = _to_fp8(x.reshape(-1, x.shape[-1]))
        product: Tensor = torch._scaled_mm(
            rows,
            self.weight.t(),
            scale_a=scale,
            scale_b=self.weight_scale,
            bias=self.bias,
            out_dtype=x.dtype,
            use_fast_accum=x.is_cuda,
        )
        return product.view(*x.shape[:-1], -1)


def quantise(model: nn.Module) -> int:
    """Put the linear layers of blocks, but not those of modulations, into 8 bits; count them."""
    count = 0
    for parent_name, parent in list(model.named_modules()):
        for name, child in list(parent.named_children()):
            path = f"{parent_name}.{name}"
            fits = isinstance(child, nn.Linear) and not any(s % 16 for s in child.weight.shape)
            if fits and "blocks." in path and "norm" not in path:
                setattr(parent, name, Fp8Linear(child))
                count += 1
    return count


def make_vae(device: str, dtype: torch.dtype, *, tiny: bool) -> nn.Module:
    """The VAE of FLUX.1-dev and SD3.5."""
    widths = dict(block_out_channels=(32,) * 4, layers_per_block=1) if tiny else {}
    with torch.device(device):
        vae: nn.Module = AutoencoderKL(**_FLUX_VAE | widths)
    return randomise(vae.to(dtype)).eval()


def make_text_encoder(device: str, dtype: torch.dtype, *, tiny: bool) -> nn.Module:
    """The encoder of T5 XXL."""
    from transformers import T5Config, T5EncoderModel

    sizes = dict(d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, vocab_size=64)
    if not tiny:
        sizes = dict(d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64)
        sizes["vocab_size"] = 32128
    config = T5Config(feed_forward_proj="gated-gelu", **sizes)
    with torch.device(device):
        encoder: nn.Module = T5EncoderModel(config)
    return randomise(encoder.to(dtype)).eval()


def make_reward(device: str, dtype: torch.dtype, *, tiny: bool) -> nn.Module:
    """The network of HPSv3: Qwen2-VL 7B with a small head."""
    from calibri.rewards.hpsv3_network import HPSv3Network, published_config

    config = published_config(151_700)
    if tiny:
        text, vision = config.text_config, config.vision_config
        text.hidden_size, text.intermediate_size, text.num_hidden_layers = 3584 // 28, 64, 2
        text.num_attention_heads, text.num_key_value_heads = 1, 1
        text.layer_types = text.layer_types[:2]
        vision.depth, vision.embed_dim, vision.hidden_size = 2, 32, text.hidden_size
        vision.num_heads = 2
    with torch.device(device):
        network = HPSv3Network(config, dtype)
    return randomise(network).eval()


def reward_inputs(network: nn.Module, rows: int, device: str, dtype: torch.dtype) -> list[Tensor]:
    """Tokens, lengths, patches and grids of pictures of 448 x 448 pixels with 330 text tokens."""
    generator = torch.Generator().manual_seed(0)
    backbone: Any = network.backbone
    text = torch.randint(0, 1000, (rows, 330), generator=generator)
    ids = torch.cat([torch.full((rows, 256), backbone.config.image_token_id), text], dim=1)
    patches = torch.randn(rows * 1024, 1176, generator=generator)
    grids = torch.tensor([[1, 32, 32]] * rows)
    lengths = torch.full((rows,), ids.shape[1])
    return [ids.to(device), lengths.to(device), patches.to(device, dtype), grids.to(device)]

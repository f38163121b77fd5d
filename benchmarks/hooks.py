"""What scaling costs: a forward with hooks, and with fused weights, against the plain model.

Run it with ``python benchmarks/hooks.py``; on two CPU cores it takes some minutes.
``--flux`` takes the geometry of FLUX.1-dev, which needs a GPU with 40 GB.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from calibri.pipelines.sites.find import find_sites
from calibri.sampling import Fused, Scaler

# Blocks of the width of SD3.5 Medium and half that of FLUX.1-dev, and enough of them for more than
# 200 M parameters.
SD3: dict[str, Any] = dict(
    sample_size=64,
    in_channels=16,
    num_layers=4,
    attention_head_dim=64,
    num_attention_heads=24,
    joint_attention_dim=4096,
    caption_projection_dim=1536,
    pooled_projection_dim=2048,
    qk_norm="rms_norm",
)
FLUX: dict[str, Any] = dict(
    num_layers=2,
    num_single_layers=4,
    num_attention_heads=12,
    joint_attention_dim=4096,
    pooled_projection_dim=768,
    guidance_embeds=True,
)
FLUX_DEV: dict[str, Any] = FLUX | dict(num_layers=19, num_single_layers=38, num_attention_heads=24)


def sd3_inputs(tokens: int) -> dict[str, Tensor]:
    side = 2 * round(tokens**0.5)
    return dict(
        hidden_states=torch.randn(1, 16, side, side),
        encoder_hidden_states=torch.randn(1, 77, 4096),
        pooled_projections=torch.randn(1, 2048),
        timestep=torch.tensor([500.0]),
    )


def flux_inputs(tokens: int) -> dict[str, Tensor]:
    return dict(
        hidden_states=torch.randn(1, tokens, 64),
        encoder_hidden_states=torch.randn(1, 77, 4096),
        pooled_projections=torch.randn(1, 768),
        timestep=torch.tensor([0.5]),
        guidance=torch.tensor([3.5]),
        img_ids=torch.zeros(tokens, 3),
        txt_ids=torch.zeros(77, 3),
    )


def seconds(model: nn.Module, inputs: dict[str, Tensor]) -> float:
    """Time one forward: on a GPU by the clock, on CPUs without what other programs take."""
    cuda = next(model.parameters()).is_cuda
    clock = time.perf_counter if cuda else time.process_time
    start = clock()
    with torch.no_grad():
        model(**inputs)
    if cuda:
        torch.cuda.synchronize()
    return clock() - start


def measure(model: nn.Module, inputs: dict[str, Tensor], repeats: int) -> dict[str, list[float]]:
    """Time the three in turn, so that what else the machine does falls on all alike."""
    times: dict[str, list[float]] = {"original": [], "hooks": [], "fused": []}
    sites = len(find_sites(model))
    seconds(model, inputs)
    for _ in range(repeats):
        times["original"].append(seconds(model, inputs))
        scaler = Scaler(model)
        scaler.set(torch.full((1, 1, sites + 1), 0.9))
        times["hooks"].append(seconds(model, inputs))
        scaler.remove()
        fused = Fused(model, [0.9] * (sites + 1))
        times["fused"].append(seconds(model, inputs))
        fused.undo()
    return times


def row(name: str, model: nn.Module, times: dict[str, list[float]]) -> list[str]:
    def ratio(which: str) -> str:
        pairs = zip(times[which], times["original"], strict=True)
        ratios = sorted(value / plain for value, plain in pairs)
        middle = statistics.median(ratios)
        return f"{middle:.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})"

    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    plain = statistics.median(times["original"])
    return [name, f"{parameters:.0f} M", f"{plain:.3f} s", ratio("hooks"), ratio("fused")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=256, help="of the image")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--flux", action="store_true", help="the geometry of FLUX.1-dev")
    args = parser.parse_args()
    cases: list[tuple[str, Callable[[], nn.Module], Callable[[int], dict[str, Tensor]]]] = [
        ("SD3-like", lambda: SD3Transformer2DModel(**SD3), sd3_inputs),
        ("FLUX-like", lambda: FluxTransformer2DModel(**FLUX), flux_inputs),
    ]
    if args.flux:
        cases = [("FLUX.1-dev", lambda: FluxTransformer2DModel(**FLUX_DEV), flux_inputs)]
    dtype = torch.float32 if args.device == "cpu" else torch.bfloat16
    table = Table(title=f"Time of a forward, {args.tokens} image tokens, {args.device}, {dtype}")
    for column in ("model", "parameters", "original", "hooks / original", "fused / original"):
        table.add_column(column)
    torch.manual_seed(0)
    for name, make, inputs in cases:
        with torch.device(args.device):
            model = make().eval()
        if dtype is not torch.float32:
            model = model.to(dtype)
        with torch.device(args.device):
            given = {key: value.to(dtype) for key, value in inputs(args.tokens).items()}
        table.add_row(*row(name, model, measure(model, given, args.repeats)))
        del model
    Console(width=110).print(table)


if __name__ == "__main__":
    main()

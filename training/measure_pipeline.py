"""Score the shipped pipeline on held-out captions at several numbers of steps.

python training/measure_pipeline.py --prompts 192 --seed 2 --grid samples.png
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, StableDiffusion3Pipeline
from PIL import Image, ImageDraw
from torch import Tensor

from calibri.rewards import Reward, make_reward
from calibri.seeds import derive_seed
from calibri.shapes import IMAGE_SIZE, PIPELINE_PATH, sample_prompts

SETTINGS = [(1.0, steps) for steps in (4, 6, 8, 10, 12, 15, 18, 20, 30)]
SETTINGS += [(3.0, steps) for steps in (6, 12, 18)]
BATCH = 64
MAGNIFICATION = 5


def sample(
    pipeline: StableDiffusion3Pipeline, texts: list[str], guidance: float, steps: int, seed: int
) -> Tensor:
    """One image per caption from its own noise: uint8 (N, 3, 24, 24)."""
    parts = []
    for start in range(0, len(texts), BATCH):
        chunk = texts[start : start + BATCH]
        images = pipeline(
            chunk,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=[torch.Generator().manual_seed(derive_seed(seed, text)) for text in chunk],
            output_type="pt",
        ).images
        parts.append((images * 255).round().to(torch.uint8))
    return torch.cat(parts)


def interval(scores: Tensor) -> str:
    """Mean and half the width of its 95 % interval."""
    half = 1.96 * scores.std().item() / math.sqrt(len(scores))
    return f"{scores.mean():.4f} +- {half:.4f}"


def draw_grid(rows: list[tuple[str, Tensor]], texts: list[str], path: Path) -> None:
    """Write a picture with one row per setting and one column per caption."""
    side, line = IMAGE_SIZE * MAGNIFICATION, 11
    canvas = Image.new("RGB", (len(texts) * (side + 4), len(rows) * (side + 4) + 6 * line), "white")
    draw = ImageDraw.Draw(canvas)
    for column, text in enumerate(texts):
        words = text.split()
        lines = [" ".join(words[k : k + 3]) for k in range(0, len(words), 3)]
        draw.multiline_text((column * (side + 4), 0), "\n".join(lines), fill="black", spacing=1)
        for row, (_, images) in enumerate(rows):
            picture = Image.fromarray(images[column].permute(1, 2, 0).numpy())
            picture = picture.resize((side, side), Image.Resampling.NEAREST)
            canvas.paste(picture, (column * (side + 4), 6 * line + row * (side + 4)))
    for row, (name, _) in enumerate(rows):
        draw.text((2, 6 * line + row * (side + 4)), name, fill="white")
    canvas.save(path)


def main() -> None:
    """Read the command line and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pipeline", type=Path, default=PIPELINE_PATH)
    parser.add_argument("--prompts", type=int, default=192)
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--rewards", nargs="+", default=["shapes", "shapes-judge"])
    parser.add_argument("--grid", type=Path)
    args = parser.parse_args()
    pipeline = DiffusionPipeline.from_pretrained(args.pipeline)
    pipeline.set_progress_bar_config(disable=True)
    rewards: list[Reward] = [make_reward(name) for name in args.rewards]
    texts = sample_prompts(args.prompts, args.seed, "held_out")
    print("guidance steps  " + "".join(f"{name:<20}" for name in args.rewards))
    rows = []
    for guidance, steps in SETTINGS:
        images = sample(pipeline, texts, guidance, steps, args.seed)
        figures = "".join(f"{interval(reward.score(images, texts)):<20}" for reward in rewards)
        print(f"{guidance:<8} {steps:<6} {figures}", flush=True)
        if steps in (6, 20):
            rows.append((f"{steps} steps, guidance {guidance}", images))
    if args.grid:
        draw_grid(rows, texts[:12], args.grid)


if __name__ == "__main__":
    main()

"""The small world that Calibri ships: scenes, captions, a renderer and a trained pipeline."""

from __future__ import annotations

from pathlib import Path

from calibri.shapes.render import IMAGE_SIZE, render, render_batch
from calibri.shapes.scenes import (
    Scene,
    Thing,
    caption,
    held_out,
    parse_caption,
    sample_prompts,
    sample_scene,
)

PIPELINE_PATH: Path = Path(__file__).parent / "pipeline"
"""Folder of the trained pipeline; load it with ``DiffusionPipeline.from_pretrained``."""

JUDGE_PATH: Path = Path(__file__).parent / "judge"
"""Folder of the judge network's weights and configuration."""

__all__ = [
    "IMAGE_SIZE",
    "JUDGE_PATH",
    "PIPELINE_PATH",
    "Scene",
    "Thing",
    "caption",
    "held_out",
    "parse_caption",
    "render",
    "render_batch",
    "sample_prompts",
    "sample_scene",
]

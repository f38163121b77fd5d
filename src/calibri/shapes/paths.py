"""Where the trained files of the small world lie."""

from pathlib import Path

PIPELINE_PATH: Path = Path(__file__).parent / "pipeline"
"""Folder of the trained pipeline; load it with ``DiffusionPipeline.from_pretrained``."""

JUDGE_PATH: Path = Path(__file__).parent / "judge"
"""Folder of the judge network's weights and configuration."""


def shapes_pipeline() -> Path:
    """Name the folder of the shipped pipeline, for ``DiffusionPipeline.from_pretrained``."""
    return PIPELINE_PATH

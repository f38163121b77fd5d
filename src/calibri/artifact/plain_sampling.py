"""How a plain call of a stored pipeline samples, for a calibration that nobody searched."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from calibri.artifact.calibration import Sampling
from calibri.artifact.checkpoints import is_pipeline
from calibri.errors import ConfigError, UnsupportedModelError
from calibri.pipelines import load_pipeline_skeleton, networks_of
from calibri.sampling import GivenSettings, PipelineCall

_STEPS = 28


def plain_sampling(
    folder: Path, dtype: str, steps: int | None, guidance: float | None
) -> tuple[Sampling, tuple[float, ...]]:
    """Say how a pipeline is sampled where nothing else was said.

    Args:
        folder: of a pipeline, or of a transformer alone, of which no call is known.
        dtype: of the transformer.
        steps: None for those of the pipeline's call.
        guidance: None for that of the pipeline's call; ``true_cfg_scale`` of those that call it so.

    Returns:
        The settings, and the start weights under them: 1, or (w, 1 - w) (spec section 2).

    Raises:
        ConfigError: the guidance that was asked for has no effect on this pipeline.
    """
    pipe = _skeleton(folder)
    if pipe is None:
        steps, guidance = steps or _STEPS, 1.0 if guidance is None else guidance
        return Sampling(num_inference_steps=steps, guidance_scale=guidance, dtype=dtype), (1.0,)
    plain = {n: p.default for n, p in inspect.signature(type(pipe).__call__).parameters.items()}
    name = "guidance_scale"
    if "true_cfg_scale" in plain and not networks_of(pipe)[0].embeds_guidance:
        name = "true_cfg_scale"
    settings: dict[str, Any] = {
        "num_inference_steps": steps or plain.get("num_inference_steps") or _STEPS,
        name: plain.get(name) if guidance is None else guidance,
    }
    try:
        scale = PipelineCall(pipe, GivenSettings(**settings)).cfg_scale
    except (ConfigError, UnsupportedModelError):
        if guidance is not None:
            raise
        settings[name], scale = None, 1.0
    if settings[name] is None:
        settings[name] = 1.0
    starts = (scale, 1.0 - scale) if scale > 1.0 else (1.0,)
    return Sampling(**{"guidance_scale": 1.0, **settings, "dtype": dtype}), starts


def _skeleton(folder: Path) -> Any:
    try:
        return load_pipeline_skeleton(str(folder)) if is_pipeline(folder) else None
    except UnsupportedModelError:
        return None

"""The model card: what the hub shows and what a person copies from."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from calibri.config import SHIPPED
from calibri.results import Comparison, Evaluation, Figure

if TYPE_CHECKING:
    from calibri.artifact.calibration import Calibration

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#!|~&$])")
_HALF = ("bfloat16", "float16")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def render_card(calibration: Calibration, source: str) -> str:
    """Write the card of a calibration as Markdown with YAML front matter.

    Args:
        calibration: what the card describes.
        source: what a person passes to ``calibri.load``: a repository name or a folder.
    """
    template = _environment().get_template("card.md.jinja")
    return template.render(
        c=calibration,
        front_matter=Markup(front_matter(calibration, source)),
        source=source,
        pipeline=_pipeline(calibration),
        call=_call(calibration),
        comparisons=_comparisons(calibration.evaluation),
    )


def front_matter(calibration: Calibration, source: str) -> str:
    """The card's metadata as YAML, in the fields that the hub knows."""
    kind = "video" if calibration.sampling.num_frames else "image"
    task = f"text-to-{kind}"
    fields: dict[str, Any] = {"library_name": "calibri", "pipeline_tag": task}
    # The hub refuses a card whose base model is not the name of a repository.
    if _HUB_NAME.fullmatch(calibration.base_model):
        fields |= {"base_model": calibration.base_model, "base_model_relation": "adapter"}
    fields["tags"] = ["calibri", "diffusion", "calibration", calibration.transformer_class]
    metrics = _metrics(calibration)
    if metrics:
        result = {
            "task": {"type": task, "name": f"Text-to-{kind.title()}"},
            "dataset": {"type": "held-out-prompts", "name": "Held-out prompts"},
            "metrics": metrics,
        }
        name = source.rsplit("/", 1)[-1] or "calibration"
        fields["model-index"] = [{"name": name, "results": [result]}]
    return yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)


def _metrics(calibration: Calibration) -> list[dict[str, object]]:
    evaluation, steps = calibration.evaluation, calibration.sampling.num_inference_steps
    setting = evaluation and evaluation.setting(calibrated=True, num_inference_steps=steps)
    if not setting:
        return []
    return [
        {"type": reward, "name": f"{reward}, {steps} steps", "value": round(figure.mean, 6)}
        for reward, figure in setting.scores.items()
    ]


def _pipeline(calibration: Calibration) -> Markup:
    if calibration.base_model == SHIPPED:
        return Markup("calibri.shapes_pipeline()")
    dtype = calibration.sampling.dtype
    # diffusers before 0.40 passes by its later name in silence.
    precision = f", torch_dtype=torch.{dtype}" if dtype in _HALF else ""
    return _literal(calibration.base_model) + Markup(precision)


def _call(calibration: Calibration) -> Markup:
    sampling = calibration.sampling
    true_cfg = sampling.true_cfg_scale > 1.0
    # Without a negative prompt pipelines of true_cfg_scale run no guidance.
    negative = Markup(ascii(sampling.negative_prompt))
    arguments: Mapping[str, object] = {
        "num_inference_steps": sampling.num_inference_steps,
        "guidance_scale": sampling.guidance_scale,
        "true_cfg_scale": sampling.true_cfg_scale if true_cfg else None,
        "negative_prompt": negative if true_cfg or sampling.negative_prompt else None,
        "height": sampling.height,
        "width": sampling.width,
        "num_frames": sampling.num_frames,
    }
    given = (f"{name}={value}" for name, value in arguments.items() if value is not None)
    return Markup(", ".join(given))  # names of ours, numbers and literals only


def _comparisons(evaluation: Evaluation | None) -> list[Comparison]:
    return list(evaluation.comparisons) if evaluation else []


def _text(value: object) -> str:
    """Make a value inert in Markdown: one line, nothing that starts markup or HTML."""
    if isinstance(value, Markup):
        return str(value)
    line = " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())
    return _SPECIAL.sub(r"\\\1", line)


def _literal(value: str) -> Markup:
    return Markup(json.dumps(value))


def _figure(figure: Figure | None, sign: bool = False) -> Markup:
    if figure is None:
        return Markup("")
    style = "+.4f" if sign else ".4f"
    low, high = format(figure.low, style), format(figure.high, style)
    return Markup(f"{figure.mean:{style}} ({low} to {high})")


@lru_cache
def _environment() -> Environment:
    # `finalize` sees every value that the template prints: nothing is printed unescaped by mistake.
    environment = Environment(
        loader=PackageLoader("calibri.artifact", package_path=""),
        undefined=StrictUndefined,
        finalize=_text,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(literal=_literal, figure=_figure)
    return environment

"""A calibration in the formats of other tools, one file each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import nn

from calibri.artifact.calibration import Calibration
from calibri.artifact.formats.authors import export_authors_vector
from calibri.artifact.formats.ia3 import write_ia3
from calibri.artifact.formats.lora import write_lora
from calibri.errors import RunError
from calibri.pipelines import load_skeleton, load_transformer

Format = Literal["authors", "comfyui", "peft"]


def _write_authors(calibration: Calibration, transformer: nn.Module, output: Path) -> None:
    export_authors_vector(calibration.coefficients, transformer).write(output)


@dataclass(frozen=True)
class _Exporter:
    """How a format is written, and whether that needs the weights of the model."""

    write: Callable[[Calibration, nn.Module, Path], None]
    needs_weights: bool = False


EXPORTERS: dict[Format, _Exporter] = {
    "authors": _Exporter(_write_authors),
    "comfyui": _Exporter(write_lora, needs_weights=True),
    "peft": _Exporter(write_ia3),
}


def export(
    calibration: Calibration | str | Path,
    output: str | Path,
    *,
    format: Format,
    pipeline: str | None = None,
    strength: float = 1.0,
    revision: str | None = None,
) -> Path:
    """Write a calibration in the format of another tool.

    Args:
        calibration: a folder, a finished run, a repository id, or a ``Calibration``.
        output: what to write; must not exist.
        format: ``"authors"``, the JSON vector of the paper's authors; ``"comfyui"``, a safetensors
            file for its LoRA loader; ``"peft"``, the folder of an IA3 adapter.
        pipeline: another pipeline than the one it was made for (see ``load_pipeline``). Only
            ``"comfyui"`` reads its weights, the others its configuration.
        strength: 0 is the original model, 1 the full calibration.
        revision: branch, tag or commit of the pipeline's repository.

    Returns:
        What was written.

    Raises:
        RunError: the output exists or cannot be written.
        FuseError: the calibration is more than one factor for each branch.
        CalibriError: the calibration or the model cannot be read, or the format does not know it.
    """
    target = Path(output)
    if target.exists():
        raise RunError(f"'{target}' exists. Choose another --output.")
    if not isinstance(calibration, Calibration):
        calibration = Calibration.from_pretrained(calibration)
    exporter = EXPORTERS[format]
    read = load_transformer if exporter.needs_weights else load_skeleton
    transformer = read(pipeline or calibration.base_model, revision=revision)
    coefficients = calibration.coefficients.with_strength(strength)
    exporter.write(
        calibration.model_copy(update={"coefficients": coefficients}), transformer, target
    )
    return target

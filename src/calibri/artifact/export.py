"""A calibration in the formats of other tools."""

from __future__ import annotations

from pathlib import Path

from calibri.artifact.calibration import Calibration
from calibri.artifact.formats.registry import EXPORTERS, Format
from calibri.errors import RunError
from calibri.pipelines import load_skeleton
from calibri.signatures import typed


@typed
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
            file for its LoRA loader; ``"flux-blocks"``, text for its node FluxBlocksBuster;
            ``"peft"``, the folder of an IA3 adapter.
        pipeline: another pipeline than the one it was made for (see ``load_pipeline``); only its
            configuration is read.
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
    transformer = load_skeleton(pipeline or calibration.base_model, revision=revision)
    coefficients = calibration.coefficients.with_strength(strength)
    EXPORTERS[format].write(
        calibration.model_copy(update={"coefficients": coefficients}), transformer, target
    )
    return target

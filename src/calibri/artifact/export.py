"""A calibration in the formats of other tools."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from calibri.artifact.calibration import Calibration
from calibri.artifact.formats.registry import EXPORTERS, Format
from calibri.coefficients import Coefficients
from calibri.errors import RunError
from calibri.pipelines import (
    TRANSFORMERS,
    Network,
    load_skeleton,
    load_skeletons,
    networks_of,
)
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
            file for its LoRA loader and a workflow, or a folder with one for each of two
            transformers; ``"flux-blocks"``, text for its node FluxBlocksBuster;
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
    networks = _networks(calibration.coefficients, pipeline or calibration.base_model, revision)
    coefficients = calibration.coefficients.with_strength(strength)
    EXPORTERS[format].write(
        calibration.model_copy(update={"coefficients": coefficients}), networks, target
    )
    return target


def _networks(coefficients: Coefficients, name: str, revision: str | None) -> Sequence[Network]:
    """Build the transformer without weights, and the others where the coefficients name them."""
    others = tuple(f"{part}." for part in TRANSFORMERS[1:])
    if any(path.startswith(others) for path in coefficients.scales[0]):
        return load_skeletons(name, revision=revision)
    return networks_of(load_skeleton(name, revision=revision))

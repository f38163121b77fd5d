"""Save a pipeline with a calibration folded into its weights."""

from __future__ import annotations

from pathlib import Path

from calibri.artifact.apply import load
from calibri.artifact.calibration import Calibration
from calibri.errors import RunError
from calibri.files import check_new_folder
from calibri.pipelines import load_pipeline


def fuse(
    calibration: Calibration | str | Path,
    output: str | Path,
    *,
    pipeline: str | None = None,
    strength: float = 1.0,
    revision: str | None = None,
    dtype: str = "float32",
) -> Path:
    """Fold a calibration into a pipeline and save it as an ordinary diffusers folder.

    Args:
        calibration: a folder, a finished run, a repository id, or a ``Calibration``.
        output: folder to write; must not exist or be empty.
        pipeline: a name (see ``load_pipeline``); None for the calibration's base model.
        strength: 0 is the original model, 1 the full calibration.
        revision: branch, tag or commit of a repository.
        dtype: of the saved weights.

    Returns:
        The folder.

    Raises:
        RunError: the folder is not empty or cannot be written.
        FuseError: the calibration cannot be folded.
    """
    target = Path(output)
    check_new_folder(target)
    if not isinstance(calibration, Calibration):
        calibration = Calibration.from_pretrained(calibration)
    pipe = load_pipeline(
        pipeline or calibration.base_model, revision=revision, dtype=dtype, device="cpu"
    )
    load(pipe, calibration, strength=strength).fuse(keep_originals=False)
    try:
        pipe.save_pretrained(target)
    except OSError as error:
        raise RunError(f"Cannot write the pipeline to '{target}': {error}.") from error
    return target

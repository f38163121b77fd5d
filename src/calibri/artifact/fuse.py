"""Save a pipeline with a calibration folded into its weights."""

from __future__ import annotations

import warnings
from pathlib import Path

from calibri.artifact.apply import load
from calibri.artifact.calibration import Calibration
from calibri.artifact.stored_fuse import StoredPipeline, stored_folder
from calibri.artifact.survival import loss, survival
from calibri.errors import CalibriWarning, RunError, UnsupportedModelError
from calibri.files import check_new_folder
from calibri.pipelines import is_modular, load_pipeline
from calibri.signatures import typed


@typed
def fuse(
    calibration: Calibration | str | Path,
    output: str | Path,
    *,
    pipeline: str | None = None,
    strength: float = 1.0,
    revision: str | None = None,
    dtype: str | None = None,
) -> Path:
    """Fold a calibration into a pipeline and save it as an ordinary diffusers folder.

    Without a ``dtype`` the stored files are copied and the weights that take a scale changed in
    them, one at a time: every dtype, shard and other part of the pipeline stays as it is stored.
    A warning says where the stored precision rounds a good part of the calibration away. The LoRA
    of a calibration that was made on top of one is folded in, too.

    Args:
        calibration: a folder, a finished run, a repository id, or a ``Calibration``.
        output: folder to write; must not exist or be empty.
        pipeline: a name (see ``load_pipeline``); None for the calibration's base model.
        strength: 0 is the original model, 1 the full calibration.
        revision: branch, tag or commit of a repository.
        dtype: of all saved weights, which are then loaded and converted; None for that in which
            each is stored, or for float32 with a LoRA or where they are not stored as safetensors.

    Returns:
        The folder.

    Raises:
        RunError: the folder is not empty or cannot be written.
        FuseError: the calibration cannot be folded.
        UnsupportedModelError: the pipeline cannot be read.
    """
    target = Path(output)
    check_new_folder(target)
    if not isinstance(calibration, Calibration):
        calibration = Calibration.from_pretrained(calibration)
    name, lora = pipeline or calibration.base_model, calibration.lora
    if not (dtype or lora) and _fuse_stored(calibration, name, target, strength, revision):
        return target
    dtype = dtype or "float32"
    pipe = load_pipeline(name, revision=revision, lora=lora, dtype=dtype, device="cpu")
    load(pipe, calibration, strength=strength).fuse(keep_originals=False)
    try:
        # The list of a modular pipeline is to name the parts that are saved here.
        told = {"overwrite_modular_index": True} if is_modular(pipe) else {}
        pipe.save_pretrained(str(target), **told)
    except OSError as error:
        raise _unwritten(target, error) from error
    return target


def _fuse_stored(
    calibration: Calibration, name: str, target: Path, strength: float, revision: str | None
) -> bool:
    """Fold into the stored files; say whether they are such as can be changed."""
    folder = stored_folder(name, revision)
    if folder is None:
        return False
    coefficients = calibration.coefficients.with_strength(strength)
    wanted = calibration.model_copy(update={"coefficients": coefficients})
    try:
        stored = StoredPipeline(folder, wanted)
    except (OSError, ValueError) as error:
        raise UnsupportedModelError(
            f"Cannot read the weights of '{name}': {error}. Check the folder, or download the "
            "repository again."
        ) from error
    if not stored.is_complete:
        return False
    try:
        kept = stored.write(target)
    except OSError as error:
        raise _unwritten(target, error) from error
    if said := loss(survival(kept)):
        warnings.warn(said, CalibriWarning, stacklevel=3)
    return True


def _unwritten(target: Path, error: OSError) -> RunError:
    return RunError(f"Cannot write the pipeline to '{target}': {error}.")

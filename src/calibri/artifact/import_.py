"""A coefficient file of the paper's authors as the folder of a calibration."""

from __future__ import annotations

from pathlib import Path

from calibri.artifact.calibration import Calibration
from calibri.artifact.formats.authors import AuthorsFile, import_authors_vector
from calibri.config import Granularity
from calibri.files import check_new_folder
from calibri.pipelines import load_skeleton
from calibri.results import Record
from calibri.signatures import typed


class ImportedCalibration(Record):
    """What ``calibri import`` made.

    Attributes:
        folder: where it was written.
        calibration: without figures, with the paper's sampling settings.
    """

    folder: Path
    calibration: Calibration


@typed
def import_(
    file: str | Path,
    pipeline: str,
    *,
    output: str | Path | None = None,
    granularity: Granularity = "gate",
    members: int = 1,
    guidance_scale: float | None = None,
    as_they_ran: bool = False,
    revision: str | None = None,
) -> ImportedCalibration:
    """Turn a coefficient file of the paper's authors into a calibration and save it.

    ``calibri.import_authors_vector`` does the same for a loaded model and writes nothing.

    Args:
        file: their JSON file, ``cmaes_step_XXXX.json``.
        pipeline: what it was made for (see ``load_pipeline``); only its configuration is read.
        output: folder to write, new or empty; None for one here that bears the file's name.
        granularity: how sites share a scalar; FLUX has all three, the others ``"gate"``.
        members: of the ensemble, 1 to 16; 2 for the two branches of guidance.
        guidance_scale: w of their search; None for the paper's (spec section 3).
        as_they_ran: round every value to bfloat16, as their code did; their images need it.
        revision: branch, tag or commit of the pipeline's repository.

    Raises:
        RunError: the folder is not empty or cannot be written.
        CalibrationError: the file is not one of theirs, or of another length.
        UnsupportedModelError: the pipeline cannot be read, or the authors have no vectors for it
            at this granularity.
    """
    folder = Path(output or Path(file).stem)
    check_new_folder(folder)
    vector = AuthorsFile.read(file)
    calibration = import_authors_vector(
        vector,
        load_skeleton(pipeline, revision=revision),
        granularity=granularity,
        members=members,
        as_they_ran=as_they_ran,
        guidance_scale=guidance_scale,
        base_model=pipeline,
        base_revision=revision,
    )
    calibration.save_pretrained(folder)
    return ImportedCalibration(folder=folder, calibration=calibration)

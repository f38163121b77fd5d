"""Original and calibrated side by side, on one labelled picture."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from calibri.artifact.apply import AppliedCalibration, applied
from calibri.artifact.calibration import Calibration
from calibri.artifact.generate import Artist, Picture, loaded, settings_of, texts_of
from calibri.artifact.grid import labelled_grid
from calibri.coefficients import Coefficients
from calibri.errors import CalibrationError
from calibri.pipelines import networks_of
from calibri.sampling import GivenSettings
from calibri.signatures import typed

AnyCalibration = Calibration | Coefficients | AppliedCalibration


@typed
def compare(
    pipeline: Any,
    calibration: Calibration | Coefficients | AppliedCalibration | str | Path,
    prompts: Sequence[str] | str,
    *,
    strength: float | None = None,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    true_cfg_scale: float | None = None,
    negative_prompt: str | None = None,
    height: int | None = None,
    width: int | None = None,
    num_frames: int | None = None,
    image: str | Path | Image.Image | None = None,
    seed: int = 0,
    revision: str | None = None,
    lora: str | None = None,
    dtype: str = "float32",
    device: str = "auto",
) -> Picture:
    """Draw what a calibration changes: original on the left, calibrated on the right.

    Both columns start from the same noise, a row for each prompt with its text above. Notebooks
    show the image that is returned. The pipeline stays as it was.

    Args:
        pipeline: a name (see ``load_pipeline``) or a loaded pipeline.
        calibration: a folder, a finished run, a repository id, a ``Calibration``, what
            ``calibri.load`` returned for this pipeline, or bare coefficients such as
            ``calibri.preset`` makes.
        prompts: texts, or one.
        strength: 0 is the original model, 1 the full calibration; None for 1, or for that of a
            calibration that is loaded.
        num_inference_steps: of both columns; None for the steps of the calibration.
        guidance_scale: None for the guidance of the calibration.
        true_cfg_scale: the same for the pipelines that call it so (FLUX, Qwen-Image).
        negative_prompt: None for that of the calibration, or for the pipeline's own.
        height: pixels; None for those of the calibration, or for the pipeline's own.
        width: the same.
        num_frames: of a video; the same.
        image: source picture of a pipeline that edits, for every prompt.
        seed: noise seed; prompt i is sampled with ``seed + i``.
        revision: branch, tag or commit of a repository.
        lora: a LoRA that a named pipeline gets, a folder or a repository id; None for that of the
            calibration.
        dtype: of the weights, when the pipeline is loaded here.
        device: where to run, when the pipeline is loaded here.

    Returns:
        An RGB image; of a pipeline that makes videos, a list of them, one for each frame. Pictures
        smaller than 256 pixels are enlarged, without smoothing.

    Raises:
        ConfigError: there is no prompt, or guidance that has no effect on this pipeline.
        FuseError: the calibration is fused into the weights.
        CalibriError: the pipeline or the calibration cannot be loaded.
    """
    texts = texts_of(prompts)
    if isinstance(calibration, str | Path):
        calibration = Calibration.from_pretrained(calibration)
    pipeline = loaded(pipeline, _stored(calibration), revision, lora, dtype, device)
    given = {
        "num_inference_steps": num_inference_steps,
        "guidance_scale": guidance_scale,
        "true_cfg_scale": true_cfg_scale,
        "negative_prompt": negative_prompt,
        "height": height,
        "width": width,
        "num_frames": num_frames,
    }
    settings = settings_of(_stored(calibration), given)
    artist = Artist(pipeline, texts, seed, settings, image)
    with _on(pipeline, calibration, strength) as on:
        with on.lifted():
            artist.check_effect()
            before = artist.pictures()
        after = artist.pictures()
        labels = _labels(settings, on.strength)
    return _drawn(labels, texts, before, after)


def _stored(calibration: AnyCalibration) -> Calibration | None:
    if isinstance(calibration, AppliedCalibration):
        return calibration.calibration
    return calibration if isinstance(calibration, Calibration) else None


@contextlib.contextmanager
def _on(
    pipe: Any, calibration: AnyCalibration, strength: float | None
) -> Iterator[AppliedCalibration]:
    if not isinstance(calibration, AppliedCalibration):
        with applied(pipe, calibration, 1.0 if strength is None else strength) as on:
            yield on
        return
    if calibration.networks[0].transformer is not networks_of(pipe)[0].transformer:
        raise CalibrationError(
            "This calibration is loaded onto another pipeline. Pass the pipeline that it is on, or "
            "the folder or repository of the calibration."
        )
    own = calibration.strength
    calibration.set_strength(own if strength is None else strength)
    try:
        yield calibration
    finally:
        calibration.set_strength(own)


def _labels(settings: GivenSettings, strength: float) -> list[str]:
    steps = settings.num_inference_steps
    line = "" if steps is None else f"\n{steps} step{'s' * (steps != 1)}"
    part = "" if strength == 1.0 else f", strength {strength:g}"
    return [f"original{line}", f"calibrated{part}{line}"]


def _drawn(
    labels: Sequence[str],
    texts: Sequence[str],
    before: Sequence[Picture],
    after: Sequence[Picture],
) -> Picture:
    if isinstance(before[0], list):
        return [
            _grid(labels, texts, *moment)
            for moment in zip(_frames(before), _frames(after), strict=True)
        ]
    return _grid(labels, texts, before, after)


def _frames(videos: Sequence[Picture]) -> list[tuple[Image.Image, ...]]:
    """The first frame of each video, then the second, ..."""
    return list(zip(*videos, strict=True))


def _grid(
    labels: Sequence[str], texts: Sequence[str], before: Sequence[Any], after: Sequence[Any]
) -> Image.Image:
    rows = zip(texts, zip(before, after, strict=True), strict=True)
    return labelled_grid(labels, [(text, pair) for text, pair in rows])

"""What is compared: images of the same prompts, by condition."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from calibri.artifact import Artist, Calibration, applied, settings_of
from calibri.configure import check_own_prompts
from calibri.errors import StudyError
from calibri.pipelines import load_pipeline
from calibri.prompts import Prompt, load_picture, prompts_from
from calibri.runs import unseen_prompts

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
# Column or key of a file of prompts that says which image is of which.
_FILE = "file"
_NAMED = 5  # files that a message names


@dataclass(frozen=True)
class Material:
    """Images of the same prompts, by condition.

    Attributes:
        prompts: texts.
        conditions: name to what gives the images, in the order of the prompts; the last is the
            one that verdicts speak of.
    """

    prompts: Sequence[str]
    conditions: Mapping[str, Callable[[], Iterator[Image.Image]]]


def from_folders(images: Mapping[str, str | Path], prompts: str | Path) -> Material:
    """Take images that are there.

    Args:
        images: condition to its folder; in every folder are files of the same names.
        prompts: a file of prompts. Where it says the ``file`` of each, that counts; otherwise it
            has one for each file, in the order of the names, with numbers in them as numbers.

    Raises:
        StudyError: there are less than two folders, or files do not go with files or prompts.
        PromptError: the prompts cannot be read.
    """
    if len(images) < 2:
        raise StudyError("A comparison needs at least two folders. Give --images twice or more.")
    names = {condition: _image_names(Path(folder)) for condition, folder in images.items()}
    first, *others = names
    for other in others:
        _check_same(names[first], names[other], images[first], images[other])
    texts = _texts(prompts_from(str(prompts), "held_out", len(names[first]), 0), names[first])

    def pictures(folder: Path) -> Callable[[], Iterator[Image.Image]]:
        return lambda: (load_picture(folder / name, "A study") for name in texts)

    conditions = {condition: pictures(Path(folder)) for condition, folder in images.items()}
    return Material(list(texts.values()), conditions)


def _image_names(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise StudyError(f"'{folder}' is no folder. Give --images NAME=FOLDER.")
    found = [
        path.name
        for path in folder.iterdir()
        if path.suffix.lower() in _SUFFIXES and path.is_file()
    ]
    if not found:
        raise StudyError(f"'{folder}' has no images. Put {', '.join(_SUFFIXES)} files into it.")
    return sorted(found, key=_natural)


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort 10 after 9."""
    return [(int(n or 0), text) for text, n in re.findall(r"([^0-9]*)([0-9]*)", name)]


def _check_same(a: Sequence[str], b: Sequence[str], a_at: str | Path, b_at: str | Path) -> None:
    lone = sorted(set(a) ^ set(b), key=_natural)
    if lone:
        raise StudyError(
            f"The files of '{a_at}' and '{b_at}' do not have the same names: {len(lone)} are only "
            f"in one of them, such as {', '.join(lone[:_NAMED])}. Give the images of one prompt "
            "the same name in every folder."
        )


def _texts(prompts: Sequence[Prompt], names: Sequence[str]) -> dict[str, str]:
    """File name to prompt."""
    stated = {str(p.metadata[_FILE]): p.text for p in prompts if _FILE in p.metadata}
    if stated:
        missing = [name for name in names if name not in stated]
        if missing:
            raise StudyError(
                f"{len(missing)} images have no prompt, such as {', '.join(missing[:_NAMED])}. The "
                f"file of prompts says under '{_FILE}' which image is of which; add these, each "
                "with a text of its own."
            )
        return {name: stated[name] for name in names}
    if len(prompts) != len(names):
        raise StudyError(
            f"There are {len(names)} images in each folder and {len(prompts)} different prompts. "
            f"Give one prompt for each image in the order of the file names, or a .csv, .json or "
            f".jsonl file that says the '{_FILE}' of each."
        )
    return {name: prompt.text for name, prompt in zip(names, prompts, strict=True)}


def from_calibration(
    calibration: Calibration,
    *,
    pipeline: Any,
    prompts: str | Path | None,
    num_prompts: int,
    original_steps: Sequence[int],
    seed: int,
    device: str,
    dtype: str,
) -> Material:
    """Sample original and calibrated from the same noise.

    Args:
        calibration: what is judged, at its own settings.
        pipeline: a name or a loaded one; None for the calibration's base model.
        prompts: as ``calibri.evaluate`` takes them.
        num_prompts: prompts to use, at most.
        original_steps: of the original, each a condition; empty for those of the calibration.
        seed: of the noise; prompt i has ``seed + i``.
        device: where to run, when the pipeline is loaded here.
        dtype: of the weights, when the pipeline is loaded here.

    Raises:
        StudyError: the pipeline makes videos.
        CalibriError: pipeline or prompts cannot be had.
    """
    pipe = calibration.base_model if pipeline is None else pipeline
    if isinstance(pipe, str | Path):
        check_own_prompts(str(pipe), prompts)
    texts = _prompt_texts(calibration, prompts, num_prompts, seed)
    if isinstance(pipe, str | Path):
        pipe = load_pipeline(str(pipe), lora=calibration.lora, dtype=dtype, device=device)
    settings = settings_of(calibration, {})

    def sampled(steps: int, calibrated: bool) -> Callable[[], Iterator[Image.Image]]:
        of_steps = settings_of(calibration, {"num_inference_steps": steps})
        return lambda: _pictures(
            Artist(pipe, texts, seed, of_steps), pipe, calibration if calibrated else None
        )

    own = settings.num_inference_steps or 1
    return Material(
        texts,
        {_label("original", n): sampled(n, False) for n in original_steps or (own,)}
        | {_label("calibrated", own): sampled(own, True)},
    )


def _label(what: str, steps: int) -> str:
    return f"{what}, {steps} step{'s' * (steps != 1)}"


def _prompt_texts(
    calibration: Calibration, source: str | Path | None, count: int, seed: int
) -> list[str]:
    if source is None:
        return [prompt.text for prompt in unseen_prompts(calibration, count, seed)]
    return [p.text for p in prompts_from(str(source), "held_out", count, seed)[:count]]


def _pictures(artist: Artist, pipe: Any, calibration: Calibration | None) -> Iterator[Image.Image]:
    if calibration is None:
        made = artist.pictures()
    else:
        with applied(pipe, calibration, 1.0):
            made = artist.pictures()
    for picture in made:
        if isinstance(picture, list):
            raise StudyError("This pipeline makes videos, and a study shows images.")
        yield picture

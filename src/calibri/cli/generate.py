"""``calibri generate``."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from calibri.cli.display import err, loading, out, say, verbatim
from calibri.cli.options import (
    SAMPLING,
    DeviceOption,
    DtypeOption,
    GuidanceOption,
    StepsOption,
    StrengthOption,
)
from calibri.cli.paths import calibration_source
from calibri.cli.quiet import quiet_libraries
from calibri.errors import ConfigError, RunError

if TYPE_CHECKING:
    from PIL.Image import Image

VISIBLE = 256
_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


_Pipeline = Annotated[
    str,
    typer.Argument(
        metavar="PIPELINE",
        help="'shapes' (shipped), a diffusers folder, or a Hugging Face repository.",
    ),
]
_Prompts = Annotated[list[str], typer.Argument(metavar="PROMPT", help="One image for each.")]
_Calibration = Annotated[
    str | None,
    typer.Option(
        "--calibration",
        metavar="CALIBRATION",
        help="A calibration folder, a finished run, or a repository.",
    ),
]
_Compare = Annotated[
    bool, typer.Option("--compare", help="Original on the left, calibrated on the right.")
]
_Output = Annotated[
    Path,
    typer.Option("--output", metavar="FILE_OR_DIR", help="An image file, or a folder."),
]
_Enlarge = Annotated[
    bool,
    typer.Option(
        "--enlarge/--no-enlarge",
        help=f"Save images smaller than {VISIBLE} pixels enlarged, so that one can see them.",
    ),
]
_Seed = Annotated[int, typer.Option("--seed", min=0, help="Noise seed.", rich_help_panel=SAMPLING)]


def generate(
    pipeline: _Pipeline,
    prompts: _Prompts,
    calibration: _Calibration = None,
    compare: _Compare = False,
    strength: StrengthOption = 1.0,
    output: _Output = Path("images"),
    enlarge: _Enlarge = True,
    steps: StepsOption = None,
    guidance_scale: GuidanceOption = None,
    seed: _Seed = 0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
) -> None:
    """Generate images with a calibration, or side by side without and with it.

    calibri generate shapes --calibration runs/NAME "two small green triangles" --compare
    calibri generate shapes "a red circle" "a blue square" --calibration runs/NAME --output out
    """
    targets = target_files(output, prompts, seed)
    source = None if calibration is None else calibration_source(calibration)
    with loading(f"Sampling with {pipeline}"):
        from calibri.generation import generate as generate_images

        quiet_libraries()
        images = generate_images(
            pipeline,
            prompts,
            calibration=source,
            compare=compare,
            strength=strength,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            seed=seed,
            dtype=dtype,
            device=device,
        )
    factors = [save(image, target, enlarge) for image, target in zip(images, targets, strict=True)]
    if max(factors) > 1:
        say(
            err(),
            f"Enlarged {max(factors)} times without smoothing, to be seen; --no-enlarge saves "
            "the pixels as they are.",
        )


def target_files(output: Path, prompts: list[str], seed: int) -> list[Path]:
    """Name the file of every prompt: ``output`` itself, or files in it named after the prompts.

    Raises:
        ConfigError: one image file for several prompts, or a kind of image we cannot write.
    """
    if output.is_dir() or not output.suffix:
        return [
            output / f"{index:02d}-{_slug(prompt)}-seed{seed + index}.png"
            for index, prompt in enumerate(prompts)
        ]
    if output.suffix.lower() not in _FORMATS:
        raise ConfigError(
            f"Cannot write '{output.suffix}' images. Use {', '.join(_FORMATS)}, or a folder."
        )
    if len(prompts) > 1:
        raise ConfigError(f"'{output}' is one file for {len(prompts)} prompts. Give a folder.")
    return [output]


def _slug(prompt: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60] or "image"


def save(image: Image, target: Path, enlarge: bool) -> int:
    """Write an image, print its path and return how many times it was enlarged.

    Raises:
        RunError: the file cannot be written.
    """
    from PIL.Image import Resampling

    from calibri.run import write_atomically
    from calibri.run.files import plain_words

    factor = -(-VISIBLE // min(image.size)) if enlarge else 1
    size = (image.width * factor, image.height * factor)
    buffer = io.BytesIO()
    image.resize(size, Resampling.NEAREST).save(buffer, format=_FORMATS[target.suffix.lower()])
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"Could not make {target.parent}: {plain_words(error)}.") from error
    write_atomically(target, buffer.getvalue())
    verbatim(out(), str(target))
    return factor

"""``calibri generate``."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from calibri.cli.display import err, loading, out, say, verbatim
from calibri.cli.options import (
    SAMPLING,
    DeviceOption,
    DtypeOption,
    GuidanceOption,
    LoraOption,
    StepsOption,
    StrengthOption,
)
from calibri.cli.paths import calibration_source, check_pipeline
from calibri.cli.quiet import quiet_libraries
from calibri.errors import ConfigError, RunError

if TYPE_CHECKING:
    from PIL.Image import Image

    from calibri.artifact import Picture

_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".gif": "GIF"}
_ANIMATED = (".webp", ".gif")
_FRAMES_PER_SECOND = 16


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
    bool,
    typer.Option(
        "--compare",
        help="One picture of all prompts, labelled: original on the left, calibrated on the right.",
    ),
]
_Output = Annotated[
    Path,
    typer.Option("--output", metavar="FILE_OR_DIR", help="An image file, or a folder."),
]
_Enlarge = Annotated[
    bool,
    typer.Option(
        "--enlarge/--no-enlarge",
        help="Save images of less than 256 pixels enlarged, so that one can see them.",
    ),
]
_TrueCfgScale = Annotated[
    float | None,
    typer.Option(
        "--true-cfg-scale",
        help="Guidance of pipelines that call it so; default: as calibrated.",
        rich_help_panel=SAMPLING,
    ),
]
_NegativePrompt = Annotated[
    str | None,
    typer.Option(
        "--negative-prompt",
        help="Of the unconditional branch; default: as calibrated.",
        rich_help_panel=SAMPLING,
    ),
]
_Height = Annotated[
    int | None,
    typer.Option(
        "--height", min=1, help="Pixels; default: as calibrated.", rich_help_panel=SAMPLING
    ),
]
_Width = Annotated[
    int | None,
    typer.Option(
        "--width", min=1, help="Pixels; default: as calibrated.", rich_help_panel=SAMPLING
    ),
]
_NumFrames = Annotated[
    int | None,
    typer.Option(
        "--num-frames",
        min=1,
        help="Of a video; default: as calibrated.",
        rich_help_panel=SAMPLING,
    ),
]
_Image = Annotated[
    Path | None,
    typer.Option(
        "--image", metavar="FILE", help="Source picture of a pipeline that edits, for every prompt."
    ),
]
_Seed = Annotated[int, typer.Option("--seed", min=0, help="Noise seed.", rich_help_panel=SAMPLING)]


def generate(
    pipeline: _Pipeline,
    prompts: _Prompts,
    calibration: _Calibration = None,
    lora: LoraOption = None,
    compare: _Compare = False,
    strength: StrengthOption = 1.0,
    output: _Output = Path("images"),
    enlarge: _Enlarge = True,
    steps: StepsOption = None,
    guidance_scale: GuidanceOption = None,
    true_cfg_scale: _TrueCfgScale = None,
    negative_prompt: _NegativePrompt = None,
    height: _Height = None,
    width: _Width = None,
    num_frames: _NumFrames = None,
    image: _Image = None,
    seed: _Seed = 0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
) -> None:
    """Generate images with a calibration, or a picture of the difference it makes.

    calibri generate shapes --calibration runs/NAME "two small green triangles" --compare
    calibri generate shapes "a red circle" "a blue square" --calibration runs/NAME --output out

    Videos are written as animated WebP, or as GIF to a file that ends so.
    """
    if compare and calibration is None:
        raise ConfigError("Comparing needs a calibration. Pass --calibration FOLDER.")
    check_pipeline(pipeline)
    targets = target_files(output, prompts, seed, compare)
    source = None if calibration is None else calibration_source(calibration)
    arguments = dict(
        strength=strength,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        true_cfg_scale=true_cfg_scale,
        negative_prompt=negative_prompt,
        height=height,
        width=width,
        num_frames=num_frames,
        image=image,
        seed=seed,
        lora=lora,
        dtype=dtype,
        device=device,
    )
    with loading(f"Sampling with {pipeline}"):
        images = _pictures(pipeline, prompts, source, compare, arguments)
    factors = [save(image, target, enlarge) for image, target in zip(images, targets, strict=True)]
    if max(factors) > 1:
        say(
            err(),
            f"Enlarged {max(factors)} times without smoothing, to be seen; --no-enlarge saves "
            "the pixels as they are.",
        )


def _pictures(
    pipeline: str,
    prompts: list[str],
    calibration: str | None,
    compare: bool,
    arguments: dict[str, Any],
) -> list[Picture]:
    import calibri

    quiet_libraries()
    if compare and calibration is not None:
        return [calibri.compare(pipeline, calibration, prompts, **arguments)]
    return calibri.generate(pipeline, prompts, calibration=calibration, **arguments)


def target_files(output: Path, prompts: list[str], seed: int, compare: bool) -> list[Path]:
    """Name the file of every prompt: ``output`` itself, or files in it named after the prompts.

    A comparison is one file for all of them.

    Raises:
        ConfigError: one image file for several prompts, or a kind of image we cannot write.
    """
    if output.is_dir() or not output.suffix:
        if compare:
            more = f"-and-{len(prompts) - 1}-more" if len(prompts) > 1 else ""
            return [output / f"compared-{_slug(prompts[0])}{more}-seed{seed}.png"]
        return [
            output / f"{index:02d}-{_slug(prompt)}-seed{seed + index}.png"
            for index, prompt in enumerate(prompts)
        ]
    if output.suffix.lower() not in _FORMATS:
        raise ConfigError(
            f"Cannot write '{output.suffix}' images. Use {', '.join(_FORMATS)}, or a folder."
        )
    if len(prompts) > 1 and not compare:
        raise ConfigError(f"'{output}' is one file for {len(prompts)} prompts. Give a folder.")
    return [output]


def _slug(prompt: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60] or "image"


def save(picture: Picture, target: Path, enlarge: bool) -> int:
    """Write an image or a video, print its path and return how many times it was enlarged.

    Args:
        picture: an image, or the frames of a video.
        target: the file; a video that its kind cannot hold is written beside it as WebP.
        enlarge: make small ones visible, without smoothing.

    Raises:
        RunError: the file cannot be written.
    """
    from calibri.artifact import enlarged
    from calibri.files import plain_words, write_atomically

    frames = picture if isinstance(picture, list) else [picture]
    shown = [enlarged(frame) for frame in frames] if enlarge else frames
    if isinstance(picture, list) and target.suffix.lower() not in _ANIMATED:
        target = target.with_suffix(".webp")
    data = _encoded(shown, target.suffix.lower())
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"Could not make {target.parent}: {plain_words(error)}.") from error
    write_atomically(target, data)
    verbatim(out(), str(target))
    return shown[0].width // frames[0].width


def _encoded(frames: list[Image], suffix: str) -> bytes:
    video = dict(save_all=True, append_images=frames[1:], duration=1000 // _FRAMES_PER_SECOND)
    buffer = io.BytesIO()
    # loop=0 is without end.
    options = video | dict(loop=0) if len(frames) > 1 else {}
    frames[0].save(buffer, format=_FORMATS[suffix], **options)
    return buffer.getvalue()

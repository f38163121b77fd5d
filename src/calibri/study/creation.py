"""Make a study: images under names that say nothing, pairs, invitations."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from calibri.artifact import Calibration, enlarged
from calibri.errors import StudyError
from calibri.files import check_new_folder, plain_words, write_atomically
from calibri.seeds import derive_seed
from calibri.signatures import typed
from calibri.study.checks import ruined
from calibri.study.invitations import digest, invite
from calibri.study.material import Material, from_calibration, from_folders
from calibri.study.records import Pair, Study, StudyFolder
from calibri.study.votes import Votes
from calibri.version import __version__

_MOST_PARTICIPANTS = 10_000
_PAIRS_EACH = 30  # by default, at most: a quarter of an hour
_CHECK = ("image of the prompt", "ruined image")

_CONSENT = """\
You will see pairs of images that computers made of a text, and be asked which of the two you \
prefer and which fits the text better.

What is kept: your answers and when you gave them, under the number of your invitation; neither \
your name nor your address. The answers are used for research on image models and may be published.

Taking part is voluntary.
"""


@typed
def create(
    calibration: Calibration | str | Path | None = None,
    *,
    output: str | Path,
    images: Mapping[str, str | Path] | None = None,
    prompts: str | Path | None = None,
    pipeline: Any = None,
    num_prompts: int = 30,
    original_steps: Sequence[int] = (),
    participants: int = 20,
    pairs_each: int | None = None,
    checks: int = 3,
    title: str = "Which image is better?",
    consent: str | Path | None = None,
    seed: int = 1,
    device: str = "auto",
    dtype: str = "float32",
) -> Path:
    """Make a blind side-by-side study of images of the same prompts.

    Either of a calibration, whose images are sampled now, or of folders of images. Every pair of
    conditions is compared on every prompt.

    Args:
        calibration: a folder, a finished run, a repository id, or a ``Calibration``.
        output: folder to make; ``calibri.study.serve`` takes it.
        images: in place of a calibration: condition to a folder, two or more, with equal file
            names. Verdicts speak of the last.
        prompts: with a calibration as ``calibri.evaluate`` takes them; with folders a file, one
            prompt for each image in the order of the names, or with the ``file`` of each.
        pipeline: a name or a loaded pipeline; None for the calibration's base model.
        num_prompts: prompts to sample, with a calibration.
        original_steps: steps of the original, each a condition; empty for the calibration's.
        participants: invitations to make.
        pairs_each: pairs that each participant sees; None for all, at most 30.
        checks: attention checks that each participant sees besides, at most as many as pairs.
        title: heading of the first page.
        consent: a UTF-8 text file of what a participant agrees to; None for a plain text.
        seed: of the noise, of sides and of orders.
        device: where to run, when the pipeline is loaded here.
        dtype: of the weights, when the pipeline is loaded here.

    Returns:
        The folder. ``invitations.csv`` in it has the secret links.

    Raises:
        StudyError: neither or both of calibration and folders are given, a number is out of range,
            images of one prompt differ in size, or something cannot be written.
        CalibriError: calibration, pipeline, prompts or images cannot be had.
    """
    target = Path(output)
    check_new_folder(target)
    _check_numbers(num_prompts, original_steps, participants, pairs_each, checks)
    agreed = _CONSENT if consent is None else _text_of(Path(consent))
    if (calibration is None) == (images is None):
        raise StudyError(
            "A study compares either a calibration with its original or folders of images. Give a "
            "calibration, or --images NAME=FOLDER for each condition."
        )
    if images is not None:
        if prompts is None:
            raise StudyError("Folders of images need --prompts FILE: what was asked for.")
        material = from_folders(images, prompts)
    else:
        if not isinstance(calibration, Calibration):
            calibration = Calibration.from_pretrained(str(calibration))
        material = from_calibration(
            calibration, pipeline=pipeline, prompts=prompts, num_prompts=num_prompts,
            original_steps=original_steps, seed=seed, device=device, dtype=dtype,
        )  # fmt: skip
    with _new_folder(target) as folder:
        pairs = _pairs(material, folder, checks, seed)
        shown = sum(not pair.check for pair in pairs)
        study = Study(
            calibri_version=__version__,
            title=title,
            consent=agreed,
            conditions=tuple(material.conditions),
            pairs=pairs,
            pairs_each=_pairs_each(pairs_each, shown, checks),
            checks_each=checks,
            seed=seed,
        )
        _write(folder, study, participants)
    return target


def _check_numbers(
    num_prompts: int,
    original_steps: Sequence[int],
    participants: int,
    pairs_each: int | None,
    checks: int,
) -> None:
    least = {"num_prompts": (num_prompts, 1), "checks": (checks, 0)}
    least |= {"participants": (participants, 1), "pairs_each": (pairs_each or 1, 1)}
    least |= {f"original_steps[{i}]": (n, 1) for i, n in enumerate(original_steps)}
    for name, (value, bound) in least.items():
        if value < bound:
            raise StudyError(f"{name} is {value}; it must be at least {bound}.")
    if participants > _MOST_PARTICIPANTS:
        raise StudyError(f"{participants} participants are more than {_MOST_PARTICIPANTS}.")
    if pairs_each == 0:
        raise StudyError("pairs_each is 0; it must be at least 1.")


def _pairs_each(wanted: int | None, shown: int, checks: int) -> int:
    each = min(shown, _PAIRS_EACH) if wanted is None else wanted
    if each > shown:
        raise StudyError(f"There are {shown} pairs, fewer than the {each} of --pairs-each.")
    if checks > each:
        raise StudyError(
            f"{checks} attention checks among {each} pairs are too many. Lower --checks."
        )
    return each


def _text_of(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise StudyError(f"Cannot read the consent text {path}: {plain_words(error)}.") from error
    except UnicodeDecodeError as error:
        raise StudyError(f"{path} is not UTF-8 text. Save it as UTF-8.") from error
    if not text.strip():
        raise StudyError(f"{path} is empty. Write what participants agree to.")
    return text


@contextlib.contextmanager
def _new_folder(target: Path) -> Iterator[StudyFolder]:
    """Fill a folder beside the target and give it its name at the end: all of it or nothing."""
    made: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Only the owner may look into it: the invitations are secrets.
        made = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
        (made / "images").mkdir()
        yield StudyFolder(made)
        made.replace(target)
    except OSError as error:
        raise StudyError(f"Could not write {target}: {plain_words(error)}.") from error
    finally:
        if made is not None and made.exists():
            shutil.rmtree(made, ignore_errors=True)


def _pairs(material: Material, folder: StudyFolder, checks: int, seed: int) -> tuple[Pair, ...]:
    files = {
        condition: [_keep(picture, folder) for picture in pictures()]
        for condition, pictures in material.conditions.items()
    }
    pairs = [
        Pair(
            id=secrets.token_hex(8),
            prompt=prompt,
            conditions=(a, b),
            images=(files[a][i], files[b][i]),
        )
        for i, prompt in enumerate(material.prompts)
        for a, b in itertools.combinations(files, 2)
    ]
    for pair in pairs:
        _check_sizes(pair, folder)
    rng = np.random.default_rng(derive_seed(seed, "study", "checks"))
    return (*pairs, *(_check(k, material.prompts, files, folder, rng) for k in range(checks)))


def _keep(picture: Image.Image, folder: StudyFolder) -> str:
    """Write an image anew, so that neither its name nor its metadata tell where it is from."""
    name = f"{secrets.token_hex(16)}.png"
    plain = Image.fromarray(np.asarray(enlarged(picture.convert("RGB"))))
    plain.save(folder.images / name)
    return name


def _open(name: str, folder: StudyFolder) -> Image.Image:
    with Image.open(folder.images / name) as opened:
        picture: Image.Image = opened.convert("RGB")
    return picture


def _check_sizes(pair: Pair, folder: StudyFolder) -> None:
    sizes = [_open(name, folder).size for name in pair.images]
    if sizes[0] != sizes[1]:
        raise StudyError(
            f"The images of '{pair.prompt[:80]}' differ in size, {sizes[0]} and {sizes[1]}, which "
            "tells them apart. Give images of one size."
        )


def _check(
    number: int,
    prompts: Sequence[str],
    files: Mapping[str, Sequence[str]],
    folder: StudyFolder,
    rng: np.random.Generator,
) -> Pair:
    """Make one check; conditions take turns, so that no one looks good for it."""
    of = list(files.values())[number % len(files)]
    good = int(rng.integers(len(prompts)))
    other = (good + 1) % len(prompts)
    size = _open(of[good], folder).size
    bad = ruined(_open(of[other], folder).resize(size), rng)
    return Pair(
        id=secrets.token_hex(8),
        prompt=prompts[good],
        conditions=_CHECK,
        images=(of[good], _keep(bad, folder)),
        check=True,
    )


def _write(folder: StudyFolder, study: Study, participants: int) -> None:
    tokens = invite(participants)
    Votes.create(folder.votes, {number: digest(token) for number, token in tokens.items()})
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(["number", "path"])
    rows.writerows([number, f"/s/{token}"] for number, token in tokens.items())
    write_atomically(folder.invitations, table.getvalue().encode(), private=True)
    write_atomically(folder.file, study.model_dump_json(indent=1).encode())

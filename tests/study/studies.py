"""Small studies of drawn images, and participants who answer them."""

from __future__ import annotations

import csv
import html
import re
from pathlib import Path

import numpy as np
from PIL import Image

from calibri.study.creation import create
from calibri.study.deal import deal
from calibri.study.records import QUESTIONS, StudyFolder
from calibri.study.votes import Votes

HOSTILE = "</bdi><script>alert(1)</script><img src=x onerror=alert(1)> \"' {{ 7 * 7 }} \u202e"


def folders(root: Path, conditions=("original", "calibrated"), count: int = 6) -> dict[str, Path]:
    """Folders of plain images; the level of red tells the condition, of green the prompt."""
    made = {}
    for c, condition in enumerate(conditions):
        made[condition] = root / f"images-{c}"
        made[condition].mkdir(parents=True)
        for i in range(count):
            pixels = np.zeros((8, 8, 3), np.uint8)
            pixels[..., 0], pixels[..., 1] = 40 * c, 10 * i
            Image.fromarray(pixels).save(made[condition] / f"{i}.png")
    return made


def texts(count: int = 6) -> list[str]:
    return [f"{HOSTILE} {i}" for i in range(count)]


def study(root: Path, conditions=("original", "calibrated"), count: int = 6, **options) -> Path:
    """Make a study in a folder whose prompts are hostile texts."""
    root.mkdir(parents=True, exist_ok=True)
    prompts = root / "prompts.txt"
    prompts.write_text("\n".join(texts(count)), encoding="utf-8")
    images = folders(root, conditions, count)
    return create(images=images, prompts=prompts, output=root / "study", **options)


def links(made: Path) -> list[str]:
    with (made / "invitations.csv").open(newline="", encoding="utf-8") as file:
        return [row["path"] for row in csv.DictReader(file)]


def pair_of(page: str) -> str | None:
    """The pair that a page asks about; None where it asks nothing."""
    found = re.search(r'name="pair" value="([0-9a-f]+)"', page)
    return None if found is None else html.unescape(found[1])


def answer(pair: str, preference: str = "left", alignment: str = "tie") -> dict[str, str]:
    return {"pair": pair, "preference": preference, "alignment": alignment}


def answered(made: Path, participants: int, choose) -> None:
    """Let participants answer everything without a server.

    ``choose(rng, pair)`` gives the place of the condition that wins, 0 or 1, or None for a tie.
    """
    folder = StudyFolder(made)
    kept, shown = Votes(folder.votes), folder.read()
    pairs = shown.by_id()
    for number in range(1, participants + 1):
        rng = np.random.default_rng(number)
        kept.consent(number, lambda place: deal(shown, place))
        for dealt in kept.dealt(number):
            answers = {}
            for question in QUESTIONS:
                pair = pairs[dealt.pair]
                won = 0 if pair.check else choose(rng, pair)
                sides = {None: "tie", int(dealt.flipped): "left", 1 - dealt.flipped: "right"}
                answers[question] = sides[won]
            kept.add(number, dealt.pair, answers)

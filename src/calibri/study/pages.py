"""The pages that participants see; every text in them is escaped."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import resources

from calibri.reporting import environment
from calibri.study.deal import Dealt
from calibri.study.records import CHOICES, QUESTIONS, Study

# Files that the pages load, from this server alone.
FILES = {"study.css": "text/css", "study.js": "text/javascript"}


def file_bytes(name: str) -> bytes:
    """Read one of ``FILES``."""
    return resources.files("calibri.study").joinpath(name).read_bytes()


def consent_page(study: Study, base: str) -> str:
    """What a participant agrees to before anything is shown.

    Args:
        base: path of the participant's pages.
    """
    paragraphs = [text.strip() for text in re.split(r"\n\s*\n", study.consent) if text.strip()]
    pairs = study.pairs_each + study.checks_each
    return _drawn("consent.html.jinja", study=study, base=base, paragraphs=paragraphs, pairs=pairs)


def pair_page(study: Study, base: str, dealt: Sequence[Dealt], position: int) -> str:
    """Two images and the questions about them.

    Args:
        base: path of the participant's pages.
        dealt: what the participant sees in all.
        position: of this pair in it.
    """
    here = dealt[position]
    pair = study.by_id()[here.pair]
    return _drawn(
        "pair.html.jinja",
        study=study,
        base=base,
        pair=pair,
        images=pair.images[::-1] if here.flipped else pair.images,
        done=position,
        total=len(dealt),
        questions=QUESTIONS,
        choices=CHOICES,
    )


def message_page(title: str, text: str) -> str:
    """A page that only says something."""
    return _drawn("message.html.jinja", title=title, text=text)


def _drawn(template: str, **values: object) -> str:
    return environment("calibri.study").get_template(template).render(**values)

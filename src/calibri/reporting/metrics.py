"""How the figures about sets of images are shown; a new one is a field of a result and a row."""

from __future__ import annotations

from typing import NamedTuple


class Metric(NamedTuple):
    """A figure of ``SettingResult`` beside the scores.

    Attributes:
        name: of the field.
        label: in a terminal.
        heading: of a column, with a note below it.
        title: of a chart, with a note below it.
        digits: behind the point.
        better: in words, for a sentence; empty where it speaks for itself.
    """

    name: str
    label: str
    heading: tuple[str, str]
    title: tuple[str, str]
    digits: int
    better: str = ""


METRICS = (
    Metric("diversity", "diversity", ("Diversity", ""),
           ("Diversity", "between images of a prompt"), 3),
    Metric("frechet", "Frechet", ("Fr\xe9chet", "lower is better"),
           ("Fr\xe9chet distance", "to reference images; lower is better"), 2, "lower is better"),
)  # fmt: skip

"""Which modules of ComfyUI's model take which scale.

``places.json`` holds rows of (module, site, layer, block) for each class of diffusers, ``*`` being
a number. Calibri writes it from its own tables; the outputs of a model have no site.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_COLUMNS = {"gate": 1, "layer": 2, "block": 3}


@dataclass(frozen=True)
class Places:
    """The modules of one model.

    Attributes:
        scaled: path of a module to the name of its coefficient.
        outputs: paths of the last linears.
    """

    scaled: dict[str, str]
    outputs: tuple[str, ...]


@cache
def _table() -> dict[str, list[list[str]]]:
    loaded: dict[str, list[list[str]]] = json.loads(
        Path(__file__).with_name("places.json").read_text(encoding="utf-8")
    )
    return loaded


def find_places(
    transformer_class: str, granularity: str, wanted: Iterable[str], modules: Iterable[str]
) -> Places:
    """Find the modules of a model that a calibration scales.

    Args:
        transformer_class: that it was made for, in diffusers.
        granularity: its own.
        wanted: names of its coefficients.
        modules: paths of ComfyUI's model.

    Raises:
        ValueError: it is for another model, in words.
    """
    rows = _table().get(transformer_class)
    if rows is None:
        raise ValueError(
            f"This calibration is for a {transformer_class}, whose names in ComfyUI are not known; "
            f"they are for {', '.join(_table())}."
        )
    scaled: dict[str, str] = {}
    outputs = []
    for path in modules:
        for row in rows:
            number = _number(row[0], path)
            if number is not None and row[1]:
                scaled[path] = row[_COLUMNS[granularity]].replace("*", number, 1)
            elif number is not None:
                outputs.append(path)
    names = set(wanted)
    if not outputs or set(scaled.values()) != names:
        raise ValueError(
            f"This calibration is for a {transformer_class} with {len(names)} coefficients, and "
            f"{len(names & set(scaled.values()))} of them are in the model that is loaded. Load "
            "the model it was made for."
        )
    return Places(scaled, tuple(outputs))


def _number(pattern: str, path: str) -> str | None:
    """Return the number that the first ``*`` of a pattern stands for; None if it does not fit."""
    found = re.fullmatch(re.escape(pattern).replace(r"\*", r"(\d+)"), path)
    return None if found is None else next(iter(found.groups()), "")

"""Units of work: rows of several candidates that go through the pipeline together.

A unit is the grain of the journal and of what a worker is sent, so it is plain JSON both ways.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from calibri.arrays import Scores
from calibri.coefficients import Coefficients
from calibri.prompts import Prompt
from calibri.results import Fidelity
from calibri.sampling import Noise

# From images (uint8, N x 3 x H x W) and N prompts to one row of numbers per image.
Measure = Callable[[Tensor, Sequence[str]], Tensor]
Row = tuple[int, Noise]
# Name of a measure to its encoded scores, one for each row of a unit.
Scored = dict[str, Any]


@dataclass(frozen=True)
class Unit:
    """Images to sample and to measure together.

    Attributes:
        candidates: coefficients that rows refer to.
        rows: index of a candidate and what to sample, one image each.
        measures: names of what is measured.
        fidelity: of every row.
    """

    candidates: tuple[Coefficients, ...]
    rows: tuple[Row, ...]
    measures: tuple[str, ...]
    fidelity: Fidelity

    def to_json(self) -> dict[str, Any]:
        """Give everything as plain values; floats keep every bit."""
        return {
            "candidates": [candidate.model_dump(mode="json") for candidate in self.candidates],
            "rows": [[c, n.prompt.id, n.prompt.text, n.seed] for c, n in self.rows],
            "measures": list(self.measures),
            "fidelity": self.fidelity.model_dump(mode="json"),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Unit:
        """Read what ``to_json`` gave."""
        return cls(
            tuple(Coefficients.model_validate(candidate) for candidate in data["candidates"]),
            tuple((c, Noise(Prompt(id_, text), seed)) for c, id_, text, seed in data["rows"]),
            tuple(data["measures"]),
            Fidelity.model_validate(data["fidelity"]),
        )

    @cached_property
    def digest(self) -> str:
        """What decides the scores, as 16 hexadecimal digits."""
        content = self.to_json() | {"measures": sorted(self.measures)}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


class Backend(Protocol):
    """Computes units, here or in other processes."""

    def run(
        self, units: Iterable[tuple[int, Unit]], measures: Mapping[str, Measure]
    ) -> Iterator[tuple[int, Scored]]:
        """Yield the index of a unit and its scores as units are finished, in any order."""
        ...

    def close(self) -> None:
        """Give back what was held."""
        ...


def cut(rows: Sequence[Row], size: int) -> list[list[Row]]:
    """Cut rows into parts of at most ``size``, not through the images of a prompt if they fit."""
    parts: list[list[Row]] = [[]]
    for _, members in itertools.groupby(rows, key=lambda row: (row[0], row[1].prompt.id)):
        group = list(members)
        if parts[-1] and len(parts[-1]) + len(group) > size:
            parts.append([])
        parts[-1] += group
        while len(parts[-1]) > size:
            parts[-1:] = [parts[-1][:size], parts[-1][size:]]
    return parts


def make_unit(
    candidates: Sequence[Coefficients],
    rows: Sequence[Row],
    measures: Sequence[str],
    fidelity: Fidelity,
) -> Unit:
    """Make a unit of some rows, with the candidates that they refer to and no others."""
    used = sorted({candidate for candidate, _ in rows})
    place = {candidate: index for index, candidate in enumerate(used)}
    return Unit(
        tuple(candidates[candidate] for candidate in used),
        tuple((place[candidate], noise) for candidate, noise in rows),
        tuple(measures),
        fidelity,
    )


def encode(scores: Tensor) -> Any:
    """Scores of a unit as JSON: a list of numbers, or feature vectors in half precision."""
    if scores.ndim == 1:  # None is a failed image: JSON has no NaN
        return [score if math.isfinite(score) else None for score in map(float, scores)]
    # Feature vectors are many and need no more than half precision.
    data = scores.to(torch.float16).cpu().numpy()
    return {"float16": base64.b64encode(data.tobytes()).decode(), "shape": list(data.shape)}


def decode(stored: Any) -> Scores:
    """Read what ``encode`` gave: float64, NaN for a failed image."""
    if isinstance(stored, list):
        return np.array([np.nan if score is None else score for score in stored])
    data = np.frombuffer(base64.b64decode(stored["float16"]), dtype=np.float16)
    return np.asarray(data.reshape(stored["shape"]), dtype=np.float64)

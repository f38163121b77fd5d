"""Units of work: rows of several candidates that go through the pipeline together.

A unit is the grain of the journal and of what a worker is sent, so it is plain JSON both ways. What
comes of it is plain JSON too (``Result``): this is all that a back-end has to carry.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol

from calibri.coefficients import Coefficients
from calibri.prompts import Prompt
from calibri.results import Fidelity
from calibri.sampling import Noise
from calibri.search import IMAGES_PER_GRADIENT

Kind = Literal["scores", "images", "gradients", "policy"]
# Index of a candidate, and what to sample with it.
Row = tuple[int, Noise]
# What a back-end is to call a unit: anything that can be the key of a dictionary.
Index = Any
# By kind: {"scores": ..}, {"images": ..} or {"scores": .., "gradients": ..}, this of policies, too;
# see ``plain_json``.
# How it came about may stand beside that: "worker", its name, and "busy", its seconds, where there
# are several; "attempts", how many workers it took, where one was lost; "retried", images that were
# sampled again because a score failed; "batch_size", where fewer images fitted than configured.
Result = dict[str, Any]


@dataclass(frozen=True)
class Unit:
    """Images to sample together, and what is wanted of them.

    Attributes:
        candidates: coefficients that rows refer to.
        rows: index of a candidate and what to sample, one image each.
        measures: names of what is measured or differentiated; none for images.
        fidelity: of every row.
        kind: ``"scores"`` of every row, the ``"images"`` themselves, or ``"gradients"`` of scores
            with respect to the scales of the only candidate, of every row; ``"policy"`` for policy
            gradients in place of these, summed over the rows.
        last_steps: of gradients: steps of the sampler that carry one; None for all.
        noise_level: of policies: of the noise in each step (``calibri.sampling.Rollouts``).
    """

    candidates: tuple[Coefficients, ...]
    rows: tuple[Row, ...]
    measures: tuple[str, ...]
    fidelity: Fidelity
    kind: Kind = "scores"
    last_steps: int | None = None
    noise_level: float | None = None

    @property
    def images(self) -> int:
        """What it costs in images: one with its gradient is counted as three."""
        return len(self.rows) * (IMAGES_PER_GRADIENT if self.kind == "gradients" else 1)

    def to_json(self) -> dict[str, Any]:
        """Give everything as plain values; floats keep every bit."""
        plain = {
            "candidates": [candidate.model_dump(mode="json") for candidate in self.candidates],
            "rows": [[c, n.prompt.id, n.prompt.text, n.seed] for c, n in self.rows],
            "measures": list(self.measures),
            "fidelity": self.fidelity.model_dump(mode="json"),
        }
        # Journals know scores without a kind, and prompts of which nothing else is known.
        other: dict[str, Any] = {}
        if self.kind != "scores":
            other = {"kind": self.kind, "last_steps": self.last_steps}
        if self.kind == "gradients":
            other["of"] = "every row"  # journals of before have their sum
        if self.noise_level is not None:
            other["noise_level"] = self.noise_level
        if metadata := {
            n.prompt.id: dict(n.prompt.metadata) for _, n in self.rows if n.prompt.metadata
        }:
            other["metadata"] = metadata
        return plain | other

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Unit:
        """Read what ``to_json`` gave."""
        metadata = data.get("metadata", {})
        return cls(
            tuple(Coefficients.model_validate(candidate) for candidate in data["candidates"]),
            tuple(
                (c, Noise(Prompt(id_, text, metadata.get(id_, {})), seed))
                for c, id_, text, seed in data["rows"]
            ),
            tuple(data["measures"]),
            Fidelity.model_validate(data["fidelity"]),
            data.get("kind", "scores"),
            data.get("last_steps"),
            data.get("noise_level"),
        )

    @cached_property
    def digest(self) -> str:
        """What decides the result, as 16 hexadecimal digits."""
        content = self.to_json() | {"measures": sorted(self.measures)}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


class Backend(Protocol):
    """Computes units, here or elsewhere."""

    def run(
        self, units: Iterable[tuple[Index, Unit]], ahead: Iterable[tuple[Index, Unit]] = ()
    ) -> Iterator[tuple[Index, Result]]:
        """Yield the index of a unit and its result as units are finished, in any order.

        Args:
            units: all of which are waited for.
            ahead: may be computed, first those that come first, by workers that would idle; what
                comes of them is yielded in this call or the next that has them.
        """
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
    kind: Kind = "scores",
    last_steps: int | None = None,
    noise_level: float | None = None,
) -> Unit:
    """Make a unit of some rows, with the candidates that they refer to and no others."""
    used = sorted({candidate for candidate, _ in rows})
    place = {candidate: index for index, candidate in enumerate(used)}
    return Unit(
        tuple(candidates[candidate] for candidate in used),
        tuple((place[candidate], noise) for candidate, noise in rows),
        tuple(measures),
        fidelity,
        kind,
        last_steps,
        noise_level,
    )

"""A calibration as its folder holds it, read without Calibri.

It describes ``F(x, t) = sum_i omega_i f(x, t, y_i; s_i)`` over members i: y_i is a branch of
guidance, omega_i an output weight, s_i the scales of the branches of the residual stream. Both may
have knots along the sampling trajectory, evenly spaced from the image, 0, to pure noise, 1.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_NAME = "calibri.json"
_VERSIONS = (1, 2)
_MAX_BYTES = 10 * 2**20
_BRANCHES = ("conditional", "unconditional")

# What the names of a transformer's coefficients begin with where it is not the first.
_SECOND, _UNCONDITIONAL = "transformer_2.", "unconditional_transformer."
ONLY = "only"
PARTS = (ONLY, "high noise", "low noise")

Knots = tuple[Any, ...]


class WrongPartError(ValueError):
    """Another of two transformers is asked for than there is."""


@dataclass(frozen=True)
class Member:
    """One term of the sum.

    Attributes:
        branch: of guidance: 0 the conditional, 1 the unconditional.
        weights: factor on what the model returns, at each knot; 1 is the original model.
        scales: coefficient to scale, at each knot.
    """

    branch: int
    weights: tuple[float, ...]
    scales: tuple[dict[str, float], ...]

    @property
    def is_constant(self) -> bool:
        """Whether nothing changes over the sampling steps."""
        return len(self.weights) == len(self.scales) == 1

    def weight(self, position: float) -> float:
        """Return the factor on the output at a point of the trajectory, 0 image to 1 noise."""
        near, far, share = _between(len(self.weights), position)
        return (1 - share) * self.weights[near] + share * self.weights[far]

    def scale(self, name: str, position: float) -> float:
        """Return a scale at a point of the trajectory."""
        near, far, share = _between(len(self.scales), position)
        return (1 - share) * self.scales[near][name] + share * self.scales[far][name]


@dataclass(frozen=True)
class Calibration:
    """What a node needs of a calibration.

    Attributes:
        transformer_class: name of the class in diffusers.
        granularity: which branches share a scale: ``"block"``, ``"layer"`` or ``"gate"``.
        members: of the sum.
        guidance: factor on the guidance that the model embeds.
        shift: factor on the shift of the noise schedule.
        advice: sampling settings that it was made for, in words.
    """

    transformer_class: str
    granularity: str
    members: tuple[Member, ...]
    guidance: float
    shift: float
    advice: str

    @property
    def is_constant(self) -> bool:
        """Whether one set of weights holds it, apart from guidance and shift."""
        first, *others = self.members
        alike = (
            m.branch != first.branch
            and m.scales == first.scales
            and all(map(_close, m.weights, first.weights))
            for m in others
        )
        return all(m.is_constant for m in self.members) and all(alike)


def read_calibration(path: str, strength: float, part: str = ONLY) -> Calibration:
    """Read a calibration and blend it with the original model.

    Args:
        path: a folder with ``calibri.json``, that of a finished run, or the file.
        strength: 0 the original model, 1 the full calibration.
        part: which of ``PARTS`` the model is.

    Raises:
        ValueError: it cannot be read, or has no such part, in words.
    """
    document = _document(_file(path))
    try:
        found = document["coefficients"]
        found = {**found, "scales": _of_part(found["scales"], part)}
        return Calibration(
            document["transformer_class"],
            found["granularity"],
            tuple(_members(found, strength)),
            1 + strength * (found.get("guidance", 1.0) - 1),
            1 + strength * (found.get("shift", 1.0) - 1),
            _advice(document["sampling"]),
        )
    except WrongPartError:
        raise
    except (KeyError, TypeError, ValueError, IndexError, ZeroDivisionError) as error:
        raise ValueError(
            f"'{path}' is not a calibration of Calibri: {error!r} was not understood. "
            "Download it again."
        ) from error


def _of_part(scales: list[dict[str, float]], part: str) -> list[dict[str, float]]:
    """Keep the coefficients of one transformer, by the names they have in it."""
    if any(name.startswith(_UNCONDITIONAL) for knot in scales for name in knot):
        raise WrongPartError(
            "This calibration has a transformer for each branch of guidance, which this node does "
            "not load. Use the files of `calibri export --format comfyui`."
        )
    two = any(name.startswith(_SECOND) for knot in scales for name in knot)
    if two and part == ONLY:
        raise WrongPartError(
            "This calibration is of two transformers. Choose 'high noise' or 'low noise' as its "
            "part, as the model is that is loaded, and load it onto both."
        )
    if not two and part != ONLY:
        raise WrongPartError(
            f"This calibration is of one transformer. Choose '{ONLY}' as its part."
        )
    second = part == PARTS[-1]
    return [
        {
            name.removeprefix(_SECOND): value
            for name, value in knot.items()
            if name.startswith(_SECOND) == second
        }
        for knot in scales
    ]


def _file(path: str) -> Path:
    given = Path(path.strip().strip('"'))
    for file in (given, given / _NAME, given / "calibration" / _NAME):
        if file.is_file():
            return file
    raise ValueError(f"No calibration was found in '{given}'. Pass the folder with {_NAME}.")


def _document(file: Path) -> Any:
    if file.suffix != ".json" or file.stat().st_size > _MAX_BYTES:
        raise ValueError(
            f"'{file}' is no {_NAME}. A safetensors file of `calibri export` goes to models/loras "
            "and ComfyUI's own LoRA loader."
        )
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        version = document["format_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"'{file}' is damaged: {error}. Download it again.") from error
    if version not in _VERSIONS:
        raise ValueError(
            f"'{file}' has format version {version}, and this node reads up to "
            f"{_VERSIONS[-1]}. Update the node."
        )
    return document


def _members(found: dict[str, Any], strength: float) -> list[Member]:
    starts = found["start_weights"]
    named = found.get("branches") or _BRANCHES[: len(starts)]
    branches = [_BRANCHES.index(name) for name in named]
    # ComfyUI combines the branches itself, with the weights of the uncalibrated model.
    own = [
        sum(s for s, b in zip(starts, branches, strict=True) if b == branch) for branch in branches
    ]
    knots = found.get("knots", 1)
    scales = _by_knot(found["scales"], knots)
    weights = _by_knot(found["output_weights"], found.get("output_knots", 1))
    scales = scales * len(starts) if len(scales) == 1 else scales
    return [
        Member(
            branches[i],
            tuple((start + strength * (w - start)) / own[i] for w in weights[i]),
            tuple({n: 1 + strength * (s - 1) for n, s in knot.items()} for knot in scales[i]),
        )
        for i, start in enumerate(starts)
    ]


def _close(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-9)


def _by_knot(values: list[Any], knots: int) -> list[Knots]:
    return [tuple(values[first : first + knots]) for first in range(0, len(values), knots)]


def _between(knots: int, position: float) -> tuple[int, int, float]:
    place = min(max(position, 0.0), 1.0) * (knots - 1)
    near = min(int(place), max(knots - 2, 0))
    return near, min(near + 1, knots - 1), place - near


def _advice(sampling: dict[str, Any]) -> str:
    guidance, cfg = sampling["guidance_scale"], sampling.get("true_cfg_scale", 1.0)
    parts = [f"{sampling['num_inference_steps']} steps", f"guidance {guidance:g}"]
    parts += [f"classifier-free guidance {cfg:g}"] if cfg != 1.0 else []
    if sampling.get("negative_prompt"):
        parts.append(f"the negative prompt {sampling['negative_prompt']!r}")
    return "Made for " + ", ".join(parts)

"""Read and write the coefficient files of the authors of the paper.

Their file holds one flat vector. Its order is that of spec section 5: groups of sites, the members
of the ensemble outermost within each group, and the output weights last, one for each member.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from pydantic import Field, FiniteFloat, ValidationError
from torch import nn

from calibri.artifact.calibration import Calibration, Sampling
from calibri.artifact.folder_format import MAX_BYTES
from calibri.coefficients import Branch, Coefficients, Member
from calibri.config import Granularity
from calibri.errors import CalibrationError, ConfigError, UnsupportedModelError
from calibri.files import write_atomically
from calibri.pipelines import (
    AuthorsVector,
    classes_where,
    family_of,
    parameter_names,
    sites_of,
)
from calibri.results import Record
from calibri.signatures import typed
from calibri.version import __version__

_MAX_MEMBERS = 16


class AuthorsFile(Record):
    """The authors' JSON file.

    Attributes:
        solution: the flat vector.
        shapes: counts of its parts; not needed to read it.
        step: generation of their search.
        train_best: best and ``train_mean`` mean reward of the generation; ``val`` on held-out
            prompts.
    """

    model_config = {"frozen": True, "extra": "ignore"}

    solution: tuple[FiniteFloat, ...] = Field(min_length=1, max_length=100_000)
    shapes: object = None
    step: int | None = None
    train_best: object = None
    train_mean: object = None
    val: object = None
    sigma: object = None

    @classmethod
    def read(cls, path: str | Path) -> AuthorsFile:
        """Read a file; only JSON of a bounded size is looked at.

        Raises:
            CalibrationError: there is no such file, it is too large, or it is not one of theirs.
        """
        try:
            with Path(path).open("rb") as file:
                data = file.read(MAX_BYTES + 1)
        except OSError as error:
            raise CalibrationError(
                f"'{path}' could not be read: {error.strerror or error}. Check the path."
            ) from error
        if len(data) > MAX_BYTES:
            raise CalibrationError(
                f"'{path}' has more than {MAX_BYTES // 2**20} MB. A file of the authors has some "
                "kilobytes."
            )
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, first["loc"])) or "the document"
            raise CalibrationError(
                f"'{path}' is not a coefficient file of the authors: {place}: {first['msg']}. It "
                "must be a JSON object with the list of numbers 'solution'."
            ) from error

    def write(self, path: str | Path) -> None:
        """Write the file.

        Raises:
            RunError: it cannot be written.
        """
        write_atomically(Path(path), (self.model_dump_json(indent=2) + "\n").encode())


@typed
def import_authors_vector(
    solution: AuthorsFile | Sequence[float],
    transformer: nn.Module,
    *,
    granularity: Granularity = "gate",
    members: int = 1,
    as_they_ran: bool = False,
    guidance_scale: float | None = None,
    base_model: str = "",
    base_revision: str | None = None,
    objective: str = "hpsv3",
) -> Calibration:
    """Turn a vector of the authors into a calibration that ``calibri.load`` takes.

    Args:
        solution: a file of theirs, or its flat vector.
        transformer: the model that the vector is for; its weights may be on the meta device.
        granularity: how sites share a scalar; FLUX has all three, the others ``"gate"``.
        members: members M of the ensemble. On FLUX they all see the prompt; on the models with
            classifier-free guidance the second sees the negative prompt.
        as_they_ran: round every value to bfloat16, as their code did; their images need it.
        guidance_scale: w of their search; None for the paper's (spec section 3).
        base_model: repository or folder of the pipeline, for the record.
        base_revision: its commit, for the record.
        objective: the reward that was maximised; their file does not say.

    Returns:
        A calibration with the paper's sampling settings and without figures. Entries that have no
        effect in the authors' code (the two MLP gates of Qwen-Image) are 1.

    Raises:
        UnsupportedModelError: the authors have no vectors for this model or granularity.
        CalibrationError: the vector has another length.
    """
    file = solution if isinstance(solution, AuthorsFile) else AuthorsFile(solution=tuple(solution))
    authors = _authors(transformer, granularity)
    values = _as_they_ran(file.solution) if as_they_ran else file.solution
    scales = _split(values, _names(transformer, granularity), members, transformer, granularity)
    scale = authors.guidance_scale if guidance_scale is None else guidance_scale
    guided = members > 1 and scale > 1.0 and not authors.embedded
    starts = _starts(members, scale if guided else None)
    found = [
        Member(branch, start, (weight,), (_effective(own, transformer, granularity),))
        for (branch, start), weight, own in zip(starts, values[-members:], scales, strict=True)
    ]
    return Calibration(
        calibri_version=__version__,
        transformer_class=type(transformer).__name__,
        base_model=base_model or type(transformer).__name__,
        base_revision=base_revision,
        coefficients=Coefficients.from_members(found, granularity),
        sampling=_sampling(scale if guided or authors.embedded else 1.0),
        rewards={objective: "as the authors ran it"},
        objective=objective,
        provenance={"source": "the authors' vector", "step": file.step or 0},
    )


def write_authors(calibration: Calibration, transformer: nn.Module, output: Path) -> None:
    """Write the JSON vector of a calibration; errors as of ``export_authors_vector``."""
    export_authors_vector(calibration.coefficients, transformer).write(output)


@typed
def export_authors_vector(coefficients: Coefficients, transformer: nn.Module) -> AuthorsFile:
    """Write coefficients in the authors' order; the inverse of ``import_authors_vector``.

    Args:
        coefficients: of this transformer.
        transformer: its weights may be on the meta device.

    Raises:
        UnsupportedModelError: the authors have no vectors for this model or granularity.
        CalibrationError: the coefficients are of another model.
    """
    _authors(transformer, coefficients.granularity)
    coefficients.site_scales(sites_of(transformer))  # refuses another size
    if coefficients.trajectory_knots > 1:
        raise CalibrationError(
            f"The authors' files hold constant scalars; these change over the sampling steps and "
            f"have {coefficients.trajectory_knots} knots."
        )
    if coefficients.factors:
        raise CalibrationError(
            f"The authors' files hold scalars of the model alone; these coefficients also change "
            f"the {' and the '.join(coefficients.factors)} of the sampling."
        )
    members = coefficients.members
    parts = [
        [member.scales[0][name] for member in members for name in group]
        for group in _names(transformer, coefficients.granularity)
    ]
    parts.append([member.output_weights[0] for member in members])
    return AuthorsFile(
        solution=tuple(value for part in parts for value in part),
        shapes=[len(part) for part in parts],
    )


def _authors(transformer: nn.Module, granularity: Granularity) -> AuthorsVector:
    authors = family_of(transformer).authors
    if authors is None or granularity not in authors.groups:
        raise UnsupportedModelError(
            f"The authors have no vectors for a {type(transformer).__name__} at granularity "
            f"'{granularity}'. They have some for {'; '.join(_known())}."
        )
    return authors


def _known() -> list[str]:
    names = classes_where(lambda row: row.authors)
    rows = [(name, family_of(name).authors) for name in names]
    return [f"{name} ({', '.join(row.groups)})" for name, row in rows if row is not None]


def _names(transformer: nn.Module, granularity: Granularity) -> list[tuple[str, ...]]:
    sites = sites_of(transformer)
    groups = _authors(transformer, granularity).groups[granularity]
    return [
        parameter_names([site for site in sites if site in group], granularity) for group in groups
    ]


def _split(
    values: Sequence[float],
    groups: Sequence[Sequence[str]],
    members: int,
    transformer: nn.Module,
    granularity: Granularity,
) -> list[dict[str, float]]:
    if not 1 <= members <= _MAX_MEMBERS:
        raise ConfigError(f"An ensemble has 1 to {_MAX_MEMBERS} members; got {members}.")
    count = sum(map(len, groups))
    if len(values) != members * (count + 1):
        known = _authors(transformer, granularity).groups
        raise CalibrationError(
            f"The vector has {len(values)} entries; a {type(transformer).__name__} at granularity "
            f"'{granularity}' needs {members * (count + 1)} ({members} x {count} scalars and "
            f"{members} output weights). {_hint(len(values), transformer, known)}"
        )
    scales: list[dict[str, float]] = [{} for _ in range(members)]
    rest = iter(values)
    for group in groups:
        for member in scales:
            member.update(zip(group, rest, strict=False))  # takes as many as the group has
    return scales


def _hint(length: int, transformer: nn.Module, granularities: Iterable[Granularity]) -> str:
    fitting = []
    for granularity in granularities:
        each = sum(map(len, _names(transformer, granularity))) + 1
        members, rest = divmod(length, each)
        if rest == 0 and 1 <= members <= _MAX_MEMBERS:
            fitting.append(f"granularity '{granularity}' with members={members}")
    if not fitting:
        return "No granularity or number of members of this model has that length."
    return f"That length fits {' or '.join(fitting)}."


def _effective(
    member: dict[str, float], transformer: nn.Module, granularity: Granularity
) -> dict[str, float]:
    """Put a member in the order of the sites; entries without an effect become 1."""
    authors, sites = _authors(transformer, granularity), sites_of(transformer)
    idle = [site for site in sites if site.layer == authors.ineffective]
    ones = dict.fromkeys(parameter_names(idle, granularity), 1.0)
    return {name: ones.get(name, member[name]) for name in parameter_names(sites, granularity)}


def _sampling(guidance_scale: float) -> Sampling:
    """The paper's settings (spec section 3)."""
    return Sampling(
        num_inference_steps=15,
        guidance_scale=guidance_scale,
        height=512,
        width=512,
        dtype="bfloat16",
    )


def _starts(members: int, guidance_scale: float | None) -> list[tuple[Branch, float]]:
    """Branch and start weight of each member."""
    starts: list[tuple[Branch, float]] = [("conditional", 1.0)]
    if guidance_scale is not None:
        starts = [("conditional", guidance_scale), ("unconditional", 1.0 - guidance_scale)]
    starts += [("conditional", 0.0) for _ in range(members - len(starts))]
    return starts


def _as_they_ran(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(torch.tensor(values, dtype=torch.bfloat16).double().tolist())

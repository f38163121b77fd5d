"""The images of rows, measured together with what is known of their prompts."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from calibri.errors import RewardError
from calibri.scoring.measures import Grouped, Measure, Measures, measured
from calibri.scoring.pictures import Pictures
from calibri.scoring.units import Row, Unit


def measure_rows(
    measures: Measures, unit: Unit, rows: Sequence[Row], pictures: Pictures
) -> dict[str, Tensor]:
    """Measure the images of rows by every measure of their unit.

    Args:
        measures: by name.
        unit: says which of them are wanted.
        rows: of the unit.
        pictures: one image for each row.

    Returns:
        Name to one number, or row of numbers, for each row; NaN for a broken image and, where a
        measure compares the images of a prompt, for those that it would be compared with.

    Raises:
        RewardError: a reward failed, or gave no numbers.
    """
    measures.remember(noise.prompt for _, noise in rows)
    return {name: _measured(measures[name], rows, pictures) for name in unit.measures}


def _measured(measure: Measure, rows: Sequence[Row], pictures: Pictures) -> Tensor:
    whole = _whole_rows(measure, rows, pictures)
    if len(whole) == len(rows):
        return _called(measure, rows, pictures.pixels)
    if not whole:  # what the measure makes of them tells how many numbers there would be
        return torch.full_like(_called(measure, rows, pictures.pixels), torch.nan)
    found = _called(measure, [rows[i] for i in whole], pictures.pixels[whole])
    values = found.new_full((len(rows), *found.shape[1:]), torch.nan)
    values[whole] = found
    return values


def _whole_rows(measure: Measure, rows: Sequence[Row], pictures: Pictures) -> list[int]:
    """Rows whose image is not broken, nor one that it is compared with."""
    broken = [bool(is_broken) for is_broken in pictures.broken]
    if isinstance(measure, Grouped):
        groups = [(candidate, noise.prompt.id) for candidate, noise in rows]
        spoilt = {group for group, is_broken in zip(groups, broken, strict=True) if is_broken}
        broken = [group in spoilt for group in groups]
    return [i for i, is_broken in enumerate(broken) if not is_broken]


def _called(measure: Measure, rows: Sequence[Row], pixels: Tensor) -> Tensor:
    prompts = [noise.prompt for _, noise in rows]
    if not isinstance(measure, Grouped):
        return measured(measure, pixels, prompts)
    # An instruction is another prompt for another picture.
    groups = [(c, n.prompt.id if n.prompt.source else "") for c, n in rows]
    parts = []
    for _, members in itertools.groupby(range(len(rows)), key=lambda i: groups[i]):
        group = list(members)
        parts.append(measured(measure, pixels[group], [prompts[i] for i in group]))
    return torch.cat(parts)


def is_failed(scores: Tensor) -> Tensor:
    """Whether a number of a row is not finite: bool (rows,)."""
    return ~torch.isfinite(scores.reshape(len(scores), -1)).all(dim=1)


def check_finite(values: Mapping[str, Tensor], rows: Sequence[Row]) -> None:
    """Refuse numbers that are not finite.

    Args:
        values: by measure, as of ``measure_rows``.
        rows: that were measured.

    Raises:
        RewardError: one is not.
    """
    for name, scores in values.items():
        bad = is_failed(scores).nonzero().flatten()
        if len(bad):
            first = int(bad[0])
            raise RewardError(
                f"Reward '{name}' returned {scores[first].tolist()} for the prompt "
                f"'{rows[first][1].prompt.text}' ({len(bad)} of {len(rows)} images failed), or the "
                "image itself was not finite. A score must be a finite number. Everything before "
                "this is kept; fix the reward, or set rewards.on_failure to 'drop', and resume the "
                "run."
            )

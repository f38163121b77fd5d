"""Factors on the sampling itself, beside the scales of the model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from calibri.coefficients import Factor
from calibri.scaling import check_embedded_guidance
from calibri.schedules import check_shift
from calibri.sites import networks_of


def check_factors(factors: Iterable[Factor], pipe: Any) -> None:
    """Refuse factors on what a pipeline does not have.

    Args:
        factors: those that are searched or that a calibration changes.
        pipe: a pipeline, or a bare transformer.

    Raises:
        UnsupportedModelError: it embeds no guidance, or its scheduler has no known shift.
    """
    if "guidance" in factors:
        for network in networks_of(pipe):
            check_embedded_guidance(network.transformer)
    if "shift" in factors:
        check_shift(pipe)

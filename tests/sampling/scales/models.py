"""The tiny models that the tests of scales run over, and scales for them."""

from __future__ import annotations

import pytest
import torch

from tests.tiny import flux_inputs, sd3_inputs, tiny_flux, tiny_sd3

MODELS = pytest.mark.parametrize(
    ("make", "inputs"), [(tiny_sd3, sd3_inputs), (tiny_flux, flux_inputs)], ids=["sd3", "flux"]
)


def random_scales(count: int, rows: int = 1, seed: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.5 + torch.rand(rows, 1, count, generator=generator, dtype=torch.float64)

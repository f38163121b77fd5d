"""Images as they are measured, and which of them are broken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pictures:
    """Images of rows.

    Bytes cannot say that a value was not a number: it becomes black, which a reward may even like.

    Attributes:
        pixels: uint8 (N, 3, H, W), of videos (N, frames, 3, H, W).
        broken: bool (N,): whether some value of the image was not finite before it became a byte.
    """

    pixels: Tensor
    broken: Tensor

    def cpu(self) -> Pictures:
        """Copy to host memory."""
        return Pictures(self.pixels.cpu(), self.broken.cpu())


def join_pictures(parts: Sequence[Pictures]) -> Pictures:
    """Put batches together, in their order."""
    return Pictures(
        torch.cat([part.pixels for part in parts]), torch.cat([part.broken for part in parts])
    )

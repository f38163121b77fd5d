"""Which image and which branch of guidance each row of a forward belongs to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from calibri.errors import GuidanceError
from calibri.pipelines import Call

# Which branch each consecutive group of rows in a forward belongs to: (1, 0) is the batched
# [unconditional, conditional] of classifier-free guidance, (0,) a conditional-only forward.
Layout = tuple[int, ...]
LayoutResolver = Callable[[dict[str, Any]], Layout]


class RowLayout:
    """Tells the rows of the forwards of one transformer apart.

    Args:
        branch: the only branch of guidance that it runs; None when it runs all of them.
        packed: whether it works on one sequence without a batch axis.
        resolver: tells the layout of a forward from its arguments; None where nothing can.

    Attributes:
        packed: the same.
    """

    def __init__(self, branch: int | None, packed: bool, resolver: LayoutResolver | None) -> None:
        self.packed = packed
        self._known = None if branch is None else (branch,)
        self._resolver = resolver

    def branches(self, call: Call) -> Layout:
        """Tell the layout of a forward.

        Raises:
            GuidanceError: nothing tells it.
        """
        if self._known is not None:
            return self._known
        if self._resolver is None:
            raise GuidanceError(
                "The scales differ between the branches of guidance, but nothing tells which rows "
                "are conditional. Load the calibration onto the pipeline, not the transformer."
            )
        return self._resolver({str(place): v for place, v in enumerate(call.args)} | call.kwargs)

    def images(self, call: Call, scaled: int, branches: int) -> int:
        """Count the images of a forward.

        Args:
            call: of the transformer.
            scaled: images that scales were set for; 1 serves any number.
            branches: groups of rows.

        Raises:
            GuidanceError: there are other images than scales were set for.
        """
        rows = 1 if self.packed else call.batch_size
        if scaled != 1 and rows != scaled * branches:
            raise GuidanceError(
                f"The transformer got a batch of {rows} rows for {scaled} images in {branches} "
                "branches. Set the scales of every image of the batch, one set per branch."
            )
        return rows // branches

"""A site: one output of one module that adds to a transformer's residual stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from calibri.config import Granularity

Stream = Literal["visual", "text", "joint", "audio", "output"]


@dataclass(frozen=True)
class Fold:
    """Weights whose product with s gives the site's output times s.

    Attributes:
        path: a module, all of whose own parameters are multiplied, or one parameter.
        rows: first and last-but-one row to multiply, of the weight and the bias; None for all.
            The gate of a modulation linear is a range of its rows.
    """

    path: str
    rows: tuple[int, int] | None = None


@dataclass(frozen=True)
class Site:
    """One module output whose scaling equals scaling the gate of its branch (spec section 1).

    Attributes:
        path: module path inside the transformer, ``"transformer_blocks.0.attn"``.
        index: element of the tuple that the module returns, or None when it returns a tensor.
        block: path of the block, ``"transformer_blocks.0"``.
        layer: layer label inside the block, ``"attn"``, ``"attn2"``, ``"mlp"`` or ``"attn+mlp"``.
        stream: which token stream the branch adds to; ``"output"`` for the model's final linear.
        fold: weights to multiply by s; empty when there are none.
        no_fold: why there are none.
        gated: whether the model itself multiplies the branch by a gate; a cross-attention often
            enters the stream without one. Its scale is exact either way.
        batch_axis: axis of the batch in the output; None for a packed sequence without one.
    """

    path: str
    index: int | None
    block: str
    layer: str
    stream: Stream
    fold: tuple[Fold, ...] = ()
    no_fold: str = ""
    gated: bool = True
    batch_axis: int | None = 0

    @property
    def name(self) -> str:
        """Stable name, ``"transformer_blocks.0.attn[0]"``."""
        return self.path if self.index is None else f"{self.path}[{self.index}]"

    def parameter(self, granularity: Granularity) -> str:
        """Name the coefficient that scales it: its block, its layer in the block, or itself."""
        if granularity == "block":
            return self.block
        return f"{self.block}.{self.layer}" if granularity == "layer" else self.name

"""A site: one output of one module that adds to a transformer's residual stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Stream = Literal["visual", "text", "joint", "output"]


@dataclass(frozen=True)
class Site:
    """One module output whose scaling equals scaling the gate of its branch (spec section 1).

    Attributes:
        path: module path inside the transformer, ``"transformer_blocks.0.attn"``.
        index: element of the tuple that the module returns, or None when it returns a tensor.
        block: path of the block, ``"transformer_blocks.0"``.
        layer: layer label inside the block, ``"attn"``, ``"attn2"``, ``"mlp"`` or ``"attn+mlp"``.
        stream: which token stream the branch adds to; ``"output"`` for the model's final linear.
        fold: paths of the modules whose weight and bias times s give the output times s.
    """

    path: str
    index: int | None
    block: str
    layer: str
    stream: Stream
    fold: tuple[str, ...]

    @property
    def name(self) -> str:
        """Stable name, ``"transformer_blocks.0.attn[0]"``."""
        return self.path if self.index is None else f"{self.path}[{self.index}]"

"""The table: which outputs of which block class are branches of the residual stream.

Keyed by the class of the block, so every model built from a known block is covered without a line
of model code. One row reads ``layer: path[index]@stream -> fold``; a branch whose module is None in
a particular block is dropped, and so are text branches of a block that discards its text stream
(``context_pre_only``).
"""

from __future__ import annotations

from calibri.sites.site import Stream

_STREAMS: dict[str, Stream] = {"v": "visual", "t": "text", "j": "joint"}

_ATTN = "attn: attn[0]@v -> attn.to_out.0, attn[1]@t -> attn.to_add_out"
_ATTN2 = "attn2: attn2@v -> attn2.to_out.0"
_MLP = "mlp: ff@v -> ff.net.2, ff_context@t -> ff_context.net.2"

BLOCKS: dict[str, tuple[str, ...]] = {
    # SD3: the second visual attention of SD3.5 is a layer of its own (61 layers in SD3.5-medium).
    "JointTransformerBlock": (_ATTN, _ATTN2, _MLP),
    "FluxTransformerBlock": (_ATTN, _MLP),
    # A single block joins attention and MLP in one projection under one gate.
    "FluxSingleTransformerBlock": ("attn+mlp: proj_out@j -> proj_out",),
}

# The final linear of a model: scaling it scales the model's output, the paper's omega.
OUTPUTS: dict[str, str] = {
    "SD3Transformer2DModel": "proj_out",
    "FluxTransformer2DModel": "proj_out",
}


def parse_row(row: str) -> list[tuple[str, str, int | None, Stream, str]]:
    """Split one table row into (layer, module path, output index, stream, fold path)."""
    layer, _, branches = row.partition(": ")
    return [(layer, *_parse_branch(branch)) for branch in branches.split(", ")]


def _parse_branch(branch: str) -> tuple[str, int | None, Stream, str]:
    output, _, fold = branch.partition(" -> ")
    place, _, stream = output.partition("@")
    path, _, index = place.partition("[")
    return path, int(index[:-1]) if index else None, _STREAMS[stream], fold

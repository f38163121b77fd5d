"""How a row says which outputs of a block are branches of the residual stream.

One row reads ``layer: path[index]@stream -> fold``, branches separated by commas:

* ``@v`` visual, ``@t`` text, ``@j`` both in one sequence, ``@a`` audio; ``~`` instead of ``@``
  marks a branch that the model adds without a gate of its own.
* the fold names the weights that take the scale: ``a + b`` folds into both, ``experts.*.w2`` into
  every match, ``linear[2/6]`` into the third of six equal parts of the rows, ``a | b`` into the
  first that this block has, and ``!reason`` says why there are none.

A branch whose module is None in a particular block is dropped, and so are text branches of a block
that discards its text stream (``context_pre_only``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from calibri.pipelines.sites.site import Stream

_STREAMS: dict[str, Stream] = {"v": "visual", "t": "text", "j": "joint", "a": "audio"}

NO_FOLD: dict[str, str] = {
    "tanh": "its gate passes through tanh inside a norm without weights, so no weight is linear "
    "in the scale",
}

# Rows that several families share.
ATTN = "attn: attn[0]@v -> attn.to_out.0, attn[1]@t -> attn.to_add_out"
SELF_ATTN1 = "attn: attn1@v -> attn1.to_out.0"
ATTN2 = "attn2: attn2@v -> attn2.to_out.0"
CROSS = "attn2: attn2~v -> attn2.to_out.0"
FF = "mlp: ff@v -> ff.net.2"
MLP = "mlp: ff@v -> ff.net.2, ff_context@t -> ff_context.net.2"
IMG_MLP = "mlp: img_mlp@v -> img_mlp.net.2, txt_mlp@t -> txt_mlp.net.2"
DOUBLE = (ATTN, MLP)
# A fused single block joins attention and MLP in one projection under one gate.
SINGLE = ("attn+mlp: proj_out@j -> proj_out",)
CROSSED = (SELF_ATTN1, CROSS, FF)
UNGATED = ("attn: attn1~v -> attn1.to_out.0", CROSS, "mlp: ff~v -> ff.net.2")


@dataclass(frozen=True)
class Branch:
    """One branch of a row; paths are relative to the block."""

    layer: str
    path: str
    index: int | None
    stream: Stream
    gated: bool
    fold: str


_BRANCH = re.compile(
    r"(?P<path>[\w.]+)(?:\[(?P<index>\d+)\])?(?P<gate>[@~])(?P<stream>[vtja]) -> (?P<fold>[^,]+)"
)


def parse_row(row: str) -> list[Branch]:
    """Split a row into its branches."""
    layer, _, branches = row.partition(": ")
    return [_parse_branch(layer, branch) for branch in branches.split(", ")]


def _parse_branch(layer: str, branch: str) -> Branch:
    found = _BRANCH.fullmatch(branch)
    assert found, f"'{branch}' is not a branch"
    return Branch(
        layer=layer,
        path=found["path"],
        index=int(found["index"]) if found["index"] else None,
        stream=_STREAMS[found["stream"]],
        gated=found["gate"] == "@",
        fold=found["fold"].strip(),
    )

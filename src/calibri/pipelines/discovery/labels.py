"""Names for what discovery measured."""

from __future__ import annotations

from collections.abc import Sequence

from calibri.pipelines.sites.site import Stream

_MLP = ("ff", "mlp", "feed_forward", "ffn")
_TEXT = ("encoder", "context", "text", "txt", "cap", "prompt")


def layer_label(path: str) -> str:
    """Name the layer of a branch after its module, ``ff_context`` and ``ff`` both ``"mlp"``."""
    name = path.rpartition(".")[2]
    if name.isdigit():
        return path
    if any(part in name for part in _MLP):
        return "mlp"
    return "attn" if name in {"attn1", "self_attn", "attention", "self_attention"} else name


def stream_label(origins: Sequence[Sequence[str]]) -> Stream:
    """Name the stream of a branch after the block inputs that the outputs it moves carry on."""
    names = [name for origin in origins for name in origin]
    if len(names) > 1:
        return "joint"
    if any("aud" in name for name in names):
        return "audio"
    return "text" if any(word in name for name in names for word in _TEXT) else "visual"

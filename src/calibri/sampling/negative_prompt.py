"""What ``encode_prompt`` makes of the negative prompt, where it returns that with every prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from calibri.sampling.signatures import NEGATIVE
from calibri.trees import shapes, tensors

Encoded = Mapping[str, Any]


class NegativePrompt:
    """Encodes the negative prompt once rather than beside every prompt, and keeps it once.

    The first two prompts are encoded with it. Where it came out the same, and ``encode_prompt``
    returns the same when given it, it is given from then on.

    Args:
        encode: encodes a prompt, given further arguments of ``encode_prompt``; what it returns has
            the names of those.
        accepted: names of the arguments of ``encode_prompt``.
    """

    def __init__(self, encode: Callable[[str, Encoded], Encoded], accepted: Encoded) -> None:
        self._encode = encode
        self._accepted = accepted
        self._first: Encoded | None = None
        self._can_be_given: bool | None = None
        self._has_own_length = False

    def encoded(self, prompt: str) -> Encoded:
        """Encode a prompt: without the negative prompt where ``shared`` has that."""
        if self._can_be_given:
            made = _positive(self._encode(prompt, self.shared))
            if self._has_own_length or not self._is_longer(made):
                return made
        whole = self._encode(prompt, {})
        if self._first is None:
            self._first = whole
        elif self._can_be_given is None:
            self._can_be_given = self._is_given(prompt, whole)
        # The negative prompt of some pipelines is as long as the prompt beside it.
        if self._can_be_given and self._is_longer(_positive(whole)):
            self._can_be_given = self._has_own_length = _equal(whole, self.shared)
        return whole

    def _is_longer(self, positive: Encoded) -> bool:
        return shapes(positive) != shapes(_positive(self._first or {}))

    @property
    def shared(self) -> Encoded:
        """What a prompt that was encoded without the negative prompt takes of it."""
        first = self._first or {}
        return {name: part for name, part in first.items() if name.startswith(NEGATIVE)}

    def _is_given(self, prompt: str, whole: Encoded) -> bool:
        if not self.shared.keys() <= self._accepted.keys() or not _equal(whole, self.shared):
            return False
        try:
            return _equal(self._encode(prompt, self.shared), whole)
        except Exception:  # a pipeline's own reason not to take it; with every prompt it works
            return False


def _positive(encoded: Encoded) -> dict[str, Any]:
    return {name: part for name, part in encoded.items() if not name.startswith(NEGATIVE)}


def _equal(encoded: Encoded, wanted: Encoded) -> bool:
    """Say whether all that is wanted is there, to the last bit."""
    if not wanted.keys() <= encoded.keys():
        return False
    pairs = [(list(tensors(encoded[name])), list(tensors(wanted[name]))) for name in wanted]
    return all(len(a) == len(b) and all(map(torch.equal, a, b)) for a, b in pairs)

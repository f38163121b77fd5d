"""Which rows of a forward are conditional: known from the prompt embeddings, never guessed.

A diffusers pipeline gives the transformer one of a few arrangements of the embeddings that its
``encode_prompt`` returned: conditional alone, unconditional alone, or both in one batch in either
order. Comparing the argument with those arrangements tells which one it is, whatever the pipeline
does in between (reference: classifier-free guidance as an ensemble of N = 2, spec section 2).
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from calibri.errors import GuidanceError, UnsupportedModelError
from calibri.scaling import Layout

CONDITIONAL, UNCONDITIONAL = 0, 1

_LAYOUTS: tuple[Layout, ...] = (
    (UNCONDITIONAL, CONDITIONAL),
    (CONDITIONAL, UNCONDITIONAL),
    (CONDITIONAL,),
    (UNCONDITIONAL,),
)

# Pipelines whose ``encode_prompt`` returns (positive, negative, ...) embeddings.
_RETURNS_BOTH = ("StableDiffusion3",)


def tells_branches(pipe: Any) -> bool:
    """Say whether the branches of this pipeline can be told apart."""
    return type(pipe).__name__.startswith(_RETURNS_BOTH)


class BranchResolver:
    """Watches ``encode_prompt`` of one pipeline and recognises its embeddings in a forward.

    Args:
        pipe: a diffusers pipeline.

    Raises:
        UnsupportedModelError: the embeddings of this pipeline's branches are not known.
    """

    def __init__(self, pipe: Any) -> None:
        if not tells_branches(pipe):
            raise UnsupportedModelError(
                f"Coefficients per guidance branch are not supported for {type(pipe).__name__}. "
                "Use one set without guidance, or a Stable Diffusion 3 pipeline."
            )
        self._pipe = pipe
        self._embeddings: tuple[Tensor, Tensor | None] | None = None
        self._known: tuple[tuple[int, torch.Size, int], Layout] | None = None
        self._original = pipe.encode_prompt
        pipe.encode_prompt = self._watched()

    def _watched(self) -> Any:
        @functools.wraps(self._original)
        def encode_prompt(*args: Any, **kwargs: Any) -> Any:
            encoded = self._original(*args, **kwargs)
            self._embeddings = (encoded[0], encoded[1])
            self._known = None
            return encoded

        return encode_prompt

    def remove(self) -> None:
        """Give the pipeline its own ``encode_prompt`` back."""
        if "encode_prompt" in vars(self._pipe):
            del self._pipe.encode_prompt

    def __call__(self, kwargs: dict[str, Any]) -> Layout:
        """Tell the layout of a forward.

        Args:
            kwargs: the keyword arguments of the transformer's forward.

        Raises:
            GuidanceError: no arrangement, or more than one, fits the embeddings.
        """
        given: Tensor = kwargs["encoder_hidden_states"]
        # Pipelines pass the same tensor at every step: compare values once per image.
        key = (given.data_ptr(), given.shape, given._version)
        if self._known is None or self._known[0] != key:
            self._known = (key, self._match(given))
        return self._known[1]

    def _match(self, given: Tensor) -> Layout:
        fitting = [layout for layout in _LAYOUTS if self._fits(layout, given)]
        if len(fitting) == 1:
            return fitting[0]
        problem = (
            "match neither the prompt nor the negative prompt"
            if not fitting
            else "are the same for the prompt and the negative prompt"
        )
        raise GuidanceError(
            "Cannot tell which rows of the batch are conditional: the text embeddings the "
            f"transformer received {problem}. Use a negative prompt that differs from the prompt, "
            "and call the pipeline rather than its transformer."
        )

    def _fits(self, layout: Layout, given: Tensor) -> bool:
        if self._embeddings is None:
            return False
        parts = [self._embeddings[branch] for branch in layout]
        tensors = [part for part in parts if part is not None]
        if len(tensors) < len(parts):
            return False
        expected = torch.cat(tensors).to(given.device, given.dtype)
        return expected.shape == given.shape and torch.equal(expected, given)

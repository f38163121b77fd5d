"""Which prediction a guider is having made: the branch of a forward in a modular pipeline.

Guiders of diffusers call the model once for each prediction and name it: ``pred_cond`` is of the
prompt, ``pred_uncond`` of the negative prompt, and ``pred_cond_skip`` and the like are of the
prompt once more, by a model that is made worse. What they add is a difference of two predictions of
the prompt, which stays one only if both have the weight of that branch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from calibri.pipelines import Pipeline
from calibri.sampling.methods import replace_method
from calibri.sampling.scales.layout import Layout

CONDITIONAL, UNCONDITIONAL = 0, 1

# Where a guider keeps the name of a prediction in what it prepares.
_NAME = "__guidance_identifier__"
_PREPARE = ("prepare_inputs", "prepare_inputs_from_block_state")
_REGISTER = "register_components"


def layout_of(name: str | None) -> Layout | None:
    """Tell the branch of a call by the name that diffusers gives it; None where it gives none.

    Args:
        name: of a prediction or a cache context. ``"cond_uncond"`` tells nothing: pipelines use it
            without guidance too.
    """
    if name == "uncond" or (name or "").startswith("pred_uncond"):
        return (UNCONDITIONAL,)
    if name == "cond" or (name or "").startswith("pred_cond"):
        return (CONDITIONAL,)
    return None


def guiders_of(pipe: Pipeline) -> list[Any]:
    """List the guiders among the components of a pipeline."""
    return [part for part in pipe.components.values() if _is_guider(part)]


def _is_guider(part: Any) -> bool:
    return all(hasattr(part, name) for name in ("prepare_models", "cleanup_models", *_PREPARE[:1]))


class GuiderWatch:
    """Watches the guiders of a modular pipeline, also those that take their place later.

    Args:
        pipe: a modular pipeline of diffusers.

    Attributes:
        layout: branch of the forwards at this moment; None outside of the predictions of a guider.
    """

    def __init__(self, pipe: Pipeline) -> None:
        self.layout: Layout | None = None
        self._pipe = pipe
        self._undo: list[Callable[[], None]] = []
        self._undo_guiders: list[Callable[[], None]] = []
        self._undo.append(replace_method(pipe, _REGISTER, self._follow))
        self._watch()

    def remove(self) -> None:
        """Give the pipeline and its guiders their own methods back."""
        for undo in (*self._undo_guiders, *self._undo):
            undo()
        self._undo, self._undo_guiders = [], []

    def _watch(self) -> None:
        for undo in self._undo_guiders:
            undo()
        self._undo_guiders = [
            undo for guider in guiders_of(self._pipe) for undo in self._watch_guider(guider)
        ]

    def _watch_guider(self, guider: Any) -> list[Callable[[], None]]:
        passes = _Passes(self)
        changes = {
            **{name: passes.prepared for name in _PREPARE if hasattr(guider, name)},
            "prepare_models": passes.begun,
            "cleanup_models": passes.ended,
        }
        return [replace_method(guider, name, change) for name, change in changes.items()]

    def _follow(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def register_components(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            self._watch()
            return result

        return register_components


class _Passes:
    """The predictions of one guider: prepared together, then made one after the other."""

    def __init__(self, watch: GuiderWatch) -> None:
        self._watch = watch
        self._names: Sequence[str | None] = ()
        self._next = 0

    def prepared(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def prepare_inputs(*args: Any, **kwargs: Any) -> Any:
            batches = original(*args, **kwargs)
            self._names = [getattr(batch, _NAME, None) for batch in batches]
            self._next = 0
            return batches

        return prepare_inputs

    def begun(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def prepare_models(*args: Any, **kwargs: Any) -> Any:
            known = self._next < len(self._names)
            self._watch.layout = layout_of(self._names[self._next]) if known else None
            self._next += 1
            return original(*args, **kwargs)

        return prepare_models

    def ended(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def cleanup_models(*args: Any, **kwargs: Any) -> Any:
            self._watch.layout = None
            return original(*args, **kwargs)

        return cleanup_models

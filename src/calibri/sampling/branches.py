"""Which rows of a forward are conditional: known, never guessed.

Classifier-free guidance is an ensemble of N = 2 (spec section 2). diffusers runs it as one call per
branch or as one batch in either order, with tensors or lists of them. What tells the branches
apart, in this order: the caller says so; the pipeline names the call by ``cache_context``; the
guider of a modular pipeline says which prediction it has made; the text embeddings that the
transformer received are those of the prompt or of the negative prompt.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from calibri.errors import GuidanceError, UnsupportedModelError
from calibri.pipelines import Pipeline, is_modular, networks_of
from calibri.sampling.guiders import (
    CONDITIONAL,
    UNCONDITIONAL,
    GuiderWatch,
    guiders_of,
    layout_of,
)
from calibri.sampling.methods import replace_method
from calibri.sampling.scales.layout import Layout
from calibri.sampling.signatures import NEGATIVE, encoded_names, named_outputs, returns_both

Branch = Literal["conditional", "unconditional"]
Rows = Sequence[Tensor] | Tensor

# A batch holds one or two branches; with perturbed-attention guidance there is a third group.
_MAX_GROUPS = 3
_MAX_KNOWN = 16


class BranchResolver:
    """Watches one pipeline and tells the branches in a forward of a transformer.

    Args:
        pipe: a diffusers pipeline.

    Raises:
        UnsupportedModelError: the embeddings of this pipeline's branches cannot be known.
    """

    def __init__(self, pipe: Pipeline) -> None:
        self._explicit: Layout | None = None
        self._context: Layout | None = None
        self._embeddings: tuple[list[Rows], list[Rows]] = ([], [])
        self._encoded = 0
        self._known: dict[Any, tuple[Any, Layout | None]] = {}
        self._guiders: GuiderWatch | None = None
        self._is_unguided = False
        self._undo: list[Callable[[], None]] = []
        networks = networks_of(pipe)
        # A network for each branch leaves nothing to tell apart.
        if all(network.branch is not None for network in networks):
            return
        if is_modular(pipe):
            self._watch_guiders(pipe)
        else:
            self._watch(pipe)
        for network in networks:
            if hasattr(network.transformer, "cache_context"):
                undo = replace_method(network.transformer, "cache_context", self._watch_context)
                self._undo.append(undo)

    def _watch_guiders(self, pipe: Pipeline) -> None:
        self._guiders = GuiderWatch(pipe)
        self._undo.append(self._guiders.remove)
        # FLUX.1 in blocks has one call for each step, with the prompt.
        self._is_unguided = not guiders_of(pipe)

    def _watch(self, pipe: Pipeline) -> None:
        self._names = encoded_names(pipe)
        if not _embedding_names(self._names):
            raise UnsupportedModelError(
                f"Coefficients per guidance branch are not supported for {type(pipe).__name__}: "
                f"encode_prompt returns {self._names}, which are no prompt embeddings. Use one "
                "set of coefficients without guidance."
            )
        self._both = returns_both(self._names)
        self._undo.append(replace_method(pipe, "encode_prompt", self._watch_encode))
        if hasattr(pipe, "check_inputs"):
            self._undo.append(replace_method(pipe, "check_inputs", self._watch_start))

    def remove(self) -> None:
        """Give the pipeline its own methods back."""
        while self._undo:
            self._undo.pop()()

    @contextmanager
    def branch(self, name: Branch) -> Iterator[None]:
        """Say that every row of the forwards inside belongs to one branch."""
        before = self._explicit
        self._explicit = (CONDITIONAL if name == "conditional" else UNCONDITIONAL,)
        try:
            yield
        finally:
            self._explicit = before

    def expect(self, arguments: Mapping[str, Any]) -> None:
        """Start a new generation.

        Args:
            arguments: what the pipeline is called with; prompt embeddings among them, tensors
                (rows, tokens, channels) or lists of (tokens, channels), are known from now on.
        """
        self._embeddings = ([], [])
        self._encoded = 0
        self._known.clear()
        self._learn(arguments)

    def __call__(self, arguments: Mapping[str, Any]) -> Layout:
        """Tell the layout of a forward.

        Args:
            arguments: of the transformer's forward.

        Raises:
            GuidanceError: no arrangement, or more than one, fits the embeddings.
        """
        if self._explicit is not None:
            return self._explicit
        if self._context is not None:
            return self._context
        if self._guiders is not None:
            return self._guided(self._guiders.layout)
        for value in arguments.values():
            layout = self._recognise(value) if _is_rows(value) else None
            if layout is not None:
                return layout
        raise _unknown("match neither the prompt nor the negative prompt")

    def _guided(self, layout: Layout | None) -> Layout:
        if layout is None and not self._is_unguided:
            raise GuidanceError(
                "Cannot tell which branch of guidance this forward belongs to: the pipeline runs "
                "its transformer outside of the predictions that its guider names. Load a "
                "calibration with one set of coefficients for both branches."
            )
        return layout or (CONDITIONAL,)

    def _watch_encode(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def encode_prompt(*args: Any, **kwargs: Any) -> Any:
            encoded = original(*args, **kwargs)
            self._take(named_outputs(self._names, encoded))
            return encoded

        return encode_prompt

    def _take(self, outputs: dict[str, Any]) -> None:
        # Pipelines that encode one prompt per call encode the negative prompt second.
        negative = not self._both and self._encoded > 0
        if negative:
            outputs = {NEGATIVE + name: output for name, output in outputs.items()}
        else:
            self._embeddings = ([], [])
        self._embeddings[UNCONDITIONAL].clear()
        self._encoded += 1
        self._known.clear()
        self._learn(outputs)

    def _watch_start(self, original: Callable[..., Any]) -> Callable[..., Any]:
        parameters = inspect.signature(original)

        @functools.wraps(original)
        def check_inputs(*args: Any, **kwargs: Any) -> Any:
            self.expect(parameters.bind(*args, **kwargs).arguments)
            return original(*args, **kwargs)

        return check_inputs

    def _watch_context(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @contextmanager
        def cache_context(name: str, *args: Any, **kwargs: Any) -> Iterator[None]:
            before, self._context = self._context, layout_of(name)
            try:
                with original(name, *args, **kwargs):
                    yield
            finally:
                self._context = before

        return cache_context

    def _learn(self, outputs: Mapping[str, Any]) -> None:
        for name in _embedding_names(outputs):
            branch = UNCONDITIONAL if name.startswith(NEGATIVE) else CONDITIONAL
            if _is_rows(outputs[name]):
                self._embeddings[branch].append(outputs[name])

    def _recognise(self, given: Rows) -> Layout | None:
        # Pipelines pass the same tensors at every step: compare values once per image. The tensors
        # are kept with the answer so that their addresses stay theirs.
        key = _identity(given)
        if key not in self._known:
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
            self._known[key] = (given, self._match(given))
        return self._known[key][1]

    def _match(self, given: Rows) -> Layout | None:
        for groups in range(1, _MAX_GROUPS + 1):
            size, rest = divmod(len(given), groups)
            if rest:
                continue
            parts = [given[first : first + size] for first in range(0, len(given), size)]
            branches = [self._branch_of(part) for part in parts]
            if None not in branches:
                return tuple(branch for branch in branches if branch is not None)
        return None

    def _branch_of(self, part: Rows) -> int | None:
        for exact in (True, False):
            fitting = [
                branch
                for branch in (CONDITIONAL, UNCONDITIONAL)
                if any(_fits(part, rows, exact) for rows in self._embeddings[branch])
            ]
            if len(fitting) == 1:
                return fitting[0]
            if fitting:
                raise _unknown("are the same for the prompt and the negative prompt")
        return None


def _unknown(problem: str) -> GuidanceError:
    return GuidanceError(
        "Cannot tell which rows of the batch are conditional: the text embeddings the "
        f"transformer received {problem}. Use a negative prompt that differs from the prompt, and "
        "call the pipeline rather than its transformer."
    )


# Parts of a name that say it holds no tokens of the prompt.
_EXTRAS = frozenset({"pooled", "mask", "image"})


def _embedding_names(names: Iterable[str]) -> list[str]:
    parts = {name: set(name.split("_")) for name in names}
    return [name for name in parts if "embeds" in parts[name] and not parts[name] & _EXTRAS]


def _is_rows(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.is_floating_point() and value.ndim > 2
    return isinstance(value, list) and bool(value) and all(isinstance(v, Tensor) for v in value)


def _identity(rows: Rows) -> Any:
    parts = [rows] if isinstance(rows, Tensor) else rows
    return tuple(
        (part.data_ptr(), part.shape, 0 if part.is_inference() else part._version) for part in parts
    )


def _fits(part: Rows, known: Rows, exact: bool) -> bool:
    """Say whether rows are the known ones, each repeated for its images.

    Pipelines may pad or cut embeddings at the end; without ``exact`` only the tokens that both have
    are compared.
    """
    repeats, rest = divmod(len(part), len(known))
    if rest:
        return False
    if isinstance(part, Tensor) and isinstance(known, Tensor):
        return _same(part, known.repeat_interleave(repeats, dim=0), 1, exact)
    return all(_same(row, known[i // repeats], 0, exact) for i, row in enumerate(part))


def _same(given: Tensor, known: Tensor, axis: int, exact: bool) -> bool:
    if given.ndim == known.ndim + 1 and given.shape[axis] == 1:
        # Some pipelines give each row an axis of one text.
        given = given.squeeze(axis)
    if given.ndim != known.ndim or given.ndim <= axis + 1:
        return False
    length = min(given.shape[axis], known.shape[axis])
    if exact and given.shape != known.shape:
        return False
    given, known = given.narrow(axis, 0, length), known.narrow(axis, 0, length)
    return given.shape == known.shape and torch.equal(given, known.to(given.device, given.dtype))

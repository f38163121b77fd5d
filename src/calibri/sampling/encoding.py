"""Prompts to what a pipeline is called with: every prompt is encoded once, then remembered.

Most pipelines take the embeddings that their ``encode_prompt`` returns. The others are called with
texts, and while they run their ``encode_prompt`` answers from memory.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from calibri.errors import UnsupportedModelError
from calibri.prompts import Prompt
from calibri.sampling.negative_prompt import NegativePrompt
from calibri.sampling.prompt_cache import PromptCache
from calibri.sampling.signatures import (
    NEGATIVE,
    call_arguments,
    encoded_names,
    named_outputs,
    needs_texts,
    passed_on,
    returns_both,
)
from calibri.sampling.text_encoders import TextEncoders
from calibri.trees import alike, batch_axis, joined, moved, shapes, writes

_CPU = torch.device("cpu")
_NOTHING: Mapping[str, Any] = {}


class PromptEncoder(ABC):
    """Encodes the prompts of one pipeline.

    Args:
        pipe: a diffusers pipeline.
        negative_prompt: prompt of the unconditional branch, or None without guidance.
        cache: where encoded prompts are kept.

    Attributes:
        encoders: where the text encoders rest.
    """

    def __init__(self, pipe: Any, negative_prompt: str | None, cache: PromptCache) -> None:
        self.encoders = TextEncoders(pipe)
        self._pipe = pipe
        self._negative_prompt = negative_prompt
        self._cache = cache
        self._accepted = call_arguments(pipe)

    @abstractmethod
    def prepare(self, prompts: Sequence[Prompt], max_sequence_length: int | None = None) -> None:
        """Encode prompts that are not known yet, as many as are remembered."""

    @abstractmethod
    def arguments(
        self, prompts: Sequence[Prompt], max_sequence_length: int | None = None
    ) -> dict[str, Any]:
        """Say what the pipeline is called with for a batch of prompts.

        Args:
            prompts: of the batch.
            max_sequence_length: tokens of a prompt; None for the pipeline's own number.
        """

    @property
    @abstractmethod
    def max_sequence_length(self) -> int | None:
        """Tokens of a prompt by default; None where the pipeline takes no such number."""

    def tokens(self, prompt: Prompt, max_sequence_length: int | None = None) -> int | None:
        """Tokens that the transformer sees of a prompt; None where that is not known."""
        return None

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Surround a call of the pipeline."""
        yield

    def remove(self) -> None:  # noqa: B027 - most have nothing to take back
        """Leave the pipeline as it was before."""


def make_encoder(
    pipe: Any, negative_prompt: str | None, cache: PromptCache | None = None
) -> PromptEncoder:
    """Choose how the prompts of a pipeline are encoded.

    Args:
        pipe: a diffusers pipeline.
        negative_prompt: prompt of the unconditional branch, or None without guidance.
        cache: where encoded prompts are kept.
    """
    kind = TextsEncoder if needs_texts(pipe) else EmbeddingsEncoder
    return kind(pipe, negative_prompt, cache or PromptCache())


class EmbeddingsEncoder(PromptEncoder):
    """For pipelines that take the embeddings their ``encode_prompt`` returns."""

    def __init__(self, pipe: Any, negative_prompt: str | None, cache: PromptCache) -> None:
        super().__init__(pipe, negative_prompt, cache)
        self._names = encoded_names(pipe)
        self._parameters = inspect.signature(type(pipe).encode_prompt).parameters
        self._negatives: dict[int | None, NegativePrompt] = {}
        self._batch: tuple[Any, list[int], dict[str, Any]] = (None, [], {})

    @property
    def max_sequence_length(self) -> int | None:
        """Tokens of a prompt, as a plain call of the pipeline passes it to ``encode_prompt``."""
        own = _default_length(self._parameters)
        passed = passed_on(self._pipe).get("max_sequence_length")
        return passed if isinstance(passed, int) else own

    def prepare(self, prompts: Sequence[Prompt], max_sequence_length: int | None = None) -> None:
        """Encode prompts that are not known yet, as many as are remembered."""
        with self.encoders.staying():
            for prompt in prompts:
                known = _key(prompt.id, max_sequence_length) in self._cache
                if not known and not self._cache.full:
                    self._encode(prompt, max_sequence_length)

    def arguments(
        self, prompts: Sequence[Prompt], max_sequence_length: int | None = None
    ) -> dict[str, Any]:
        """Say what the pipeline is called with: embeddings on its device, no texts."""
        # Some pipelines default to an empty prompt, and refuse it beside embeddings.
        none = {name: None for name in ("prompt", "negative_prompt") if name in self._accepted}
        return none | self._joined(prompts, max_sequence_length)

    def tokens(self, prompt: Prompt, max_sequence_length: int | None = None) -> int | None:
        """Tokens that the transformer sees of a prompt, with those that pad it."""
        encoded = self._encode(prompt, max_sequence_length)
        lengths = [
            part[0].shape[0] if isinstance(part, list) else part.shape[1]
            for name, part in encoded.items()
            if "embeds" in name and not name.startswith(NEGATIVE) and _is_sequence(part)
        ]
        return max(lengths, default=None)

    def _joined(self, prompts: Sequence[Prompt], length: int | None) -> dict[str, Any]:
        """Join a batch; the last one is kept, since candidates are scored on the same prompts."""
        ids = [prompt.id for prompt in prompts]
        known, written, batch = self._batch
        if known != (ids, length) or written != writes(batch):
            batch = self._join({prompt.id: prompt for prompt in prompts}, ids, length)
            self._batch = ((ids, length), writes(batch), batch)
        return {name: list(v) if isinstance(v, list) else v for name, v in batch.items()}

    def _join(
        self, prompts: Mapping[str, Prompt], ids: Sequence[str], length: int | None
    ) -> dict[str, Any]:
        distinct = list(prompts)
        encoded = [self._encode(prompt, length) for prompt in prompts.values()]
        rows = [distinct.index(key) for key in ids]
        device = self._pipe._execution_device
        masked = {_masked(name) for name in encoded[0]}
        return {
            name: _batched(name, [parts[name] for parts in encoded], rows, device, name in masked)
            for name in encoded[0]
        }

    def _encode(self, prompt: Prompt, length: int | None) -> dict[str, Any]:
        key, negative_key = _key(prompt.id, length), _key(NEGATIVE, length)
        text = self._negative_prompt
        if text is not None and returns_both(self._names):
            beside = self._negative(length)
            encoded = self._cache.get(key, lambda: beside.encoded(prompt.text))
            return {**beside.shared, **encoded}
        encoded = self._cache.get(key, lambda: self._encoded(prompt.text, length))
        if text is None:
            return dict(encoded)
        negative = self._cache.get(negative_key, lambda: self._encoded(text, length, NEGATIVE))
        return {**encoded, **negative}

    def _negative(self, length: int | None) -> NegativePrompt:
        if length not in self._negatives:
            self._negatives[length] = NegativePrompt(
                lambda text, given: self._encoded(text, length, given=given), self._parameters
            )
        return self._negatives[length]

    def _encoded(
        self, text: str, length: int | None, prefix: str = "", given: Mapping[str, Any] = _NOTHING
    ) -> dict[str, Any]:
        """Encode one prompt: what ``__call__`` of the pipeline accepts, by name, on the CPU."""
        with self.encoders.present():
            outputs = self._outputs(
                text, length, prefix, moved(given, self._pipe._execution_device)
            )
        named = {prefix + name: output for name, output in outputs.items()}
        known = {name: output for name, output in named.items() if name in self._accepted}
        return dict(moved(known, _CPU))

    def _outputs(
        self, text: str, length: int | None, prefix: str, given: Mapping[str, Any]
    ) -> dict[str, Any]:
        parameters = self._parameters
        arguments: dict[str, Any] = {
            name: None
            for name, parameter in list(parameters.items())[1:]
            if parameter.default is parameter.empty
        }
        # The defaults of encode_prompt are not those of a call of the pipeline.
        offered = passed_on(self._pipe, prefix) | {
            "negative_prompt": self._negative_prompt or "",
            "do_classifier_free_guidance": self._negative_prompt is not None,
        }
        if length is not None:
            offered["max_sequence_length"] = length
        arguments |= {name: value for name, value in offered.items() if name in parameters}
        encoded = self._pipe.encode_prompt(**arguments | dict(given) | {"prompt": text})
        outputs = named_outputs(self._names, encoded)
        # A pipeline may leave out a mask that hides nothing; prompts of other lengths need it.
        for name in self._names:
            tokens = outputs.get(_masked(name)) if "mask" in name else None
            if tokens is not None and name not in outputs:
                outputs[name] = torch.ones(tokens.shape[:2], dtype=torch.long)
        return outputs


class TextsEncoder(PromptEncoder):
    """For pipelines that must be called with texts: their ``encode_prompt`` answers from memory.

    Prompts are encoded one by one and joined. Whether that gives what the pipeline makes of them
    together is tried with the first two; where it does not, batches are remembered as a whole. A
    pipeline without ``encode_prompt`` hands texts to its transformer itself.
    """

    def __init__(self, pipe: Any, negative_prompt: str | None, cache: PromptCache) -> None:
        super().__init__(pipe, negative_prompt, cache)
        self._answers = False
        self._pending: list[str] = []
        self._joins: dict[Any, bool] = {}
        self._last: dict[Any, tuple[Any, list[int], Any]] = {}
        if hasattr(pipe, "encode_prompt"):
            # What wraps it later, to learn what it returns, then sees whole batches.
            self._original = pipe.encode_prompt
            self._was_own = "encode_prompt" in vars(pipe)
            self._signature = inspect.signature(self._original)
            pipe.encode_prompt = self._encode_prompt

    @property
    def max_sequence_length(self) -> int | None:
        """Tokens of a prompt, by the call of the pipeline."""
        return _default_length(self._accepted)

    def prepare(self, prompts: Sequence[Prompt], max_sequence_length: int | None = None) -> None:
        """Have these prompts encoded with the next batch: its call tells how."""
        self._pending = [prompt.text for prompt in prompts]

    def arguments(
        self, prompts: Sequence[Prompt], max_sequence_length: int | None = None
    ) -> dict[str, Any]:
        """Say what the pipeline is called with: texts."""
        arguments: dict[str, Any] = {"prompt": [prompt.text for prompt in prompts]}
        if max_sequence_length is not None:
            arguments["max_sequence_length"] = max_sequence_length
        if self._negative_prompt is not None and "negative_prompt" in self._accepted:
            arguments["negative_prompt"] = [self._negative_prompt] * len(prompts)
        return arguments

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Let ``encode_prompt`` of the pipeline answer from memory inside."""
        self._answers = True
        try:
            yield
        finally:
            self._answers = False

    def remove(self) -> None:
        """Give ``encode_prompt`` of the pipeline back, unless something else has replaced it."""
        if vars(self._pipe).get("encode_prompt") != self._encode_prompt:
            return
        if self._was_own:
            self._pipe.encode_prompt = self._original
        else:
            del self._pipe.encode_prompt

    def _encode_prompt(self, *args: Any, **kwargs: Any) -> Any:
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        arguments = dict(bound.arguments)
        texts = {name: value for name, value in arguments.items() if _is_texts(value)}
        rest = {name: value for name, value in arguments.items() if name not in texts}
        if not self._answers or not texts or not all(map(_is_plain, rest.values())):
            with self.encoders.present():
                return self._original(*args, **kwargs)
        rows = list(zip(*texts.values(), strict=True))
        call = _Call(self._original, tuple(texts), rest)
        with self.encoders.staying():
            self._encode_pending(call, rows[0])
            return self._batch(call, rows)

    def _encode_pending(self, call: _Call, row: tuple[str, ...]) -> None:
        if self._joins.get((call.key, False), True) and "prompt" in call.names:
            place = call.names.index("prompt")
            pending = [(*row[:place], text, *row[place + 1 :]) for text in self._pending]
            for other in pending:
                if (call.key, other) not in self._cache and not self._cache.full:
                    self._one(call, other)

    def _one(self, call: _Call, row: tuple[str, ...]) -> Any:
        return self._cache.get((call.key, row), lambda: self._together(call, [row]))

    def _together(self, call: _Call, rows: Sequence[tuple[str, ...]]) -> Any:
        with self.encoders.present():
            return call(rows)

    def _batch(self, call: _Call, rows: list[tuple[str, ...]]) -> Any:
        known, written, batch = self._last.get(call.key, ((), [], None))
        if known != rows or written != writes(batch):
            device = self._pipe._execution_device
            batch = moved(self._joined(call, rows), device)
            self._last[call.key] = (rows, writes(batch), batch)
        return batch

    def _joined(self, call: _Call, rows: list[tuple[str, ...]]) -> Any:
        if self._joins.get((call.key, False), True):
            parts = [self._one(call, row) for row in rows]
            if all(row == rows[0] for row in rows) or self._can_join(call, rows, parts):
                return joined(parts)
        key = (call.key, tuple(rows))
        return self._cache.get(key, lambda: self._together(call, rows))

    def _can_join(self, call: _Call, rows: Sequence[tuple[str, ...]], parts: Sequence[Any]) -> bool:
        """Try two different prompts together once, and once more where lengths differ."""
        lengths = [shapes(part) for part in parts]
        other = next((i for i, length in enumerate(lengths) if length != lengths[0]), None)
        key = (call.key, other is not None)
        if key not in self._joins:
            second = other or next(i for i, row in enumerate(rows) if row != rows[0])
            together = self._together(call, [rows[0], rows[second]])
            self._joins[key] = alike(joined([parts[0], parts[second]]), moved(together, _CPU))
        return self._joins[key]


class _Call:
    """A call of ``encode_prompt`` but for its texts."""

    def __init__(
        self, method: Callable[..., Any], names: tuple[str, ...], rest: Mapping[str, Any]
    ) -> None:
        self.names = names
        self.key = (names, repr(sorted(rest.items())))
        self._method = method
        self._rest = rest

    def __call__(self, rows: Sequence[tuple[str, ...]]) -> Any:
        texts = {name: [row[i] for row in rows] for i, name in enumerate(self.names)}
        return self._method(**self._rest, **texts)


def _key(name: str, length: int | None) -> Any:
    """Where a prompt is kept in the cache, which differs between numbers of tokens."""
    return name if length is None else (name, length)


def _is_sequence(part: Any) -> bool:
    """Say whether embeddings have one vector for each token: (1, tokens, C) or [(tokens, C)]."""
    return part[0].ndim == 2 if isinstance(part, list | torch.Tensor) else False


def _default_length(parameters: Mapping[str, inspect.Parameter]) -> int | None:
    parameter = parameters.get("max_sequence_length")
    default = parameter.default if parameter else None
    return default if isinstance(default, int) else None


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, str) for v in value)


def _is_plain(value: Any) -> bool:
    """Say whether ``repr`` of an argument tells all of it."""
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    plain = (str, int, float, bool, torch.device, torch.dtype)
    return value is None or isinstance(value, plain)


def _masked(name: str) -> str:
    """Name the embeddings that a mask belongs to; no embeddings have the name of another."""
    return name.replace("_attention_mask", "_embeds").replace("_mask", "") if "mask" in name else ""


def _batched(
    name: str, parts: list[Any], rows: Sequence[int], device: torch.device, masked: bool
) -> Any:
    """Put the embeddings of distinct prompts into the rows of a batch, where a mask allows it."""
    if isinstance(parts[0], list):
        there = [[row.to(device) for row in part] for part in parts]
        return [row for i in rows for row in there[i]]
    axis = batch_axis(parts[0]) or 0
    lengths = {part.shape[axis + 1] for part in parts if part.ndim > axis + 1}
    if len(lengths) > 1 and not masked and "mask" not in name:
        raise UnsupportedModelError(
            f"'{name}' of these prompts have {sorted(lengths)} tokens and no mask, so they "
            "cannot share a batch. Set sampling.batch_size to 1."
        )
    together = joined(parts).to(device)
    if list(rows) == list(range(len(parts))):
        return together
    return together.index_select(axis, torch.tensor(rows, device=device))

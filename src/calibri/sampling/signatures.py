"""What the ``encode_prompt`` of a diffusers pipeline returns, by name.

Pipelines return prompt embeddings in different orders, and some encode one prompt per call. The
names stand in their own source: ``return prompt_embeds, negative_prompt_embeds``. Reading them
there serves every pipeline without a table to keep in step with diffusers.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any

from calibri.errors import UnsupportedModelError
from calibri.pipelines import Pipeline

NEGATIVE = "negative_"


def encoded_names(pipe: Pipeline) -> tuple[str, ...]:
    """Name the elements that ``encode_prompt`` of a pipeline returns, in order.

    Returns:
        One name for each element, as ``__call__`` of the pipeline knows it where it does.

    Raises:
        UnsupportedModelError: the pipeline has no ``encode_prompt``, or its source does not tell.
    """
    kind = type(pipe)
    if not hasattr(kind, "encode_prompt"):
        raise UnsupportedModelError(
            f"{kind.__name__} has no encode_prompt, so its prompt embeddings cannot be known."
        )
    accepted = call_arguments(pipe)
    found = [_returned(kind.encode_prompt), *_assigned(kind.__call__)]
    # Each names the same elements; where they differ, the pipeline's own words are the ones known.
    return max(found, key=lambda names: sum(name in accepted for name in names))


def needs_texts(pipe: Pipeline) -> bool:
    """Say whether a pipeline must be called with texts rather than with their embeddings.

    So it is where it has no ``encode_prompt``, does not take what that returns, or needs more than
    one call of it makes (HunyuanDiT's second encoder) or more than rows can be joined to
    (Kandinsky's cumulative lengths).

    Raises:
        UnsupportedModelError: the source of ``encode_prompt`` does not tell.
    """
    kind, accepted = type(pipe), call_arguments(pipe)
    if not hasattr(kind, "encode_prompt"):
        return True
    first = {name for name in encoded_names(pipe) if name in accepted}
    known = first | {NEGATIVE + name for name in first}
    every = {name for names in _assigned(kind.__call__) for name in names if name in accepted}
    tokens = any("embeds" in name for name in first)
    joined = all("embeds" in name or "mask" in name for name in first)
    return not (tokens and joined and every <= known)


def call_arguments(pipe: Pipeline) -> Mapping[str, inspect.Parameter]:
    """List the arguments that calling a pipeline takes."""
    return inspect.signature(type(pipe).__call__).parameters


def required_arguments(pipe: Pipeline) -> list[str]:
    """List the arguments without which a pipeline cannot be called."""
    return [
        name
        for name, parameter in list(call_arguments(pipe).items())[1:]
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]


def returns_both(names: Iterable[str]) -> bool:
    """Say whether one call of ``encode_prompt`` returns the negative prompt's embeddings too."""
    return any(name.startswith(NEGATIVE) for name in names)


def named_outputs(names: tuple[str, ...], encoded: Any) -> dict[str, Any]:
    """Pair what ``encode_prompt`` returned with its names; without what is missing or empty."""
    outputs = encoded if isinstance(encoded, tuple) else (encoded,)
    return {
        name: output
        for name, output in zip(names, outputs, strict=True)
        if output is not None and not (isinstance(output, list) and not output)
    }


@lru_cache(maxsize=8)
def _function(method: Callable[..., Any]) -> ast.FunctionDef:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(method))).body[0]
    except (OSError, TypeError, SyntaxError) as error:
        raise UnsupportedModelError(
            f"The source of {method.__qualname__} cannot be read ({error}), so the order of the "
            "embeddings it returns is not known."
        ) from error
    assert isinstance(tree, ast.FunctionDef)
    return tree


def _returned(method: Callable[..., Any]) -> tuple[str, ...]:
    last = _function(method).body[-1]
    return _names(last.value) if isinstance(last, ast.Return) else ()


def _assigned(method: Callable[..., Any]) -> list[tuple[str, ...]]:
    return [
        _names(node.targets[0])
        for node in ast.walk(_function(method))
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Call)
        and ast.unparse(node.value.func) == "self.encode_prompt"
    ]


def _names(node: ast.expr | None) -> tuple[str, ...]:
    parts = node.elts if isinstance(node, ast.Tuple) else [node]
    return tuple(_name(part) for part in parts)


def _name(node: ast.expr | None) -> str:
    if isinstance(node, ast.IfExp):
        return _name(node.body)
    # ``prompt_embeds.to(device)`` is still the prompt embeddings.
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return _name(node.func.value)
    return node.id if isinstance(node, ast.Name) else ""

"""What a diffusers pipeline passes to its ``encode_prompt`` and what that returns, by name.

Pipelines return prompt embeddings in different orders, and some encode one prompt per call. The
names stand in their own source: ``return prompt_embeds, negative_prompt_embeds``. So does what they
pass on, since the defaults of ``encode_prompt`` are often not those of the call. Reading both there
serves every pipeline without a table to keep in step with diffusers.
"""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from calibri.errors import UnsupportedModelError
from calibri.pipelines import Pipeline, is_modular
from calibri.sampling.modular import modular_arguments

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

    So it is where it has no ``encode_prompt``, does not take what that returns, makes something
    else of the prompt too (LongCat's rewriting, the prior tokens of GLM-Image), or needs more than
    one call of it makes (HunyuanDiT's second encoder) or more than rows can be joined to
    (Kandinsky's cumulative lengths).

    Raises:
        UnsupportedModelError: the source of ``encode_prompt`` does not tell.
    """
    kind, accepted = type(pipe), call_arguments(pipe)
    if not hasattr(kind, "encode_prompt") or _uses_prompt(pipe):
        return True
    # What an editing pipeline makes of an instruction depends on its picture.
    if _sees_picture(pipe):
        return True
    # Latte masks embeddings once more when it is given them, and then no longer knows the mask.
    if "mask_feature" in inspect.signature(kind.encode_prompt).parameters:
        return True
    first = {name for name in encoded_names(pipe) if name in accepted}
    known = first | {NEGATIVE + name for name in first}
    every = {name for names in _assigned(kind.__call__) for name in names if name in accepted}
    tokens = any("embeds" in name for name in first)
    joined = all("embeds" in name or "mask" in name for name in first)
    return not (tokens and joined and every <= known)


def needs_source(pipe: Pipeline) -> bool:
    """Say whether a pipeline is of no use without a source picture: it edits, or animates."""
    return "image" in required_arguments(pipe) or _sees_picture(pipe) or _changes_picture(pipe)


def _changes_picture(pipe: Pipeline) -> bool:
    """Say whether a picture is changed in part: where a mask is, or by noise of some strength."""
    accepted = call_arguments(pipe)
    # Blocks choose themselves by what they are given.
    if "image" not in accepted or is_modular(pipe):
        return False
    if "mask_image" in accepted:
        return True
    strength = getattr(accepted.get("strength"), "default", None)
    return isinstance(strength, float) and strength < 1


def _sees_picture(pipe: Pipeline) -> bool:
    encode = getattr(type(pipe), "encode_prompt", None)
    if encode is None or "image" not in inspect.signature(encode).parameters:
        return False
    # Where the picture comes after the prompt (Qwen-Image 2.1, Bria Fibo 2) it can be left out.
    order = list(call_arguments(pipe))
    return order.index("image") < order.index("prompt")


def passed_on(pipe: Pipeline, prefix: str = "") -> dict[str, Any]:
    """Say what a plain call of a pipeline passes to its ``encode_prompt``, by name.

    An argument of the call is passed with its default, an attribute of the pipeline as it is.

    Args:
        pipe: a diffusers pipeline.
        prefix: ``NEGATIVE`` for the call that encodes the negative prompt, of a pipeline that
            encodes one prompt at a time.

    Returns:
        Without what the call computes (``computed``), for which ``encode_prompt`` has a default.
    """
    accepted, written = call_arguments(pipe), _passed(pipe, prefix)
    known = {name: _value(pipe, accepted, node) for name, node in written.items()}
    return {name: value for name, value in known.items() if value is not _COMPUTED}


def computed(pipe: Pipeline) -> list[str]:
    """List what a call of a pipeline passes to its ``encode_prompt`` and computes itself."""
    known = passed_on(pipe).keys() | passed_on(pipe, NEGATIVE).keys()
    return sorted((_passed(pipe).keys() | _passed(pipe, NEGATIVE).keys()) - known)


def bins_sizes(pipe: Pipeline) -> bool:
    """Say whether a plain call samples at the nearest of a few sizes, and resizes the images."""
    argument = call_arguments(pipe).get("use_resolution_binning")
    return argument is not None and argument.default is True


def own_negative_prompt(pipe: Pipeline) -> str:
    """Return the negative prompt of a plain call; most pipelines have an empty one.

    It is the default of the argument, or what the source puts in its place (Cosmos's
    ``DEFAULT_NEGATIVE_PROMPT``).
    """
    argument = call_arguments(pipe).get("negative_prompt")
    if argument is not None and isinstance(argument.default, str) and argument.default:
        return argument.default
    kind = type(pipe)
    methods = [kind.__call__, getattr(kind, "encode_prompt", kind.__call__)]
    texts = (text for method in methods for text in _texts(pipe, method, "negative_prompt"))
    return next((text for text in texts if text), "")


def call_arguments(pipe: Pipeline) -> Mapping[str, inspect.Parameter]:
    """List the arguments that calling a pipeline takes."""
    if is_modular(pipe):
        return modular_arguments(pipe)
    return inspect.signature(type(pipe).__call__).parameters


def required_arguments(pipe: Pipeline) -> list[str]:
    """List the arguments without which a pipeline cannot be called."""
    return [
        name
        for name, parameter in call_arguments(pipe).items()
        if name != "self"
        and parameter.default is parameter.empty
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


@functools.cache
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
    return [names for names, _ in _encodings(method)]


def _encodings(method: Callable[..., Any]) -> list[tuple[tuple[str, ...], ast.Call]]:
    """List the calls of ``encode_prompt``, each with what its results are called."""
    return [
        (_names(node.targets[0]), node.value)
        for node in ast.walk(_function(method))
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Call)
        and _encodes(node.value)
    ]


def _passed(pipe: Pipeline, prefix: str = "") -> dict[str, ast.expr]:
    """Return the expressions that a call passes to ``encode_prompt``, by parameter."""
    kind: Any = type(pipe)
    found = _encodings(kind.__call__)
    if not found:
        return {}
    wanted = [call for names, call in found if prefix and all(n.startswith(prefix) for n in names)]
    call = wanted[0] if wanted else min((c for _, c in found), key=lambda call: call.lineno)
    names = list(inspect.signature(kind.encode_prompt).parameters)[1:]
    named = {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}
    return dict(zip(names, call.args, strict=False)) | named


_COMPUTED = object()


def _value(pipe: Pipeline, accepted: Mapping[str, inspect.Parameter], node: ast.expr) -> Any:
    """Return the value of an expression in a plain call; ``_COMPUTED`` where that is not known."""
    if isinstance(node, ast.Constant):
        return node.value
    path = ast.unparse(node).split(".")
    # ``self.clip_skip`` is where a call keeps its argument ``clip_skip``.
    argument = accepted.get(path[-1]) if len(path) == 1 or path[:-1] == ["self"] else None
    if argument is not None:
        changed = _reassigned(type(pipe).__call__, path[0], node.lineno) if len(path) == 1 else []
        if changed:
            # ``length = length or self.default_length``
            fallback = _fallback(changed[0], path[0])
            if len(changed) > 1 or fallback is None or argument.default:
                return _COMPUTED
            return _value(pipe, accepted, fallback)
        return _COMPUTED if argument.default is argument.empty else argument.default
    if path[0] != "self" or not all(part.isidentifier() for part in path):
        return _COMPUTED
    value: Any = pipe
    for part in path[1:]:
        value = getattr(value, part, _COMPUTED)
    return value


def _reassigned(method: Callable[..., Any], name: str, line: int) -> list[ast.expr]:
    """List what is assigned to a name above a line."""
    return [
        node.value
        for node in ast.walk(_function(method))
        if isinstance(node, ast.Assign) and node.lineno < line and not _encodes(node.value)
        if any(name in _names(target) for target in node.targets)
    ]


def _fallback(node: ast.expr, name: str) -> ast.expr | None:
    """Return b of ``name or b``."""
    if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.Or) and len(node.values) == 2:
        return node.values[1] if ast.unparse(node.values[0]) == name else None
    return None


def _uses_prompt(pipe: Pipeline) -> bool:
    """Say whether a plain call has more made of the prompt than ``encode_prompt`` makes of it."""
    body = _function(type(pipe).__call__).body
    return any(
        "prompt" in (part.id for part in ast.walk(node.value) if isinstance(part, ast.Name))
        and any(map(_is_method_call, ast.walk(node.value)))
        and not _encodes(node.value)
        for node in _statements(body, call_arguments(pipe))
        if isinstance(node, ast.Assign)
    )


def _encodes(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) == "self.encode_prompt"


def _is_method_call(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func).startswith("self.")


def _statements(
    body: Iterable[ast.stmt], accepted: Mapping[str, inspect.Parameter]
) -> Iterator[ast.stmt]:
    """Go through the statements of a plain call, without those that an argument has to ask for."""
    for node in body:
        skipped = isinstance(node, ast.If) and _is_off(node.test, accepted)
        yield node
        yield from _statements([] if skipped else getattr(node, "body", []), accepted)
        yield from _statements(getattr(node, "orelse", []), accepted)


def _is_off(test: ast.expr, accepted: Mapping[str, inspect.Parameter]) -> bool:
    """Say whether a condition fails in a plain call with a prompt: ``x``, or ``x is not None``."""
    if isinstance(test, ast.BoolOp):
        every = any if isinstance(test.op, ast.And) else all
        return every(_is_off(value, accepted) for value in test.values)
    name, negated = test, False
    if isinstance(test, ast.Compare):
        name, negated = test.left, not isinstance(test.ops[0], ast.IsNot)
    argument = accepted.get(ast.unparse(name))
    if argument is None:
        return False
    if argument.name == "prompt":
        return negated
    return not negated and (argument.default is None or argument.default is False)


def _texts(pipe: Pipeline, method: Callable[..., Any], name: str) -> Iterator[str]:
    """Go through the texts that a method can assign to a name."""
    known = inspect.unwrap(method).__globals__
    for node in ast.walk(_function(method)):
        if isinstance(node, ast.Assign) and _names(node.targets[0]) == (name,):
            for part in ast.walk(node.value):
                value: Any = part.value if isinstance(part, ast.Constant) else None
                if isinstance(part, ast.Name):
                    value = known.get(part.id)
                elif isinstance(part, ast.Attribute) and ast.unparse(part.value) == "self":
                    value = getattr(type(pipe), part.attr, None)
                if isinstance(value, str):
                    yield value


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

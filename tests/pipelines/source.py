"""What the source of diffusers says: an oracle that runs nothing."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import diffusers

from calibri.pipelines.classes import transformer_classes

# Methods that leave the value of a timestep as it is.
_SAME = {"expand", "to", "repeat", "unsqueeze", "view", "float", "flatten", "type", "reshape"}


@cache
def pipelines() -> dict[str, tuple[str, ast.ClassDef]]:
    """List every pipeline with a transformer: class of the transformer and source, by name."""
    found = {}
    for path in sorted(Path(diffusers.__file__).parent.glob("pipelines/**/pipeline_*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and (kind := _transformer_class(node)):
                found[node.name] = (kind, node)
    return found


def _transformer_class(node: ast.ClassDef) -> str:
    for method in _methods(node):
        if method.name == "__init__":
            for argument in method.args.args:
                words = set(re.findall(r"\w+", ast.unparse(argument.annotation or argument)))
                if argument.arg == "transformer" and (kinds := words & set(transformer_classes())):
                    return kinds.pop()
    return ""


def _methods(node: ast.ClassDef) -> Iterator[ast.FunctionDef]:
    return (part for part in node.body if isinstance(part, ast.FunctionDef))


def combines_by_excess(pipeline: ast.ClassDef) -> bool:
    """Say whether a pipeline has c + g (c - u) anywhere, and not u + w (c - u) alone."""
    return any(
        isinstance(node, ast.BinOp)
        and isinstance(node.op, ast.Add)
        and isinstance(node.right, ast.BinOp)
        and isinstance(node.right.op, ast.Mult)
        and isinstance(node.right.right, ast.BinOp)
        and isinstance(node.right.right.op, ast.Sub)
        and ast.unparse(node.left) == ast.unparse(node.right.right.left)
        for node in ast.walk(pipeline)
    )


def guidance_above(pipeline: ast.ClassDef) -> float | None:
    """Return the guidance above which ``do_classifier_free_guidance`` is true, where it says so."""
    for method in _methods(pipeline):
        if method.name == "do_classifier_free_guidance":
            found = re.search(r"guidance_scale > ([\d.]+)", ast.unparse(method))
            return float(found[1]) if found else None
    return None


def given_timestep(pipeline: ast.ClassDef, argument: str, t: float, n: float) -> float | None:
    """Work out what ``__call__`` gives a transformer at t of n timesteps; None where it cannot."""
    known = {"t": t, "t.item()": t, "scheduler.config.num_train_timesteps": n}
    method = next((part for part in _methods(pipeline) if part.name == "__call__"), None)
    if method is None:
        return None
    for call in ast.walk(method):
        if isinstance(call, ast.Call) and _is_transformer(call.func):
            named = [word.value for word in call.keywords if word.arg == argument]
            for value in (*named, *call.args[1:2]):
                found = _value(value, method, known, call.lineno)
                if found is not None:
                    return found
    return None


def _is_transformer(node: ast.expr) -> bool:
    name = node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
    return name in ("transformer", "transformer_2", "unconditional_transformer", "current_model")


def _value(
    node: ast.expr, method: ast.FunctionDef, known: dict[str, float], before: int
) -> float | None:
    source = ast.unparse(node).removeprefix("self.")
    if source in known:
        return known[source]
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return float(node.value)
    if isinstance(node, ast.Name):
        return _assigned(node.id, method, known, before)
    if isinstance(node, ast.BinOp):
        sides = [_value(side, method, known, before) for side in (node.left, node.right)]
        return _calculated(node.op, *sides)
    inner = _same_value(node)
    return None if inner is None else _value(inner, method, known, before)


def _same_value(node: ast.expr) -> ast.expr | None:
    """Look through what changes only the shape or the type of a timestep."""
    if isinstance(node, ast.Subscript):
        return node.value
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
        return None
    if node.func.attr in _SAME:
        return node.func.value
    if ast.unparse(node.func) == "torch.tensor":
        listed = node.args[0].left if isinstance(node.args[0], ast.BinOp) else node.args[0]
        return listed.elts[0] if isinstance(listed, ast.List) else None
    # torch.full(shape, t)
    return node.args[1] if ast.unparse(node.func) == "torch.full" else None


def _assigned(
    name: str, method: ast.FunctionDef, known: dict[str, float], before: int
) -> float | None:
    """Follow a name to the last assignment above that says what it is."""
    lines = [
        node
        for node in ast.walk(method)
        if isinstance(node, ast.Assign)
        and node.lineno < before
        and [ast.unparse(target) for target in node.targets] == [name]
    ]
    for node in sorted(lines, key=lambda node: -node.lineno):
        found = _value(node.value, method, known, node.lineno)
        if found is not None:
            return found
    return None


def _calculated(op: ast.operator, left: float | None, right: float | None) -> float | None:
    if left is None or right is None:
        return None
    if isinstance(op, ast.Sub):
        return left - right
    if isinstance(op, ast.Div):
        return left / right
    return None


def defined_names() -> set[str]:
    """Name every class that the modules of the transformers of diffusers define or use."""
    modules = {inspect.getmodule(kind) for kind in transformer_classes().values()}
    return {name for module in modules for name in vars(module)}

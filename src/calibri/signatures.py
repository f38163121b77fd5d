"""Arguments of another type than a call is annotated with, refused in words.

A script that hands over None, a list or a file that was never opened should hear which argument is
wrong, not where deep inside somebody stumbled over it.
"""

from __future__ import annotations

import collections.abc
import functools
import inspect
import numbers
import os
import types
from collections.abc import Callable, Iterator, Mapping
from typing import (
    Annotated,
    Any,
    Literal,
    ParamSpec,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from calibri.errors import CalibriError, ConfigError

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

_LONGEST_NAME = 255  # bytes of a file's name, on every common file system
# The numbers of numpy are as good as Python's.
_NUMBERS: Mapping[Any, Any] = {int: numbers.Integral, float: numbers.Real}


def typed(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Let a public call refuse arguments that do not fit its annotations.

    Raises:
        ConfigError: by the decorated call, before anything else happens.
    """

    @functools.wraps(function)
    def checked(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        bound = inspect.signature(function).bind(*args, **kwargs)
        check_types(function.__name__, function, bound.arguments)
        return function(*args, **kwargs)

    return checked


def check_types(
    name: str,
    function: Callable[..., Any],
    arguments: Mapping[str, Any],
    error: type[CalibriError] = ConfigError,
) -> None:
    """Refuse arguments that do not fit the annotations of a function.

    Args:
        name: what was called, for the message.
        function: whose annotations count; what they do not tell is left alone.
        arguments: by name; others than the function has are left alone.
        error: what is raised.
    """
    parameters = inspect.signature(function).parameters
    for key, value in arguments.items():
        parameter = parameters.get(key)
        if parameter is None or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        wanted = _resolved(function, parameter.annotation)
        if not fits(value, wanted):
            spelled = parameter.annotation if wanted is not Any else wanted
            raise error(
                f"{name} got {key} = {_shown(value)}, which is {_article(type(value).__name__)}. "
                f"It takes {spelled}."
            )
        if problem := _wrong_path(value, wanted):
            raise error(f"{name} got {key} = {_shown(value)}: {problem}. Check the path.")


def _resolved(function: Callable[..., Any], annotation: Any) -> Any:
    if not isinstance(annotation, str):
        return Any if annotation is inspect.Parameter.empty else annotation
    alone = types.SimpleNamespace(__annotations__={"it": annotation})
    names = getattr(inspect.unwrap(function), "__globals__", {})
    try:
        return get_type_hints(alone, names, include_extras=True)["it"]
    except NameError:  # imported for type checkers only
        return Any


def fits(value: object, wanted: Any) -> bool:
    """Whether a value is of an annotated type; what cannot be told fits.

    Args:
        value: what was given.
        wanted: a class, a union, ``Literal``, ``Any``, or a generic, whose entries are not looked
            at. A text is no sequence, True no number, and anything with a path is a ``Path``.
    """
    if wanted is None or wanted is type(None):
        return value is None
    origin = get_origin(wanted)
    if origin in (Union, types.UnionType):
        return any(fits(value, one) for one in get_args(wanted))
    if origin is Annotated:
        return fits(value, get_args(wanted)[0])
    if origin is Literal:
        return any(type(value) is type(one) and value == one for one in get_args(wanted))
    return _is_instance(value, origin or wanted)


def _is_instance(value: object, wanted: Any) -> bool:
    if not isinstance(wanted, type):  # Any, a type variable, a forward reference
        return True
    if wanted in _NUMBERS:
        return isinstance(value, _NUMBERS[wanted]) and not isinstance(value, bool)
    if wanted is tuple:  # which neither YAML nor JSON has
        return isinstance(value, tuple | list)
    if issubclass(wanted, os.PathLike):
        return isinstance(value, os.PathLike)
    if wanted is collections.abc.Sequence and isinstance(value, str | bytes):
        return False
    try:
        return isinstance(value, wanted)
    except TypeError:  # a protocol without values to look at
        return True


def _wrong_path(value: object, wanted: Any) -> str:
    """Say why no file can be called so, where a path may stand; empty when one can."""
    if not isinstance(value, str | os.PathLike) or not any(map(_is_path, _members(wanted))):
        return ""
    text = os.fspath(value)
    if not isinstance(text, str):
        return "it is no text"
    try:
        encoded = os.fsencode(text)
    except UnicodeEncodeError:
        return "it holds half a character"
    if b"\0" in encoded:
        return "it holds a null character"
    longest = max(map(len, encoded.split(os.sep.encode())))
    return f"a name in it has {longest} bytes" if longest > _LONGEST_NAME else ""


def _members(wanted: Any) -> Iterator[Any]:
    yield from get_args(wanted) if get_origin(wanted) in (Union, types.UnionType) else (wanted,)


def _is_path(wanted: Any) -> bool:
    # In Python 3.10 a generic such as list[str] is a type, too, but no class.
    is_class = isinstance(wanted, type) and get_origin(wanted) is None
    return is_class and issubclass(wanted, os.PathLike)


def _shown(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _article(name: str) -> str:
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"

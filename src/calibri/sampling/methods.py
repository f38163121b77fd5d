"""Change a method on one object, and give it back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def replace_method(
    owner: Any, name: str, change: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> Callable[[], None]:
    """Shadow a method on one instance.

    Args:
        owner: the instance.
        name: of the method.
        change: makes what takes its place from what was there.

    Returns:
        A function that takes that back.
    """
    before = vars(owner).get(name)
    setattr(owner, name, change(getattr(owner, name)))

    def undo() -> None:
        if before is None:
            delattr(owner, name)
        else:
            setattr(owner, name, before)

    return undo

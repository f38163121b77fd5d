"""The packages of the extra ``calibri[study]``."""

from __future__ import annotations

import importlib
from typing import Any

from calibri.errors import StudyError, first_line


def of_the_extra(module: str, purpose: str) -> Any:
    """Import a module of the extra.

    Args:
        module: its name.
        purpose: what it is needed for, for the message.

    Raises:
        StudyError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise StudyError(
            f"{purpose} needs '{module}', which cannot be imported ({first_line(error)}). Install "
            "it with: pip install 'calibri[study]'"
        ) from error

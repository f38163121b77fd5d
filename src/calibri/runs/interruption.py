"""Stopping on Ctrl-C and on SIGTERM without losing anything."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

from calibri.errors import Interrupted


@contextlib.contextmanager
def stopping_politely(continue_with: str) -> Iterator[None]:
    """Turn an interruption of the body into ``Interrupted``.

    Args:
        continue_with: the command that goes on from there.

    Raises:
        Interrupted: the user stopped it.
    """

    def stop(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    previous = None
    with contextlib.suppress(ValueError):  # only the main thread may handle signals
        previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt as error:
        raise Interrupted(
            "Stopped. Everything finished so far is kept; continue with: " + continue_with
        ) from error
    finally:
        if previous is not None:
            signal.signal(signal.SIGTERM, previous)

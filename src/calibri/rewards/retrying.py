"""When a request to a server is sent again, and after which pause."""

from __future__ import annotations

import random

# Too slow, too many requests, faults of the server or of a proxy: the same request may succeed.
_PASSING = frozenset({408, 429, 500, 502, 503, 504})
_MOST_DOUBLINGS = 32  # of a pause, long after it reached its limit


def may_pass(status: int) -> bool:
    """Whether an HTTP status says that the same request may succeed later."""
    return status in _PASSING


def asked_pause(retry_after: str | None) -> float:
    """Seconds that the header ``Retry-After`` asks to wait, 0 without it or where it is a date."""
    value = retry_after or ""
    return float(value) if value.isascii() and value.isdecimal() else 0.0


class Pauses:
    """Pauses that double with every failure in a row, less a random part of half.

    The random part keeps clients that failed together from coming back together. It must differ
    between processes and touches no result, so it is seeded by the system.

    Args:
        first: seconds after the first failure.
        longest: seconds of a pause at most, whatever the server asks for.
    """

    def __init__(self, first: float, longest: float) -> None:
        self._first, self._longest = first, longest
        self._random = random.SystemRandom()

    def after(self, failures: int, asked: float = 0.0) -> float:
        """Seconds to wait after the first (1), second, ... failure in a row.

        Args:
            failures: in a row, this one among them.
            asked: seconds that the server asked for; never less is waited, up to the longest pause.
        """
        grown = min(self._longest, self._first * 2.0 ** min(failures - 1, _MOST_DOUBLINGS))
        return max(grown * self._random.uniform(0.5, 1.0), min(asked, self._longest))

"""Values as text for people: numbers with fitting decimals, durations, harmless strings."""

from __future__ import annotations

import math
from datetime import datetime

from calibri.results import Figure

_MINUS = "\N{MINUS SIGN}"
_MISSING = "\N{EN DASH}"
_MAX_DECIMALS = 6


def clean(text: str) -> str:
    """Replace control characters and lone surrogates, which no HTML document may contain."""
    return "".join(
        c if c in "\n\t" or not (ord(c) < 32 or 127 <= ord(c) < 160 or 0xD800 <= ord(c) < 0xE000)
        else "\N{REPLACEMENT CHARACTER}"
        for c in text
    )  # fmt: skip


def number(value: float | None, decimals: int, *, sign: bool = False) -> str:
    """Format a number with a real minus sign; a dash stands for one that is missing."""
    if value is None or not math.isfinite(value):
        return _MISSING
    text = f"{value:+.{decimals}f}" if sign else f"{value:.{decimals}f}"
    # A rounded zero has no sign.
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", _MINUS)


def decimals_for(step: float) -> int:
    """Decimals that tell two numbers apart which differ by ``step``."""
    if not (math.isfinite(step) and step > 0):
        return 3
    return min(max(0, math.ceil(-math.log10(step) - 1e-9)), _MAX_DECIMALS)


def figure_decimals(figure: Figure) -> int:
    """Decimals worth printing: one digit finer than half the width of the interval."""
    return min(decimals_for((figure.high - figure.low) / 20), 4)


def mean(figure: Figure, *, sign: bool = False) -> str:
    """The mean of a figure."""
    return number(figure.mean, figure_decimals(figure), sign=sign)


def interval(figure: Figure, *, sign: bool = False) -> str:
    """The interval of a figure, ``"0.41 to 0.47"``."""
    decimals = figure_decimals(figure)
    low = number(figure.low, decimals, sign=sign)
    return f"{low} to {number(figure.high, decimals, sign=sign)}"


def in_words(figure: Figure, *, sign: bool = True) -> str:
    """A figure in a sentence: ``"+0.031 [+0.025, +0.037]"``."""
    decimals = figure_decimals(figure)
    low, high = (number(bound, decimals, sign=sign) for bound in (figure.low, figure.high))
    return f"{mean(figure, sign=sign)} [{low}, {high}]"


def general(value: float) -> str:
    """Three significant digits."""
    return f"{value:.3g}".replace("-", _MINUS) if math.isfinite(value) else _MISSING


def duration(seconds: float) -> str:
    """A time span in its two largest units."""
    if not math.isfinite(seconds):
        return _MISSING
    if 0 < seconds < 1:
        return f"{general(seconds * 1000)} ms"
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{general(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def moment(stamp: str) -> str:
    """A time stamp of ISO 8601 to the minute; other text as it is."""
    try:
        return datetime.fromisoformat(stamp).strftime("%Y-%m-%d %H:%M %Z").strip()
    except ValueError:
        return stamp


def count(value: int) -> str:
    """An integer in groups of three digits."""
    return f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")

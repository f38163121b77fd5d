from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibri.reporting import text
from calibri.results import Figure


@pytest.mark.parametrize(
    ("value", "decimals", "sign", "expected"),
    [
        (0.125, 2, False, "0.12"),
        (-1.5, 1, True, "\N{MINUS SIGN}1.5"),
        (1.5, 1, True, "+1.5"),
        (-0.0001, 2, True, "0.00"),
        (None, 2, False, "\N{EN DASH}"),
        (float("nan"), 2, False, "\N{EN DASH}"),
        (float("-inf"), 2, True, "\N{EN DASH}"),
    ],
)
def test_numbers(value: float | None, decimals: int, sign: bool, expected: str) -> None:
    assert text.number(value, decimals, sign=sign) == expected


@given(mean=st.floats(-100, 100), half=st.floats(1e-3, 10))
def test_a_figure_is_printed_finely_enough_for_its_interval(mean: float, half: float) -> None:
    figure = Figure(mean=mean, low=mean - half, high=mean + half, n=9)
    shown = float(text.mean(figure).replace("\N{MINUS SIGN}", "-"))
    assert abs(shown - mean) <= max(half / 10, 5e-5) * 1.001


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.0, "0 s"),
        (0.0124, "12.4 ms"),
        (2.5, "2.5 s"),
        (59.0, "59 s"),
        (60.0, "1 min 0 s"),
        (3725.0, "1 h 2 min"),
    ],
)
def test_durations(seconds: float, expected: str) -> None:
    assert text.duration(seconds) == expected


@given(st.text(st.characters(codec=None)))
def test_clean_text_can_stand_in_a_document(dirty: str) -> None:
    cleaned = text.clean(dirty)
    assert len(cleaned) == len(dirty)
    assert cleaned.encode().decode() == cleaned
    assert all(c in "\n\t" or c.isprintable() or ord(c) >= 160 for c in cleaned)


def test_clean_keeps_what_people_write() -> None:
    written = "a caf\xe9, \u05e9\u05dc\u05d5\u05dd, \u732b, \U0001f600\n"
    assert text.clean(written) == written


def test_a_moment_is_shown_to_the_minute() -> None:
    assert text.moment("2026-02-03T14:15:16+00:00") == "2026-02-03 14:15 UTC"
    assert text.moment("yesterday") == "yesterday"

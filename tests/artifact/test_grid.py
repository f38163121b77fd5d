"""Grids show every picture whole and every caption whole."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFont

from calibri.artifact.grid import enlarged, labelled_grid, wrapped

FONT = ImageFont.load_default(14)
TEXTS = st.text(max_size=120).filter(lambda text: not any(0xD800 <= ord(c) < 0xE000 for c in text))


@settings(deadline=None)
@given(TEXTS, st.integers(1, 300))
def test_wrapping_loses_nothing_and_fits(text, width):
    lines = wrapped(text, width, FONT)
    assert "".join("".join(lines).split()) == "".join(text.split())
    assert all(FONT.getlength(line) <= width or len(line) == 1 for line in lines)
    assert lines


@settings(deadline=None)
@given(st.lists(st.sampled_from(["red", "a", "circle"]), min_size=1, max_size=30))
def test_words_that_fit_are_not_broken(words):
    assert " ".join(wrapped(" ".join(words), 60, FONT)) == " ".join(words)


def count_of(grid, colour):
    return int((np.asarray(grid) == colour).all(-1).sum())


@settings(max_examples=20, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from([(24, 24), (300, 260), (40, 70)]),
    st.text("abc xyz", max_size=200),
)
def test_every_picture_is_there_whole(columns, rows, size, caption):
    """Each has a colour of its own, which no letter has: those are grey."""
    colours = [[(200, 10 * r, 10 * c + 5) for c in range(columns)] for r in range(rows)]
    pictures = [[Image.new("RGB", size, colour) for colour in row] for row in colours]
    grid = labelled_grid(["one"] * columns, [(caption, row) for row in pictures])
    shown = enlarged(pictures[0][0])
    assert min(shown.size) >= 256 or shown.size == size
    assert {count_of(grid, colour) for row in colours for colour in row} == {
        shown.width * shown.height
    }


def test_a_picture_is_enlarged_in_squares():
    small = Image.effect_noise((24, 30), 60).convert("RGB")
    big = enlarged(small)
    factor = big.width // small.width
    assert np.array_equal(np.asarray(big), np.kron(np.asarray(small), np.ones((factor, factor, 1))))
    large = Image.new("RGB", (256, 300))
    assert enlarged(large) is large


@pytest.mark.parametrize("letter", ["a", "\u4e00"])
def test_a_longer_caption_makes_a_higher_picture_with_more_ink(letter):
    """Also where no font of the system has the letter."""

    def drawn(count):
        picture = Image.new("RGB", (256, 256), "red")
        return np.asarray(labelled_grid(["x"], [(letter * count, [picture])]))

    pages = [drawn(count) for count in (20, 200)]
    inks = [int((page.max(-1) < 128).sum()) for page in pages]
    assert pages[1].shape[0] > pages[0].shape[0]
    assert inks[1] > 5 * inks[0]

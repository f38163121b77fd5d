"""A labelled grid of pictures: settings in columns, the whole caption over each row."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont
from PIL.Image import Resampling

# Pixels that the shorter side of a picture has at least, for one to see it.
VISIBLE = 256
_PAPER, _INK = "white", "black"
# Fonts with more scripts than Pillow's own, as systems have them; tried in this order.
_WIDE_FONTS = (
    "NotoSansCJK-Regular.ttc",
    "NotoSansCJKsc-Regular.otf",
    "msyh.ttc",
    "PingFang.ttc",
    "Arial Unicode.ttf",
    "DroidSansFallbackFull.ttf",
    "wqy-microhei.ttc",
    "DejaVuSans.ttf",
)

Font = ImageFont.FreeTypeFont


def labelled_grid(
    columns: Sequence[str], rows: Sequence[tuple[str, Sequence[Image.Image]]]
) -> Image.Image:
    """Draw pictures with their labels.

    Args:
        columns: what each column shows; lines are kept.
        rows: a caption, which is wrapped and never cut, and a picture for each column. All
            pictures are of one size; small ones are enlarged.

    Returns:
        An RGB image.
    """
    shown = [(caption, [enlarged(picture) for picture in pictures]) for caption, pictures in rows]
    cell = shown[0][1][0].width
    size = max(14, cell // 36)
    whole = cell * len(columns) + size * (len(columns) - 1)
    strips = [_in_a_row([_written(label, cell, size) for label in columns], size)]
    for caption, pictures in shown:
        strips += [_written(caption, whole, size), _in_a_row(pictures, size)]
    return _stacked(strips, size // 2)


def enlarged(picture: Image.Image) -> Image.Image:
    """Enlarge a small picture a whole number of times, without smoothing."""
    factor = -(-VISIBLE // min(picture.size))
    size = (picture.width * factor, picture.height * factor)
    return picture if factor == 1 else picture.resize(size, Resampling.NEAREST)


def _in_a_row(pictures: Sequence[Image.Image], gap: int) -> Image.Image:
    width = sum(picture.width for picture in pictures) + gap * (len(pictures) - 1)
    strip = Image.new("RGB", (width, max(picture.height for picture in pictures)), _PAPER)
    x = 0
    for picture in pictures:
        strip.paste(picture, (x, 0))
        x += picture.width + gap
    return strip


def _stacked(strips: Sequence[Image.Image], gap: int) -> Image.Image:
    height = sum(strip.height + gap for strip in strips)
    page = Image.new("RGB", (strips[0].width + 2 * gap, height + gap), _PAPER)
    y = gap
    for strip in strips:
        page.paste(strip, (gap, y))
        y += strip.height + gap
    return page


def _written(text: str, width: int, size: int) -> Image.Image:
    font = _font_for(text, size)
    lines = [line for part in text.splitlines() for line in wrapped(part, width, font)] or [""]
    step = size * 4 // 3
    strip = Image.new("RGB", (width, step * len(lines)), _PAPER)
    draw = ImageDraw.Draw(strip)
    for index, line in enumerate(lines):
        draw.text((0, index * step), line, fill=_INK, font=font)
    return strip


def wrapped(text: str, width: int, font: Font) -> list[str]:
    """Break a text into lines no wider than ``width`` pixels; a longer word is broken, too."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
            continue
        # Texts without spaces, such as Chinese, are one word.
        lines += [""] if lines[-1] else []
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return lines


def _font_for(text: str, size: int) -> Font:
    """Pillow's own font, or one of the system where that lacks fewer letters."""
    own, letters = _own_font(size), {letter for letter in text if not letter.isspace()}

    def lacking(font: Font) -> int:
        return sum(_is_missing(letter, font) for letter in letters)

    return min([own, *_other_fonts(size)], key=lacking) if lacking(own) else own


@lru_cache
def _other_fonts(size: int) -> list[Font]:
    found = []
    for name in _WIDE_FONTS:
        with contextlib.suppress(OSError):
            found.append(ImageFont.truetype(name, size))
    return found


@lru_cache
def _own_font(size: int) -> Font:
    font = ImageFont.load_default(size)
    assert isinstance(font, Font)  # given a size
    return font


def _is_missing(letter: str, font: Font) -> bool:
    return bytes(font.getmask(letter)) == bytes(font.getmask("\U0010ffff"))

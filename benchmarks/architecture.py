"""The figure of the rooms, drawn from the imports: ``docs/images/architecture.svg``.

python -m benchmarks.architecture [--root PATH] [--out FILE]

One card for each room of ``benchmarks.import_graph`` in the order in which data passes, with the
sentence of its ``__init__`` and the names of its face, the most used first. Arrows are imports,
those from within functions too; they run on the right where they point against the way of the data,
as they should, and on the left to what stands below. The order of the rooms is written here;
everything else is read from the code, so the figure is drawn again after a change, and a test says
when.
"""

from __future__ import annotations

import argparse
import ast
import math
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

from benchmarks.import_graph import Module, Source

ROOT = Path(__file__).parents[1]
IMAGE = Path("docs/images/architecture.svg")

WAY = (
    "prompts", "pipelines", "coefficients", "sampling", "rewards", "scoring", "search", "planning",
    "runs", "artifact", "reporting", "experiments", "study", "cli",
)  # fmt: skip
BESIDE = {"planning"}  # reads the configuration that a run follows, and no data
BELOW = ("shapes",)

# Of middle lightness, so that they show on a light and on a dark ground; neighbours differ.
_COLORS = (
    "#c2552d", "#2f7fb8", "#8a6fc4", "#2c9a74", "#c04a78", "#b58a1f", "#4a9aa8", "#7a8a3a",
    "#5b74c9", "#a8633f", "#6a8f5a", "#97618f", "#3f8f8a", "#b0643c", "#80858f",
)  # fmt: skip

_WIDTH = 1100
_LEFT, _RIGHT = 82.0, 770.0  # edges of the cards
_REACH = _WIDTH - 34 - _RIGHT  # of the longest arrow
_TOP, _GAP, _PAD = 116.0, 15.0, 15.0
_INDENT, _TEXT = 34.0, 158.0
_SENTENCE, _NAMES = 18.0, 16.0  # height of a line
# Characters in a line, for a font as wide as fonts without serifs get.
_SENTENCE_CHARACTERS, _NAME_CHARACTERS, _NAME_LINES = 74, 72, 2

_STYLE = """
text{font-family:system-ui,-apple-system,"Segoe UI",Helvetica,Arial,sans-serif;fill:#23262d}
.sheet{fill:#fbfaf7}.card{fill:#fff;stroke:#d9d5cb}.beside{stroke-dasharray:5 4}
.base{fill:#f1eee6;stroke:#d9d5cb}.halo{stroke:#fbfaf7;fill:none}.way{stroke:#b9b4a7;fill:none}
.tip{fill:#b9b4a7}.head{font-size:23px;font-weight:650}.room{font-size:16px;font-weight:650}
.says{font-size:13px}.note{font-size:12.5px;fill:#6a6e77}
.names{font-family:ui-monospace,Menlo,Consolas,"DejaVu Sans Mono",monospace;font-size:11.5px;
fill:#6a6e77}.strong{fill:#23262d}.legend{stroke:#80858f;fill:none}
@media(prefers-color-scheme:dark){text{fill:#e6e4de}.sheet{fill:#17191e}.card{fill:#1f2228;
stroke:#3a3e47}.base{fill:#24272e;stroke:#3a3e47}.halo{stroke:#17191e}.way{stroke:#5a5f69}
.tip{fill:#5a5f69}.note,.names{fill:#9ba0aa}.strong{fill:#e6e4de}}
""".replace("\n", "")


@dataclass(eq=False)
class Arrow:
    """Imports of one room from another.

    Attributes:
        start: height of its end at the importer.
        end: height of its tip.
    """

    importer: Card
    imported: Card
    count: int
    start: float = 0.0
    end: float = 0.0

    @property
    def width(self) -> float:
        return thickness(self.count)

    @property
    def span(self) -> int:
        return abs(self.importer.place - self.imported.place)


@dataclass(eq=False)
class Card:
    """A room as it is drawn.

    Attributes:
        place: number from the top.
        y: its upper edge.
    """

    name: str
    sentence: list[str]
    names: list[str]
    color: str
    place: int
    y: float

    @property
    def left(self) -> float:
        return _LEFT + (_INDENT if self.name in BESIDE else 0.0)

    @property
    def height(self) -> float:
        return 2 * _PAD + _SENTENCE * len(self.sentence) + _NAMES * len(self.names)

    @property
    def bottom(self) -> float:
        return self.y + self.height


def thickness(count: int) -> float:
    """Width of an arrow for so many imports."""
    return 0.9 + 1.05 * math.pow(count, 0.55)


def sentence(module: Module) -> str:
    """The first paragraph of a module's docstring."""
    return " ".join((ast.get_docstring(module.tree) or "").split("\n\n")[0].split())


def shown_names(source: Source, room: Module) -> list[str]:
    """The names of a face, the most used first; of a room without one, its modules."""
    face = source.face(room)
    if not face:
        inside = [m.name.split(".")[2:] for m in source.modules.values() if m.top == room.top]
        return sorted({parts[0].rstrip("_") for parts in inside if parts})
    users: dict[str, set[str]] = {name: set() for name in face}
    for one in source.imports:
        if one.spelled == room.name and one.name in users and one.importer.top != room.top:
            users[one.name].add(one.importer.name)
    return sorted(face, key=lambda name: (-len(users[name]), name.lower(), name))


def fitted(names: Sequence[str], characters: int, lines: int) -> list[str]:
    """Lay names out in lines; those that do not fit are counted."""
    for count in range(len(names), 0, -1):
        rest = [f"and {len(names) - count} more"] if count < len(names) else []
        # A name and its separator stay together.
        items = [f"{name} ·" for name in names[:count]]
        text = "  ".join(items + rest) if rest else "  ".join(items).removesuffix(" ·")
        glued = (
            text.replace(" ·", "\u00a0·")
            .replace("and ", "and\u00a0")
            .replace(" more", "\u00a0more")
        )
        wrapped = _wrap(glued, characters)
        if len(wrapped) <= lines:
            return [line.replace("\u00a0", " ") for line in wrapped]
    return []


def _wrap(text: str, characters: int) -> list[str]:
    return textwrap.wrap(text, characters, break_long_words=False, break_on_hyphens=False)


def _balanced(text: str, characters: int) -> list[str]:
    """Lines of about equal length, no more of them than it takes."""
    lines = len(_wrap(text, characters))
    narrowest = next(n for n in range(1, characters + 1) if len(_wrap(text, n)) <= lines)
    return _wrap(text, narrowest)


def order(source: Source) -> list[str]:
    """Rooms from top to bottom; one that has no place in the order stands below it."""
    there = {room.top for room in source.rooms}
    unknown = sorted(there - {*WAY, *BELOW})
    return [name for name in (*WAY, *unknown, *BELOW) if name in there]


def cards(source: Source) -> dict[str, Card]:
    """Every room with its place on the sheet."""
    rooms = {room.top: room for room in source.rooms}
    found: dict[str, Card] = {}
    y = _TOP
    for place, name in enumerate(order(source)):
        room = rooms[name]
        indent = 5 if name in BESIDE else 0
        card = Card(
            name,
            _balanced(sentence(room), _SENTENCE_CHARACTERS - indent),
            fitted(shown_names(source, room), _NAME_CHARACTERS - indent, _NAME_LINES),
            _COLORS[place % len(_COLORS)],
            place,
            y + (_GAP if name in BELOW else 0.0),
        )
        found[name] = card
        y = card.bottom + _GAP
    return found


def arrows(source: Source, found: dict[str, Card]) -> list[Arrow]:
    """Imports between the rooms, with their ends spread over the edges of the cards."""
    drawn = [
        Arrow(found[a], found[b], len(names))
        for (a, b), names in sorted(source.between().items())
        if a in found and b in found
    ]
    for card in found.values():
        for upward in (True, False):
            _spread(card, [one for one in drawn if _upward(one) == upward], upward)
    return drawn


def _upward(arrow: Arrow) -> bool:
    return arrow.imported.place < arrow.importer.place


def _spread(card: Card, beside: Iterable[Arrow], upward: bool) -> None:
    """Set the ends of the arrows at one side of a card.

    Ends that lead up stand above those that lead down, and those of long arrows between those of
    short ones, so that arrows cross only where they have to.
    """
    above: list[Arrow] = []
    below: list[Arrow] = []
    for one in beside:
        if card in (one.importer, one.imported):
            leads_up = (one.importer is card) == upward
            (above if leads_up else below).append(one)
    above.sort(key=lambda one: one.span)
    below.sort(key=lambda one: -one.span)
    ends = above + below
    room = card.height - 20
    free = room - sum(one.width for one in ends)
    gap = min(11.0, max(free, 0.0) / max(len(ends) - 1, 1))
    y = card.y + card.height / 2 - (sum(o.width for o in ends) + gap * (len(ends) - 1)) / 2
    for one in ends:
        middle = y + one.width / 2
        if one.importer is card:
            one.start = middle
        else:
            one.end = middle
        y += one.width + gap


def text(content: str, x: float, y: float, class_: str, anchor: str = "start") -> str:
    return (
        f'<text x="{x:g}" y="{y:g}" class="{class_}" text-anchor="{anchor}">'
        f"{escape(content)}</text>"
    )


def drawn_card(card: Card) -> Iterator[str]:
    shape = f'x="{card.left:g}" y="{card.y:g}" height="{card.height:g}"'
    class_ = "card beside" if card.name in BESIDE else "card"
    yield f'<rect {shape} width="{_RIGHT - card.left:g}" rx="7" class="{class_}"/>'
    yield (
        f'<rect x="{card.left + 10:g}" y="{card.y + 12:g}" width="4" rx="2" '
        f'height="{card.height - 24:g}" fill="{card.color}"/>'
    )
    y = card.y + _PAD + 13
    yield text(card.name, card.left + 26, y + 1, "room")
    for line in card.sentence:
        yield text(line, card.left + _TEXT, y, "says")
        y += _SENTENCE
    for line in card.names:
        yield text(line, card.left + _TEXT, y + 2, "names")
        y += _NAMES


def drawn_arrow(arrow: Arrow, tallest: float) -> str:
    """A curve from the importer to a tip at what it imports."""
    right = _upward(arrow)
    towards, reach = (1.0, _REACH) if right else (-1.0, _LEFT - 22)
    tall = abs(arrow.end - arrow.start)
    # A cubic curve reaches three quarters of the way to its control points.
    out = (26 + (reach - 26) * (tall / tallest) ** 0.8) / 0.75 * towards
    x1 = _RIGHT if right else arrow.importer.left
    x2 = _RIGHT if right else arrow.imported.left
    half = 2.6 + arrow.width * 0.62
    neck = x2 + towards * half * 1.9
    x = (_RIGHT if right else _LEFT) + out
    curve = f"M{x1:.1f},{arrow.start:.1f}C{x:.1f},{arrow.start:.1f} {x:.1f},{arrow.end:.1f} "
    curve += f"{neck:.1f},{arrow.end:.1f}"
    tip = f"M{x2:.1f},{arrow.end:.1f}L{neck:.1f},{arrow.end - half:.1f}V{arrow.end + half:.1f}z"
    says = f"{arrow.importer.name} imports {arrow.imported.name}: {arrow.count}"
    color = arrow.imported.color
    return (
        f"<g><title>{says}</title>"
        f'<path d="{curve}" class="halo" stroke-width="{arrow.width + 2.4:.2f}"/>'
        f'<path d="{curve}" fill="none" stroke="{color}" stroke-width="{arrow.width:.2f}"/>'
        f'<path d="{tip}" fill="{color}"/></g>'
    )


def drawn_way(found: dict[str, Card]) -> Iterator[str]:
    """The way of the data from card to card, past those that stand beside it."""
    way = [card for name, card in found.items() if name in WAY and name not in BESIDE]
    x = _LEFT + 12
    for above, below in zip(way, way[1:], strict=False):
        tip = below.y - 2
        yield f'<path d="M{x:g},{above.bottom + 1:g}V{tip - 6:g}" class="way" stroke-width="2.5"/>'
        yield f'<path d="M{x:g},{tip:g}l-5,-7h10z" class="tip"/>'


def drawn_ground(source: Source, y: float) -> tuple[list[str], float]:
    """The modules that stand beside the rooms, with the number of rooms that use each."""
    rooms = {room.top for room in source.rooms}
    users: dict[str, int] = {module.top: 0 for module in source.ground}
    for importer, imported in source.between():
        if imported in users:
            users[imported] += importer in rooms
    columns, right = 4, _WIDTH - 24.0
    names = sorted(users, key=lambda name: (-users[name], name))
    rows = -(-len(names) // columns)
    height = 2 * _PAD + 34 + 19 * max(rows, 1)
    parts = [
        f'<rect x="{_LEFT:g}" y="{y:g}" width="{right - _LEFT:g}" height="{height:g}" rx="7" '
        'class="base"/>',
        text("ground floor", _LEFT + 26, y + _PAD + 14, "room"),
        text(
            "Modules that any room may use, and how many rooms do.",
            _LEFT + _TEXT,
            y + _PAD + 13,
            "says",
        ),
    ]
    step = (right - _LEFT - _TEXT - 10) / columns
    for number, name in enumerate(names):
        x = _LEFT + _TEXT + step * (number // max(rows, 1))
        line = y + _PAD + 43 + 19 * (number % max(rows, 1))
        parts.append(text(f"{users[name]}", x + 16, line, "names", "end"))
        parts.append(text(name, x + 26, line, "names strong"))
    return parts, y + height


def drawn_legend() -> Iterator[str]:
    x = _RIGHT - 34.0
    for count in (1, 5, 15):
        yield f'<path d="M{x:g},49h34" class="legend" stroke-width="{thickness(count):.2f}"/>'
        yield text(f"{count} import{'s' * (count > 1)}", x + 42, 53, "note")
        x += 108


def draw(source: Source) -> str:
    """The whole figure as SVG; the same code gives the same bytes."""
    found = cards(source)
    between = arrows(source, found)
    tallest = max((abs(one.end - one.start) for one in between), default=1.0)
    last = max((card.bottom for card in found.values()), default=_TOP)
    ground, bottom = drawn_ground(source, last + _GAP)
    height = bottom + 24
    title = "The rooms of Calibri"
    says = "; ".join(f"{card.name}: {' '.join(card.sentence)}" for card in found.values())
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height:g}" '
        f'viewBox="0 0 {_WIDTH} {height:g}" role="img" aria-label={quoteattr(title)}>',
        f"<title>{title}</title><desc>{escape(says)}</desc>",
        f"<style>{_STYLE}</style>",
        f'<rect width="{_WIDTH}" height="{height:g}" rx="10" class="sheet"/>',
        text(title, _LEFT, 52, "head"),
        text(
            "Data goes down the page. Arrows are imports: they point at the room that is used.",
            _LEFT,
            80,
            "note",
        ),
        *drawn_legend(),
        # Long arrows lie below short ones.
        *(
            drawn_arrow(one, tallest)
            for one in sorted(between, key=lambda one: -abs(one.end - one.start))
        ),
        *drawn_way(found),
        *(part for card in found.values() for part in drawn_card(card)),
        *ground,
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, default=ROOT)
    parser.add_argument("--out", type=Path, help=f"instead of {IMAGE} below the root")
    options = parser.parse_args(arguments)
    out = options.out or options.root / IMAGE
    out.write_text(draw(Source(options.root)), encoding="utf-8", newline="\n")
    print(out)


if __name__ == "__main__":
    main()

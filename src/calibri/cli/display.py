"""What commands print: consoles, prose, tables of figures."""

from __future__ import annotations

import contextlib
import math
import shlex
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from calibri.reporting import METRICS
from calibri.results import Evaluation, Figure, SettingResult

_WIDTH_IN_A_FILE = 120
# A label with named cells; every row of a table has the same names.
_Row = tuple[Text, dict[str, Text]]


_PREFIXES = ("", "k", "M", "G", "T", "P", "E")


def out() -> Console:
    """Make the console for results, on standard output."""
    return _console(stderr=False)


def err() -> Console:
    """Make the console for progress, notes and errors, on standard error."""
    return _console(stderr=True)


def _console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr, highlight=False, emoji=False)
    if not console.is_terminal:
        # Without a screen there is no width to fit: long lines stay whole for grep.
        console = Console(stderr=stderr, highlight=False, emoji=False, width=_WIDTH_IN_A_FILE)
    return console


def printable(text: str) -> str:
    r"""Replace control characters by visible escapes, so that no file can steer the terminal."""
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text
    )


def say(console: Console, text: str | Text) -> None:
    """Print prose: wrapped at words on a terminal, one line a paragraph elsewhere."""
    plain = Text(printable(text)) if isinstance(text, str) else text
    console.print(plain, soft_wrap=not console.is_terminal)


def verbatim(console: Console, line: str) -> None:
    """Print a line to be copied: never broken by us."""
    console.print(Text(printable(line)), soft_wrap=True)


def command(*words: str | Path) -> str:
    """Spell a command so that a shell takes it as it stands."""
    return shlex.join(map(str, words))


@contextlib.contextmanager
def loading(what: str) -> Iterator[None]:
    """Show on a terminal that something takes a few seconds; leave no trace."""
    console = err()
    if not animated(console):
        yield
        return
    with console.status(Text(f"{printable(what)} …")):
        yield


def animated(console: Console) -> bool:
    """Say whether the console can redraw lines."""
    return console.is_terminal and not console.is_dumb_terminal


def flop_words(tera: float) -> str:
    """Write a number of TFLOP with the prefix that suits it, to three digits."""
    return _prefixed(tera * 1e12, "FLOP")


def byte_words(gigabytes: float) -> str:
    """Write a size with the prefix that suits it, to three digits."""
    return _prefixed(gigabytes * 1e9, "B")


def _prefixed(number: float, unit: str) -> str:
    exponent = 0 if number < 1 else int(math.floor(math.log10(number) / 3))
    exponent = min(exponent, len(_PREFIXES) - 1)
    number /= 1000.0**exponent
    digits = max(0, 2 - int(math.log10(number))) if number >= 1 else 0
    return f"{number:.{digits}f} {_PREFIXES[exponent]}{unit}"


def signed(figure: Figure) -> str:
    """Write a difference with its sign and its 95% interval."""
    mean, low, high = (_fixed(x, "+") for x in (figure.mean, figure.low, figure.high))
    return f"{mean} [{low}, {high}]"


def unsigned(figure: Figure) -> str:
    """Write a figure with its 95% interval."""
    mean, low, high = (_fixed(x) for x in (figure.mean, figure.low, figure.high))
    return f"{mean} [{low}, {high}]"


def _fixed(value: float, sign: str = "") -> str:
    # Adding zero turns the -0.0 that rounding leaves into 0.0.
    return f"{round(value, 3) + 0.0:{sign}.3f}"


def show_evaluation(console: Console, evaluation: Evaluation) -> None:
    """Print the settings with their scores, then the paired differences."""
    images = f"{evaluation.num_prompts} held-out prompts x {evaluation.images_per_prompt} images"
    console.print()
    say(console, Text(f"Scores on {images}, with 95% intervals", style="bold"))
    show_rows(console, [_setting_row(setting, evaluation) for setting in evaluation.settings])
    if evaluation.dropped:
        say(console, f"{evaluation.dropped} images could not be scored and are left out.")
    console.print()
    say(console, Text("Calibrated minus original, same prompts and noise", style="bold"))
    against = dict.fromkeys(comparison.against for comparison in evaluation.comparisons)
    show_rows(console, [_difference_row(name, evaluation) for name in against])


def _setting_row(setting: SettingResult, evaluation: Evaluation) -> _Row:
    cells = {
        _reward_label(name, evaluation): Text(unsigned(figure))
        for name, figure in setting.scores.items()
    }
    others = {metric.label: getattr(setting, metric.name) for metric in METRICS}
    cells |= {name: Text("-" if x is None else _fixed(x)) for name, x in others.items()}
    return Text(printable(setting.label), style="bold" if setting.calibrated else ""), cells


def _difference_row(against: str, evaluation: Evaluation) -> _Row:
    cells = {
        _reward_label(comparison.reward, evaluation): difference(comparison.difference)
        for comparison in evaluation.comparisons
        if comparison.against == against
    }
    return Text(printable(against)), cells


def difference(figure: Figure) -> Text:
    """Write a difference in green where it is surely above 0, in red where surely below."""
    style = "green" if figure.low > 0 else "red" if figure.high < 0 else ""
    return Text(signed(figure), style=style)


def _reward_label(name: str, evaluation: Evaluation) -> str:
    return printable(name) + (" (held out)" if name in evaluation.held_out_rewards else "")


def show_rows(console: Console, rows: list[_Row]) -> None:
    """Print labels with named cells: a table where it fits, or a line for each cell."""
    table = _wide(rows)
    needed = Measurement.get(console, console.options.update(max_width=1000), table).maximum
    console.print(table if needed <= console.width else _long(rows))


def _wide(rows: list[_Row]) -> Table:
    table = _table()
    table.add_column("")
    for name in rows[0][1]:
        table.add_column(name, justify="right")
    for label, cells in rows:
        table.add_row(label, *cells.values())
    return table


def _long(rows: list[_Row]) -> Table:
    table = _table(show_header=False)
    for label, cells in rows:
        table.add_row(label)
        for name, cell in cells.items():
            table.add_row(Text(f"  {name}"), cell)
    return table


def _table(*, show_header: bool = True) -> Table:
    return Table(
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
        header_style="dim",
        show_header=show_header,
    )

"""What commands print: consoles, prose, tables of figures."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from calibri.results import Comparison, Evaluation, Figure, SettingResult

_WIDTH_IN_A_FILE = 120
_TableMaker = Callable[[Evaluation, str], Table]


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


def signed(figure: Figure, separator: str = " ") -> str:
    """Write a difference with its sign and its 95% interval."""
    return f"{figure.mean:+.3f}{separator}[{figure.low:+.3f}, {figure.high:+.3f}]"


def _unsigned(figure: Figure, separator: str) -> str:
    return f"{figure.mean:.3f}{separator}[{figure.low:.3f}, {figure.high:.3f}]"


def show_evaluation(console: Console, evaluation: Evaluation) -> None:
    """Print the settings with their scores, then the paired differences."""
    images = f"{evaluation.num_prompts} held-out prompts x {evaluation.images_per_prompt} images"
    console.print()
    say(console, Text(f"Scores on {images}, with 95% intervals", style="bold"))
    console.print(_fitting(console, evaluation, _settings_table))
    console.print()
    say(console, Text("Calibrated minus original, same prompts and noise", style="bold"))
    console.print(_fitting(console, evaluation, _differences_table))


def _fitting(console: Console, evaluation: Evaluation, make: _TableMaker) -> Table:
    wide = make(evaluation, " ")
    needed = Measurement.get(console, console.options.update(max_width=1000), wide).maximum
    return wide if needed <= console.width else make(evaluation, "\n")


def _rewards(evaluation: Evaluation) -> list[str]:
    return list(dict.fromkeys([evaluation.objective, *evaluation.held_out_rewards]))


def _table(first: str, evaluation: Evaluation) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column(first)
    for name in _rewards(evaluation):
        watched = "" if name == evaluation.objective else "\n(held out)"
        table.add_column(f"{printable(name)}{watched}", justify="right")
    return table


def _settings_table(evaluation: Evaluation, separator: str) -> Table:
    table = _table("setting", evaluation)
    table.add_column("diversity", justify="right")
    table.add_column("Frechet", justify="right")
    table.add_column("s/image", justify="right")
    for setting in evaluation.settings:
        table.add_row(*_setting_cells(setting, _rewards(evaluation), separator))
    return table


def _setting_cells(setting: SettingResult, names: list[str], separator: str) -> list[Text]:
    style = "bold" if setting.calibrated else ""
    cells = [setting.label.replace(", ", f",{separator}")]
    cells += [_unsigned(setting.scores[name], separator) for name in names]
    cells += [_optional(setting.diversity), _optional(setting.frechet)]
    cells += [f"{setting.seconds_per_image:.3f}"]
    return [Text(printable(cell), style=style) for cell in cells]


def _optional(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _differences_table(evaluation: Evaluation, separator: str) -> Table:
    table = _table("against", evaluation)
    for against in dict.fromkeys(c.against for c in evaluation.comparisons):
        row = {c.reward: c for c in evaluation.comparisons if c.against == against}
        label = Text(printable(against.replace(", ", f",{separator}")))
        table.add_row(label, *(_difference(row[name], separator) for name in _rewards(evaluation)))
    return table


def _difference(comparison: Comparison, separator: str) -> Text:
    figure = comparison.difference
    style = "green" if figure.low > 0 else "red" if figure.high < 0 else ""
    return Text(signed(figure, separator), style=style)

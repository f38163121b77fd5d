"""A run as a person watches it: redrawn in place on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from calibri.cli.display import animated, err, printable, signed
from calibri.cli.tally import Tally, clock_time, speed_words, trouble_words
from calibri.progress import Progress
from calibri.results import Checkpoint, Computed, Generation

_QUARTERS = 4


@contextlib.contextmanager
def watching(
    tally: Tally,
    *,
    objective: str = "",
    generations: int = 0,
    run: str = "",
    loading: str = "Loading",
) -> Iterator[Progress]:
    """Show the progress of a command while its body runs, on standard error.

    Args:
        tally: what is known of the work beforehand.
        objective: name of the reward that is maximised.
        generations: budget of the search; 0 when there is none.
        run: folder of the run, said once there is something in it.
        loading: said until the first phase begins.
    """
    console = err()
    if not animated(console):
        yield PlainProgress(console, tally, objective, generations, run)
        return
    view = LiveProgress(tally, objective, generations, run, loading)
    with Live(get_renderable=view.render, console=console, refresh_per_second=8) as live:
        view.console = live.console
        try:
            yield view
        finally:
            view.ended = True


class _Watcher(Progress):
    """What both views know."""

    def __init__(self, tally: Tally, objective: str, generations: int, run: str) -> None:
        self._tally = tally
        self._objective = printable(objective)
        self._generations = generations
        self._run = printable(run)

    def phase(self, name: str, images: int) -> None:
        """Begin a part of the command."""
        self._tally.phase(name, images)

    def unit(self, images: int, new: bool) -> None:
        """Count a unit."""
        self._tally.unit(images, new)

    def worked(self, unit: Computed) -> None:
        """Count who computed a unit, and what went wrong."""
        self._tally.worked(unit)

    def page(self, url: str) -> None:
        """Say where a cluster shows the work."""
        self.message(f"The cluster shows its work at {url}")

    def _speed(self) -> str:
        """Images per second of all workers and of each; nothing where there is only one."""
        workers = self._tally.workers()
        total = sum(workers.values())
        return f"{total:.3g} images/s: {speed_words(workers)}" if workers else ""

    def _trouble(self) -> str:
        return trouble_words(self._tally.failed, self._tally.retries)


class PlainProgress(_Watcher):
    """One line a generation, in a fixed order of words, written at once and without colour."""

    def __init__(
        self, console: Console, tally: Tally, objective: str, generations: int, run: str
    ) -> None:
        super().__init__(tally, objective, generations, run)
        self._console = console
        self._quarters = 0
        self._said = ""

    def phase(self, name: str, images: int) -> None:
        """Say what begins."""
        if self._run and not self._tally.done:
            self._line(f"run {self._run}")
        super().phase(name, images)
        self._quarters = 0
        most = "at most " if name == "search" else ""
        self._line(f"{name}: {most}{images} images")

    def unit(self, images: int, new: bool) -> None:
        """Say when another quarter of a phase is done; a search reports its generations."""
        super().unit(images, new)
        phase = self._tally.current
        quarters = int(self._tally.fraction(phase) * _QUARTERS)
        if phase != "search" and quarters > self._quarters:
            self._quarters = quarters
            self._line(f"{phase} {quarters * 100 // _QUARTERS}% left {self._left()}")

    def generation(self, generation: Generation) -> None:
        """Write the line of a generation."""
        difference = generation.mean - generation.baseline
        self._line(
            f"generation {generation.generation + 1}/{self._generations} "
            f"{self._objective} {generation.mean:.4f} original {generation.baseline:.4f} "
            f"difference {difference:+.4f} sigma {generation.sigma:.4f} "
            f"images {generation.images} left {self._left()}"
        )
        for words in (self._speed(), self._new_trouble()):
            if words:
                self._line(words)

    def _new_trouble(self) -> str:
        """What went wrong in all, if anything did since it was last said."""
        words = self._trouble()
        before, self._said = self._said, words
        return words if words != before else ""

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        """Write the line of a validation."""
        self._line(
            f"checkpoint after generation {checkpoint.generation + 1} "
            f"{self._objective} {signed(checkpoint.difference)}"
        )

    def message(self, text: str) -> None:
        """Write a line."""
        self._line(text)

    def _left(self) -> str:
        return clock_time(self._tally.seconds_left())

    def _line(self, text: str) -> None:
        # Rich flushes after every print, so that a reader of the pipe sees the line at once.
        self._console.print(Text(printable(text)), soft_wrap=True)


class LiveProgress(_Watcher):
    """Bars with the time left, and where the search stands."""

    def __init__(
        self, tally: Tally, objective: str, generations: int, run: str, loading: str
    ) -> None:
        super().__init__(tally, objective, generations, run)
        self.console: Console | None = None
        self.ended = False
        self._last: Generation | None = None
        self._checkpoint: Checkpoint | None = None
        self._spinner = Spinner("dots", Text(f"{printable(loading)} …"))

    def generation(self, generation: Generation) -> None:
        """Keep the newest generation."""
        self._last = generation

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        """Keep the newest checkpoint."""
        self._checkpoint = checkpoint

    def message(self, text: str) -> None:
        """Print above the bars."""
        if self.console is not None:
            self.console.print(Text(printable(text)))

    def render(self) -> RenderableType:
        """Draw the present state."""
        if not self._tally.done:
            return Text() if self.ended else self._spinner
        return Group(self._bars(), self._figures())

    def _bars(self) -> Table:
        table = Table.grid(padding=(0, 1, 0, 0), expand=True)
        table.add_column(width=10)
        table.add_column(ratio=1)
        table.add_column(justify="right", width=4)
        for phase in self._tally.phases:
            fraction = self._tally.fraction(phase)
            # Rich's own colour of a bar is red, which reads as trouble.
            bar = ProgressBar(
                total=1.0, completed=fraction, complete_style="cyan", finished_style="green"
            )
            table.add_row(phase, bar, f"{fraction:.0%}")
        return table

    def _figures(self) -> Table:
        table = Table.grid(padding=(0, 1, 0, 0))
        table.add_column(width=10, style="dim")
        table.add_column()
        if self._run:
            table.add_row("run", Text(self._run, overflow="fold"))
        if not self.ended:
            table.add_row("time left", clock_time(self._tally.seconds_left()))
        for label, words in (("speed", self._speed()), ("trouble", self._trouble())):
            if words:
                table.add_row(label, Text(printable(words)))
        if self._generations:
            table.add_row("generation", self._counts())
        if self._last is not None:
            table.add_row("reward", self._reward(self._last))
            table.add_row("sigma", f"{self._last.sigma:.3f}")
        if self._checkpoint is not None:
            number = self._checkpoint.generation + 1
            gain = signed(self._checkpoint.difference)
            table.add_row("validated", Text(f"{gain} after generation {number}"))
        return table

    def _counts(self) -> str:
        done = 0 if self._last is None else self._last.generation + 1
        return f"{done} of {self._generations} · {sum(self._tally.done.values()):,} images"

    def _reward(self, last: Generation) -> Text:
        difference = last.mean - last.baseline
        style = "green" if difference > 0 else "red"
        return Text.assemble(
            f"{self._objective} {last.mean:.3f}, original {last.baseline:.3f}: ",
            (f"{difference:+.3f}", style),
        )

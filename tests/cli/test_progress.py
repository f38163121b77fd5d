import io
import re

import pytest
from rich.console import Console

from calibri.cli.progress import LiveProgress, PlainProgress, watching
from calibri.cli.tally import Tally, speed_words
from calibri.results import Checkpoint, Computed, Figure, Generation


def generation(number, mean=0.5, baseline=0.4):
    return Generation(
        generation=number, mean=mean, best=0.9, baseline=baseline, sigma=0.2, images=7, seconds=1.0
    )


def checkpoint(number):
    figure = Figure(mean=0.021, low=-0.0001, high=0.04, n=8)
    return Checkpoint(generation=number, difference=figure)


def play(view, generations=3):
    view.phase("search", 10 * generations)
    for number in range(generations):
        view.unit(10, True)
        view.generation(generation(number))
    view.checkpoint(checkpoint(generations - 1))
    view.phase("evaluation", 8)
    for _ in range(8):
        view.unit(1, True)


class FlushCounting(io.StringIO):
    flushed = ""

    def flush(self):
        self.flushed = self.getvalue()


def plain_text(generations):
    file = FlushCounting()
    console = Console(file=file, width=40)
    play(PlainProgress(console, Tally(), "shapes", generations, "runs/x"), generations)
    assert file.flushed == file.getvalue()
    return file.getvalue()


def test_plain_progress_has_one_line_a_generation_in_a_fixed_format():
    lines = [line for line in plain_text(3).splitlines() if line.startswith("generation ")]
    number = r"-?\d+\.\d{4}"
    pattern = (
        rf"generation \d+/3 shapes {number} original {number} difference [+-]\d+\.\d{{4}} "
        rf"sigma {number} images \d+ left \d+:\d\d"
    )
    assert [line.split()[1] for line in lines] == ["1/3", "2/3", "3/3"]
    assert all(re.fullmatch(pattern, line) for line in lines)


def test_plain_progress_tells_checkpoints_and_quarters():
    text = plain_text(3)
    assert text.startswith("run runs/x\nsearch: at most 30 images\n")
    assert "checkpoint after generation 3 shapes +0.021 [+0.000, +0.040]\n" in text
    assert re.findall(r"^evaluation (\d+)%", text, re.MULTILINE) == ["25", "50", "75", "100"]


def test_plain_progress_has_no_control_characters():
    file = io.StringIO()
    view = PlainProgress(Console(file=file), Tally(), "evil\x1b[31m\r", 1, "runs/\x07")
    play(view, 1)
    view.message("a\x1b[2J")
    text = file.getvalue()
    assert all(c.isprintable() or c == "\n" for c in text)
    assert r"evil\x1b[31m\r" in text
    assert text.endswith("a\\x1b[2J\n")


@pytest.mark.parametrize("width", [60, 100])
def test_live_progress_fits_the_terminal_and_shows_where_the_search_stands(width):
    view = LiveProgress(Tally({"evaluation": 8}), "shapes", 30, "runs/x", "Loading shapes")
    view.phase("search", 100)
    view.unit(25, True)
    view.generation(generation(11, mean=0.612, baseline=0.569))
    view.checkpoint(checkpoint(9))
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(view.render())
    lines = console.export_text().splitlines()
    text = "\n".join(lines)
    assert max(map(len, lines)) <= width
    assert len(lines) == 8
    assert re.search(r"search +.+ +25%", text)
    assert re.search(r"evaluation +.+ +0%", text)
    assert "run        runs/x" in text
    assert "12 of 30 · 25 images" in text
    assert "shapes 0.612, original 0.569: +0.043" in text
    assert "+0.021 [+0.000, +0.040] after generation 10" in text


def test_live_progress_is_used_on_a_terminal_only(monkeypatch):
    with watching(Tally()) as view:
        assert isinstance(view, PlainProgress)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with watching(Tally()) as view:
        assert isinstance(view, LiveProgress)
    monkeypatch.setenv("TERM", "dumb")
    with watching(Tally()) as view:
        assert isinstance(view, PlainProgress)


def test_live_progress_leaves_nothing_behind_when_loading_fails():
    view = LiveProgress(Tally(), "shapes", 30, "runs/x", "Loading shapes")
    console = Console(width=60, record=True, file=io.StringIO())
    console.print(view.render())
    assert "Loading shapes" in console.export_text()
    view.ended = True
    console.print(view.render())
    assert console.export_text().strip() == ""


def two_workers(view, clock):
    view.phase("search", 100)
    for second in range(1, 11):
        clock.now = float(second)
        for worker, images in (("cuda:0", 6), ("cuda:1", 2)):
            view.unit(images, True)
            view.worked(Computed(worker=worker, images=images))
    view.unit(2, True)
    view.worked(Computed(worker="cuda:1", images=2, failed=1, retries=3))


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_live_progress_shows_the_speed_of_each_worker_and_what_went_wrong():
    clock = Clock()
    view = LiveProgress(Tally(clock=clock), "shapes", 30, "runs/x", "Loading shapes")
    two_workers(view, clock)
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(view.render())
    text = console.export_text()
    assert "speed      8.2 images/s: cuda:0 6, cuda:1 2.2" in text
    assert "trouble    1 images failed, 3 retries" in text


def test_plain_progress_says_the_speed_with_every_generation_and_trouble_once():
    clock, file = Clock(), io.StringIO()
    view = PlainProgress(Console(file=file), Tally(clock=clock), "shapes", 2, "runs/x")
    two_workers(view, clock)
    for number in range(2):
        view.generation(generation(number))
    assert file.getvalue().count("8.2 images/s: cuda:0 6, cuda:1 2.2\n") == 2
    assert file.getvalue().count("1 images failed, 3 retries\n") == 1


def test_one_worker_has_no_speed_of_its_own():
    clock = Clock()
    tally = Tally(clock=clock)
    tally.phase("search", 10)
    clock.now = 2.0
    tally.worked(Computed(worker="", images=4))
    assert tally.workers() == {}
    tally.worked(Computed(worker="b", images=4))
    assert tally.workers() == {"": 2.0, "b": 2.0}
    clock.now = 70.0
    tally.worked(Computed(worker="b", images=6))
    assert tally.workers() == {}


def test_the_speed_of_many_workers_is_a_range():
    assert speed_words({"a": 1.0, "b": 2.5}) == "a 1, b 2.5"
    many = {str(worker): 1.0 + worker / 10 for worker in range(64)}
    assert speed_words(many) == "64 workers, 1 to 7.3 each"

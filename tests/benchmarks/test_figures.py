"""Pages say what the benchmarks found."""

import json

import pytest
from benchmarks.figures import FIGURES, pages, updated

from benchmarks import figures


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_a_page_has_the_figures_of_the_results(page):
    text = page.read_text(encoding="utf-8")
    assert updated(text) == text, "python -m benchmarks.figures writes them"


def test_every_figure_stands_on_a_page():
    text = "".join(page.read_text(encoding="utf-8") for page in pages())
    assert [name for name in FIGURES if f"<!-- figures: {name} -->" not in text] == []


def page_of(inner="0.1"):
    return f"before <!-- figures: found -->{inner}<!-- /figures --> after"


@pytest.fixture
def found(monkeypatch):
    monkeypatch.setattr(figures, "FIGURES", {"found": lambda: "0.34"})


@pytest.mark.parametrize(
    ("before", "after"), [("0.1", "0.34"), ("", "0.34"), ("\n| a |\n| b |\n", "\n0.34\n")]
)
def test_words_and_tables_are_replaced_and_nothing_else(found, before, after):
    assert updated(page_of(before)) == page_of(after)
    assert updated(page_of(after)) == page_of(after)


def test_a_figure_that_there_is_not_is_refused(found):
    with pytest.raises(KeyError, match="others"):
        updated(page_of().replace("found", "others"))


def test_other_results_make_another_page(monkeypatch):
    before = figures.synthetic_shares()
    changed = json.loads((figures.RESULTS / "synthetic.json").read_text())
    next(iter(changed.values()))["fractions"][2][0] = 0.9
    monkeypatch.setattr(figures, "kept", lambda name: changed)
    assert figures.synthetic_shares() != before

"""The page of results, from finished experiments."""

import pytest
from benchmarks.reproduction import BEGIN, END, PAGE, cell, command, page, read, table
from hypothesis import given
from hypothesis import strategies as st

from calibri.config import load_config
from calibri.errors import RunError
from calibri.experiments.granularity import EXPERIMENT
from calibri.experiments.setup import with_defaults
from calibri.reporting.findings import Findings, Table
from calibri.results import Figure
from calibri.runs.header import settings_of


def findings(name="granularity", **values):
    config = with_defaults(load_config(values=values), EXPERIMENT.defaults)
    return Findings(
        experiment=name,
        title="Title",
        paper="Table 1",
        claim="a | b",
        answer="not decidable",
        verdict="found",
        method="how",
        tables=[Table(title="t", columns=["", "x|y"], rows=[["a|b", 1.5]], signed=[])],
        facts={"Pipeline": config.pipeline},
        settings=settings_of(config),
        folder="experiments/one",
        calibri_version="0",
        created="2026-01-01T00:00:00+00:00",
    )


def test_results_stand_between_the_marks_and_the_rest_stays():
    text = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    once = page(text, [findings()], {})
    assert once.startswith("before\n")
    assert once.endswith("after\n")
    assert "old" not in once
    assert page(once, [findings()], {}) == once


def test_the_page_that_is_shipped_has_its_marks():
    assert findings().verdict in page(PAGE.read_text(encoding="utf-8"), [findings()], {})
    with pytest.raises(RunError, match="no line"):
        page("nothing", [findings()], {})


def test_bars_in_names_do_not_break_a_table():
    rows = [line for line in page(f"{BEGIN}{END}", [findings()], {}).splitlines() if "|" in line]
    assert all(line.replace("\\|", "").count("|") in (3, 5) for line in rows)


@given(mean=st.floats(-1e6, 1e6), width=st.floats(0, 1e3), signed=st.booleans())
def test_a_figure_is_written_with_its_interval(mean, width, signed):
    text = cell(Figure(mean=mean, low=mean - width, high=mean + width, n=3), signed=signed)
    numbers = [float(t.replace(",", "")) for t in text.replace("[", "").strip("]").split(" ")[:1]]
    assert numbers[0] == pytest.approx(mean, abs=0.51)
    assert text.count("[") == text.count("]") == 1


def test_a_command_names_what_is_not_usual_and_nothing_else():
    assert command(findings()) == "calibri experiment granularity"
    changed = findings(**{"search.generations": 7, "evaluation.num_prompts": 32})
    assert command(changed).split(" --set ")[1:] == [
        "search.generations=7",
        "evaluation.num_prompts=32",
    ]


def test_a_command_names_how_many_searches_and_which_pipelines():
    found = findings()
    settings = {**found.settings, "searches: seeds": [20, 21]}
    two = found.model_copy(update={"settings": settings})
    assert command(two) == "calibri experiment granularity --searches 2"
    several = findings("backbones").model_copy(
        update={
            "facts": {"Pipelines": "shapes, ./other"},
            "settings": {
                f"{name}: {key}": value
                for name in ("shapes", "./other")
                for key, value in {**settings, "pipeline": name, "search.generations": 7}.items()
            },
        }
    )
    expected = "--pipeline shapes --pipeline ./other --searches 2 --set search.generations=7"
    assert command(several) == f"calibri experiment backbones {expected}"


def test_a_table_has_a_cell_for_each_column():
    lines = table(Table(title="t", columns=["", "n"], rows=[["a", None], ["b", 2]]))
    assert lines[-2:] == ["| a |  |", "| b | 2 |"]


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(RunError, match="no finished experiment"):
        read(tmp_path)

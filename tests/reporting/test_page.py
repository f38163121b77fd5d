from __future__ import annotations

import base64
import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest

from calibri.errors import RunError
from calibri.reporting.context import verdict_details
from calibri.reporting.page import render_report, report
from calibri.reporting.text import count, mean
from calibri.results import RunSummary
from calibri.runs.folder import RunFolder
from tests.reporting import example_run

HOSTILE = "</script></style><img onerror=alert(1) src=x> \"' {{ 7 * 7 }} \u202e\u0000\u0085\u2028"
VOID = {"meta", "img", "br", "circle", "line"}


class Page(HTMLParser):
    """Tags, attributes and visible text of a page; refuses tags that do not close in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in {"meta", "img"}:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.text += data

    def sources(self) -> list[str]:
        return [value for _, name, value in self.attributes if name == "src"]


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(render_report(example_run.summary(), example_run.images()))


def test_the_verdict_names_all_that_readme_has_in_its_table(page: Page) -> None:
    """More steps of the original, each reward, and the figures about sets of images."""
    evaluation = example_run.summary().evaluation
    assert evaluation is not None
    said = " ".join(verdict_details(evaluation))
    base = min(c.num_inference_steps for c in evaluation.comparisons)
    for comparison in evaluation.comparisons:
        if comparison.num_inference_steps != base:
            assert f"{base} calibrated steps against {comparison.num_inference_steps}" in said
            assert f"{comparison.reward} {mean(comparison.difference, sign=True)}" in said
    setting = evaluation.setting(calibrated=True, num_inference_steps=base)
    assert setting is not None
    assert setting.frechet is not None
    assert f"{setting.frechet:.2f} against" in said
    assert f"Diversity {setting.diversity:.3f} against" in said
    assert all(detail in page.text for detail in verdict_details(evaluation))
    assert verdict_details(None) == []


def hostile_summary() -> RunSummary:
    """The example with a hostile text before every text, names of free mappings included."""
    free = {"coefficients", "start", "config", "machine", "scores", "variants", "files"}

    def poison(value: object, field: str) -> object:
        if isinstance(value, dict):
            return {HOSTILE + k if field in free else k: poison(v, k) for k, v in value.items()}
        if isinstance(value, list):
            return [poison(v, field) for v in value]
        is_text = isinstance(value, str) and not value.endswith(".png")
        return HOSTILE + value if is_text else value

    search = example_run.search().model_copy(update={"measured": example_run.measurement()})
    return RunSummary.model_validate(poison(example_run.summary(search=search).model_dump(), ""))


def test_the_page_loads_nothing(page: Page) -> None:
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert ("meta", "content", policy) in page.attributes
    assert page.tags["script"] == page.tags["link"] == page.tags["iframe"] == 0
    assert all(source.startswith("data:image/png;base64,") for source in page.sources())
    assert not [name for _, name, _ in page.attributes if name.startswith("on") or name == "href"]


def test_the_style_sheet_loads_nothing() -> None:
    html = render_report(example_run.summary(), {})
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style


def test_every_text_is_escaped() -> None:
    html = render_report(hostile_summary(), example_run.images())
    hostile, harmless = Page(html), Page(render_report(example_run.summary(), example_run.images()))
    assert hostile.tags.keys() == harmless.tags.keys()
    details = verdict_details(example_run.summary().evaluation)
    assert hostile.tags["li"] == len(example_run.measurement().reasons) + len(details)
    assert hostile.tags["img"] == harmless.tags["img"] == 32
    assert not [name for _, name, _ in hostile.attributes if name.startswith("on")]
    assert "alert(1)" in hostile.text
    assert "{{ 7 * 7 }}" in hostile.text
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", html)


def test_text_of_other_directions_is_isolated(page: Page) -> None:
    rtl = "\u202e\u05e9\u05dc\u05d5\u05dd"
    samples = [example_run.samples()[0].model_copy(update={"prompt": rtl})]
    html = render_report(example_run.summary(samples=samples), {})
    assert f'<bdi dir="auto">{rtl}</bdi>' in html


def test_the_verdict_and_the_key_numbers_are_said(page: Page) -> None:
    assert example_run.summary().verdict in page.text
    assert "+0.121" in page.text
    assert "+0.147" in page.text
    assert "2\N{MULTIPLICATION SIGN}" in page.text
    assert "4 calibrated steps score above 8 original ones" in page.text


def test_every_figure_of_the_evaluation_is_in_the_table(page: Page) -> None:
    evaluation = example_run.evaluation()
    for setting in evaluation.settings:
        assert setting.label in page.text
        for figure in setting.scores.values():
            assert f"{figure.mean:.3f}{figure.low:.3f} to {figure.high:.3f}" in page.text


def test_a_search_without_evaluation_says_what_it_cost() -> None:
    page = Page(render_report(example_run.summary(evaluation=None), {}))
    assert f"{count(example_run.search().images)} images" in page.text
    assert "no gradients" not in page.text


def test_what_was_measured_first_is_said(page: Page) -> None:
    assert "Measured first" not in page.text
    measured = example_run.measurement()
    search = example_run.search().model_copy(update={"measured": measured})
    text = Page(render_report(example_run.summary(search=search), {})).text
    assert "Measured first" in text
    assert f"{count(measured.images)} of the images" in text
    assert all(reason in text for reason in measured.reasons)


def test_the_images_are_those_of_the_run(page: Page) -> None:
    shown = [base64.b64decode(source.partition(",")[2]) for source in page.sources()]
    assert shown == list(example_run.images().values())


def test_small_images_keep_their_pixels_and_large_ones_do_not() -> None:
    pixelated = ("img", "class", "pixelated")
    for size, expected in ((24, 32), (128, 0)):
        page = Page(render_report(example_run.summary(), example_run.images(size)))
        assert page.attributes.count(pixelated) == expected


@pytest.mark.parametrize("data", [b"", b"GIF89a", b"<svg onload='alert(1)'/>"])
def test_what_is_not_a_png_is_not_shown(data: bytes) -> None:
    page = Page(render_report(example_run.summary(), dict.fromkeys(example_run.images(), data)))
    assert page.sources() == []
    assert page.text.count("not kept") == 32


@pytest.mark.parametrize(
    "changes",
    [
        {"evaluation": None},
        {"samples": []},
        {"evaluation": None, "samples": [], "search": example_run.search(1)},
        {"search": example_run.search(0)},
        {"coefficients": {}, "start": {}, "sites": []},
        {"coefficients": {"output": 1.2}, "start": {"output": 1.0}},
        {"config": {}, "machine": {}},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_a_run_with_parts_missing_has_a_report(changes: dict[str, object]) -> None:
    page = Page(render_report(example_run.summary(**changes), example_run.images()))
    assert "Configuration and cost" in page.text
    assert not re.search(r"\b(nan|inf|None|undefined)\b", page.text)


def test_an_evaluation_without_comparisons_or_extras_has_a_report() -> None:
    evaluation = example_run.evaluation()
    settings = [s.model_copy(update={"frechet": None, "diversity": None, "scores": {}})
                for s in evaluation.settings]  # fmt: skip
    bare = evaluation.model_copy(update={"comparisons": [], "settings": settings})
    page = Page(render_report(example_run.summary(evaluation=bare), {}))
    assert "Scores on held-out prompts" in page.text
    assert "Diversity" not in page.text
    assert "Fr\xe9chet" not in page.text


def test_branches_of_guidance_have_a_panel_each() -> None:
    names = [site.parameter for site in example_run.sites()]
    values = {f"{b}/{n}": 1.1 for b in ("conditional", "unconditional") for n in names}
    values |= {"conditional/output": 4.7, "unconditional/output": -3.6}
    html = render_report(example_run.summary(coefficients=values, start=values), {})
    page = Page(html)
    assert "Conditional branch" in page.text
    assert "Unconditional branch" in page.text
    # Each panel is drawn for the page and for a phone; the legend shows each layer once.
    assert html.count('class="mark"') == 2 * 2 * len(names) + 2


@pytest.mark.parametrize(("granularity", "marks"), [("block", 6), ("layer", 12), ("gate", 22)])
def test_every_granularity_is_drawn(granularity: str, marks: int) -> None:
    def parameter(block: str, layer: str, name: str) -> str:
        return {"block": block, "layer": f"{block}.{layer}", "gate": name}[granularity]

    sites = [
        site.model_copy(update={"parameter": parameter(site.block, site.layer, site.name)})
        for site in example_run.sites()
    ]
    values = dict.fromkeys((site.parameter for site in sites), 0.9)
    html = render_report(example_run.summary(sites=sites, coefficients=values, start=values), {})
    assert html.count('class="stem"') == 2 * marks


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder.create(tmp_path / "a-run", {"seed": 0})
    folder.images_path.mkdir()
    for name, data in example_run.images().items():
        (folder.images_path / name).write_bytes(data)
    return folder


def test_a_run_folder_becomes_a_page(run: RunFolder) -> None:
    run.write_results(example_run.summary())
    assert report(run.path) == run.report_path
    expected = render_report(example_run.summary(), example_run.images())
    assert run.report_path.read_text() == expected


def test_a_run_that_is_not_finished_says_how_to_go_on(run: RunFolder) -> None:
    with pytest.raises(RunError, match="calibri resume"):
        report(run.path)
    assert not run.report_path.exists()


def test_a_missing_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run"):
        report(tmp_path / "missing")


@pytest.mark.parametrize("name", ["../secret.png", "sub/secret.png", "link.png", "gone.png"])
def test_no_file_outside_the_images_is_read(
    run: RunFolder, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = example_run.png(0, 0)
    (run.path / "secret.png").write_bytes(secret)
    (run.images_path / "sub").mkdir()
    (run.images_path / "sub" / "secret.png").write_bytes(secret)
    (run.images_path / "link.png").symlink_to(run.path / "secret.png")
    sample = example_run.samples()[0].model_copy(update={"files": {"original": name}})
    run.write_results(example_run.summary(samples=[sample]))
    read, real = [], Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path.name) or real(path))
    assert Page(report(run.path).read_text()).sources() == []
    assert set(read) == {"config.json", "results.json"}


def test_reports_are_written_without_torch() -> None:
    code = "import sys, calibri.reporting; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"

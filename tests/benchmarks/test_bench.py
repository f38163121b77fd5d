import json
from types import SimpleNamespace

import benchmarks.__main__ as bench
import pytest
import torch
from benchmarks.machine import Row, Spread, alternating
from benchmarks.throughput import make_pair
from rich.console import Console

from benchmarks import machine, overhead


def test_repeats_alternate():
    order = []
    times = alternating(lambda i: order.append(("a", i)), lambda i: order.append(("b", i)), 3)
    assert order == [("a", 0), ("b", 0), ("b", 1), ("a", 1), ("a", 2), ("b", 2)]
    assert [len(part) for part in times] == [3, 3]


def test_spread_shows_the_middle_and_the_range():
    assert Spread((1.0, 10.0, 3.0)).text(1) == "3.0 (1.0 to 10.0)"


def test_figures_are_kept_beside_the_machine_and_name_no_one(tmp_path):
    machine.save("x", {"value": 1.5}, tmp_path)
    text = (tmp_path / "x.json").read_text()
    found = machine.load("x", tmp_path)
    assert found["value"] == 1.5
    assert found["machine"]["torch"] == torch.__version__
    assert str(tmp_path) not in text
    assert __import__("socket").gethostname() not in text
    assert machine.load("y", tmp_path) is None


def test_threads_are_given_back():
    before = torch.get_num_threads()
    with machine.threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


@pytest.mark.end_to_end
def test_every_bench_gives_its_rows():
    small = {"search.popsize": 4, "search.bucket_size": 2, "sampling.workers": 1}
    pair = make_pair(**small, **{"sampling.num_inference_steps": 1})
    rows, figures = bench.run(bench.benches(pair, repeats=1), Console())
    assert figures["B1"]["largest_pixel_difference"] <= 1
    assert figures["B2"] == {"reference": 13 * 16, "ours": 2, "ours_again": 0}
    assert figures["B8"]["replay_identical"] is True
    assert figures["B8"]["relative"] < 1e-4
    json.dumps(figures, allow_nan=False)
    assert {row.bench for row in rows} == set(figures)


def test_the_table_keeps_every_row_in_order():
    console = Console(width=120, record=True)
    console.print(bench.table([Row("B9", "x", "y"), Row("B0", "speed", "1.00", "< 2")]))
    text = console.export_text()
    assert text.index("B0") < text.index("B9")
    assert all(word in text for word in ("B0", "speed", "1.00", "< 2", "B9"))


def test_instant_scores_depend_on_the_unit_alone():
    unit = {"rows": [0, 1], "measures": ("r",)}
    units = [SimpleNamespace(digest=digest, **unit) for digest in ("a", "b", "a")]
    backend = overhead.Instant()
    found = [result["scores"]["r"] for _, result in backend.run(enumerate(units))]
    assert found[0] == found[2] != found[1]
    assert backend.units == 3

import itertools
import json
import math

import pytest
from benchmarks.scheduling import Cluster, Simulation, Unit
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import scaling
from calibri.config import RunConfig
from calibri.planning.procedures import images_by_phase

costs = st.lists(st.floats(0.1, 10.0), min_size=1, max_size=40)
speeds = st.lists(st.floats(0.1, 2.0), min_size=1, max_size=9)


def units_of(costs):
    return [Unit(number, cost) for number, cost in enumerate(costs)]


def taken(units, cluster, **how):
    run = Simulation(cluster, **how)
    run.submit(units)
    run.wait(units)
    assert run.done == {unit.number for unit in units}
    return run.now


@given(costs, st.integers(1, 9))
def test_a_queue_keeps_the_bounds_of_list_scheduling(costs, workers):
    """Graham (1966): at most the ideal time and a last unit beyond it."""
    cluster = Cluster((1.0,) * workers, dispatch=0.0)
    now, ideal, longest = taken(units_of(costs), cluster), sum(costs) / workers, max(costs)
    assert max(ideal, longest) <= now + 1e-9
    assert now <= ideal + (1 - 1 / workers) * longest + 1e-9


@given(st.integers(1, 60), st.integers(1, 9))
def test_static_shards_of_equal_units_take_whole_rounds(units, workers):
    cluster = Cluster((1.0,) * workers, dispatch=0.0)
    assert taken(units_of([2.0] * units), cluster, static=True) == 2.0 * math.ceil(units / workers)


@given(costs, speeds, st.booleans(), st.booleans())
def test_no_way_beats_the_ideal_and_all_is_done(costs, speeds, copies, static):
    cluster = Cluster(tuple(speeds), dispatch=0.0)
    now = taken(units_of(costs), cluster, copies=copies, static=static)
    assert now >= sum(costs) / sum(speeds) - 1e-9


@given(costs, speeds, st.integers(0, 5), st.booleans(), st.booleans())
def test_whatever_is_lost_is_done_in_the_end_and_the_same_each_time(
    costs, speeds, seed, copies, static
):
    times = (1.0, 0.7, 1.6)
    cluster = Cluster(tuple(speeds), times, 0.3, lost_each=200.0, away=5.0)
    first = taken(units_of(costs), cluster, seed=seed, copies=copies, static=static)
    again = taken(units_of(costs), cluster, seed=seed, copies=copies, static=static)
    assert first == again


def test_a_copy_saves_waiting_for_a_slow_worker():
    cluster = Cluster((1.0, 0.1), dispatch=0.0)
    assert taken(units_of([1.0, 1.0]), cluster) == pytest.approx(10.0)
    assert taken(units_of([1.0, 1.0]), cluster, copies=True) == pytest.approx(2.0)


def test_what_is_not_urgent_fills_gaps_and_delays_nothing_that_is_waiting():
    run = Simulation(Cluster((1.0, 1.0)))
    filler = [Unit(number, 0.6) for number in range(10, 14)]
    urgent = units_of([1.0, 1.0, 1.0])
    run.submit(filler, urgent=False)
    run.submit(urgent)
    run.wait(urgent)
    assert (run.now, run.done) == (2.0, {0, 1, 2, 10})
    run.request(filler)
    run.wait(filler)
    assert run.now == pytest.approx(2.8)


def test_the_driver_hands_out_units_one_after_the_other():
    cluster = Cluster((1.0,) * 8, dispatch=0.5)
    assert taken(units_of([1.0] * 8), cluster) == pytest.approx(8 * 0.5 + 1.0)


def test_waiting_for_a_share_leaves_the_rest_running():
    run = Simulation(Cluster((1.0,) * 10, dispatch=0.0))
    units = units_of([1.0] * 9 + [50.0])
    run.submit(units)
    run.wait(units, 0.9)
    assert run.now == 1.0


@pytest.mark.parametrize("name", [run for run in scaling.RUNS if "paper" not in run])
def test_units_are_those_of_the_configuration(name):
    sizes = scaling.RUNS[name]
    config = RunConfig.model_validate({"search": sizes.search, "rewards": {"guard": "off"}})
    images = images_by_phase(config, sizes.parameters)
    plan = scaling.plan(sizes)
    figures = [*itertools.chain(*plan.original, *plan.calibrated)]
    steps = config.evaluation.step_multiples_sampled
    work = images["search"] + images["validation"] + images["evaluation"] * sum(steps) / len(steps)
    assert round(plan.cost / sizes.seconds) == work
    assert len(figures) * sizes.unit == images["evaluation"]
    numbers = [unit.number for unit in plan.units]
    assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize("way", scaling.WAYS)
def test_one_worker_is_always_busy(way):
    plan = scaling.plan(scaling.RUNS["FLUX.1-dev, gate, units of 4 images"])
    cluster = Cluster((1.0,))
    searched, found = scaling.seconds(plan, cluster, scaling.WAYS[way], 0)
    assert searched < found
    assert scaling.efficiency(plan, cluster, found) == pytest.approx(1.0)


def test_the_kept_figures_are_what_is_simulated():
    kept = json.loads((scaling.RESULTS / "scaling.json").read_text())
    run = "FLUX.1-dev, gate, units of 4 images"
    plan = scaling.plan(scaling.RUNS[run])
    cluster = scaling.clusters(64)["30% jitter"]
    rows = [r for r in kept if (r["run"], r["workers"], r["condition"]) == (run, 64, "30% jitter")]
    assert len(rows) == 2
    for row in rows:
        searched, taken = scaling.seconds(plan, cluster, scaling.WAYS[row["way"]], scaling.SEED)
        assert (round(searched / 3600, 4), round(taken / 3600, 4)) == (
            row["search_hours"],
            row["hours"],
        )

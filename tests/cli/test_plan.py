"""``calibri plan``."""

import json
import re
from typing import get_type_hints

import pytest
import typer

from calibri.cli.app import app
from calibri.cli.calibrate import calibrate
from calibri.cli.display import byte_words, flop_words
from calibri.cli.plan import _hours, memory_lines
from calibri.cli.plan import plan as plan_words
from calibri.config import RunConfig, SearchConfig
from calibri.pipelines.blueprints import find_geometry
from calibri.planning.costs import Plan, plan, with_defaults
from calibri.planning.generations import bucket_sizes
from calibri.planning.procedures import Hours
from calibri.planning.throughput import Speed
from calibri.runs.inspect import inspect

pytestmark = pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")


def test_plan_shows_the_paper_beside_the_configuration(calibri):
    search = "search={popsize: 10, bucket_size: 3, bucket_growth: 1, race_keep: 1, generations: 7}"
    shown = calibri("plan", "flux.1-dev", "--set", search, "--machine", "a100").stdout
    rows = {line.split("  ")[0].strip(): line.split() for line in shown.splitlines() if line}
    assert rows["generations"][-2:] == ["200", "7"]
    assert rows["images, search"][-2:] == ["51,200", f"{7 * 11 * 3}"]
    assert rows["time on an H100, as published"][-3:] == ["32", "hours", "-"]
    assert any(label.startswith("time on an A100, eager") for label in rows)
    assert "15 evaluations of the transformer, 21.5 TFLOP each, and 339 TFLOP in all" in shown


def test_plan_prints_json_of_the_same_plan(calibri, tiny):
    printed = calibri("plan", "--config", tiny, "--tflops", 2, "--set", "seed=3", "--json").stdout
    found = Plan.model_validate(json.loads(printed))
    assert found.procedures[1].generations == 1
    assert found.procedures[1].hours[0].speed.high == 2
    assert found.num_inference_steps == 2


def test_plan_measures_the_shipped_pipeline(calibri, tiny):
    printed = calibri("plan", "--config", tiny, "--measure", "--json").stdout
    (hours,) = Plan.model_validate(json.loads(printed)).procedures[1].hours
    assert 0 < hours.speed.low <= hours.speed.high
    assert 0 < hours.low < hours.high


def test_plan_refuses_what_it_cannot_find(calibri, tmp_path):
    result = calibri("plan", tmp_path)
    assert result.exit_code == 3
    assert "model_index.json" in result.stderr


@pytest.mark.parametrize(
    ("resident", "in_turns", "largest", "text"),
    [
        (50.3, 33.7, 23.8, "not even the largest network fits"),
        (50.3, 33.7, 21.5, "one network at a time fits"),
        (33.7, 21.5, 16.8, "pipeline and rewards fit in turns"),
        (21.5, 9.0, 9.0, "everything fits"),
    ],
)
def test_plan_says_whether_the_networks_fit(resident, in_turns, largest, text):
    sizes = {
        "resident_gigabytes": resident,
        "in_turns_gigabytes": in_turns,
        "offloaded_gigabytes": largest,
    }
    planned = plan(machine="4090").model_copy(update=sizes)
    assert memory_lines(planned)[-1].startswith(f"RTX 4090 with 24 GB: {text}")


@pytest.mark.parametrize(
    ("resident", "in_turns", "text"),
    [
        (9.0, 9.0, "everything that it keeps."),
        (15.0, 9.0, "one step at a time."),
        (19.0, 9.0, "one block at a time."),
        (30.0, 9.0, "everything that it keeps, pipeline and rewards in turns (rewards.offload)."),
        (30.0, 15.0, "one step at a time, pipeline and rewards in turns (rewards.offload)."),
        (30.0, 19.0, "one block at a time, pipeline and rewards in turns (rewards.offload)."),
        (30.0, 21.5, "does not fit."),
    ],
)
def test_plan_says_how_a_gradient_fits_beside_the_weights(resident, in_turns, text):
    planned = plan(machine="4090", search={"method": "gradient"})
    kept = {"all_steps": 10.0, "one_step": 5.0, "one_block": 1.0}
    changed = {
        "resident_gigabytes": resident,
        "in_turns_gigabytes": in_turns,
        "gradient": planned.gradient.model_copy(update=kept),
    }
    lines = memory_lines(planned.model_copy(update=changed))
    assert "keeps 10.0 GB" in lines[-2]
    assert lines[-1].endswith(text)


def test_plan_counts_the_updates_of_a_search_by_gradients(calibri):
    shown = calibri("plan", "--set", "search.method=gradient", "--set", "space.shift=true").stdout
    by_gradients = plan(search={"method": "gradient"}, space={"shift": True}).procedures[1]
    assert f"({by_gradients.updates} updates by gradients + the original) x 4 to 16" in shown
    # Three of an image with its gradient, two for both sides of the shift; the original once.
    prompts = sum(bucket_sizes(SearchConfig(method="gradient")))
    assert by_gradients.images["search"] == prompts * (5 * by_gradients.updates + 1)


@pytest.mark.parametrize(
    ("tera", "text"),
    [
        (0.0, "0 FLOP"),
        (7.2109e-05, "72.1 MFLOP"),
        (2.51497, "2.51 TFLOP"),
        (339.0, "339 TFLOP"),
        (999.96, "1000 TFLOP"),
        (20888374.0, "20.9 EFLOP"),
        (178e6, "178 EFLOP"),
        (1e-9, "1.00 kFLOP"),
    ],
)
def test_flops_are_written_with_three_digits_and_a_prefix(tera, text):
    assert flop_words(tera) == text


@pytest.mark.parametrize(
    ("gigabytes", "text"), [(50.3, "50.3 GB"), (0.00863, "8.63 MB"), (1.3e-6, "1.30 kB")]
)
def test_sizes_are_written_with_the_prefix_that_suits_them(gigabytes, text):
    assert byte_words(gigabytes) == text


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (145, 200, "6 to 8.3 days"),
        (4.1, 5.7, "4.1 to 5.7 hours"),
        (1.6, 1.62, "96 to 97 minutes"),
        (0.01, 0.0101, "36 seconds"),
        (0, 0, "0 seconds"),
    ],
)
def test_times_are_written_in_the_unit_that_suits_them(low, high, text):
    speed = Speed(label="as given", low=1, high=1, source="given")
    assert _hours(Hours(speed=speed, low=low, high=high)) == text


@pytest.mark.parametrize("model", ["shapes", "flux.1-dev", "sd3.5-medium", "qwen-image"])
def test_no_number_is_written_in_a_unit_that_no_one_reads(calibri, model):
    shown = calibri("plan", model).stdout
    assert not re.search(r"\b0\.0\d|e-\d|\b0\.\d+ [A-Z]", shown)


def test_plan_takes_every_option_of_calibrate():
    """With the same name, kind and help, so that one word is changed to count before a run."""
    commands = typer.main.get_command(app).commands
    options = [
        {param.name: (param.opts, param.secondary_opts) for param in commands[name].params}
        for name in ("calibrate", "plan")
    ]
    assert options[0].items() <= options[1].items()
    ours, theirs = (get_type_hints(call, include_extras=True) for call in (calibrate, plan_words))
    assert all(theirs[name] is ours[name] for name in ours.keys() - {"pipeline", "dry_run"})


def test_plan_and_dry_run_count_the_same(calibri):
    for words in (
        (),
        ("--granularity", "block", "--generations", "3", "--steps", "4", "--seed", 2),
    ):
        dry = calibri("calibrate", *words, "--dry-run").stdout
        planned = Plan.model_validate_json(calibri("plan", *words, "--json").stdout)
        images = planned.procedures[1].images
        assert f"parameters   {planned.parameters}\n" in dry
        for phase in ("search", "validation", "evaluation"):
            assert f"{images[phase]:,} {phase}" in dry
        assert f"{sum(images.values()):,} at most" in dry


def test_plan_counts_the_prompts_of_a_file(calibri, tmp_path):
    (tmp_path / "short.txt").write_text("a\nb\n")
    refused = [
        calibri(*words, "--prompts", "short.txt")
        for words in (("plan",), ("calibrate", "--reward", "shapes"))
    ]
    assert refused[0].exit_code == refused[1].exit_code != 0
    assert refused[0].stderr == refused[1].stderr
    assert "has 2 prompts" in refused[0].stderr


@pytest.mark.parametrize("model", ["flux.1-dev", "sd3.5-medium", "qwen-image"])
def test_plan_and_inspect_agree(model):
    planned, found = plan(pipeline=model), inspect(model)
    assert planned.pipeline == found.pipeline
    assert planned.transformer_class == found.transformer_class
    assert planned.granularity == found.space.granularity
    assert planned.parameters == found.space.size
    assert found.counts[planned.granularity] == found.space.names


def test_a_repository_is_planned_as_it_is_calibrated():
    """Settings of the paper are those of its models' names here, which no run can have."""
    config = RunConfig(pipeline="black-forest-labs/FLUX.1-dev")
    geometry = find_geometry(config.pipeline)
    assert with_defaults(config, geometry) == config
    named = RunConfig(pipeline="flux.1-dev")
    assert with_defaults(named, geometry) != named


def test_the_command_and_the_call_agree(calibri):
    printed = Plan.model_validate(json.loads(calibri("plan", "--json").stdout))
    assert printed == plan(device="auto")

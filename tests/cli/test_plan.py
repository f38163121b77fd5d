"""``calibri plan``."""

import json

import pytest

from calibri.cli.display import flop_words
from calibri.cli.plan import memory_lines
from calibri.planning.costs import Plan, plan

pytestmark = pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")


def test_plan_shows_the_paper_beside_the_configuration(calibri):
    search = "search={popsize: 10, bucket_size: 3, bucket_growth: 1, race_keep: 1, generations: 7}"
    shown = calibri("plan", "flux.1-dev", "--set", search, "--machine", "a100").stdout
    rows = {line.split("  ")[0].strip(): line.split() for line in shown.splitlines() if line}
    assert rows["generations"][-2:] == ["200", "7"]
    assert rows["images, search"][-2:] == ["51,200", f"{7 * 11 * 3}"]
    assert rows["hours on an H100, as published"][-2:] == ["32", "-"]
    assert any(label.startswith("hours on an A100, eager") for label in rows)
    assert "15 evaluations of the transformer of 21.5 TFLOP each, in all 339 TFLOP" in shown


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
        (50.3, 33.7, 23.8, "Not even"),
        (50.3, 33.7, 21.5, "One network"),
        (33.7, 21.5, 16.8, "Pipeline and rewards, alternating"),
        (21.5, 9.0, 9.0, "Everything fits on"),
    ],
)
def test_plan_says_whether_the_networks_fit(resident, in_turns, largest, text):
    sizes = {
        "resident_gigabytes": resident,
        "in_turns_gigabytes": in_turns,
        "offloaded_gigabytes": largest,
    }
    planned = plan(machine="4090").model_copy(update=sizes)
    assert memory_lines(planned)[-1].startswith(text)


@pytest.mark.parametrize(
    ("resident", "text"),
    [(9.0, "everything"), (15.0, "one step"), (19.0, "one block"), (21.5, "does not fit")],
)
def test_plan_says_how_a_gradient_fits_beside_the_weights(resident, text):
    planned = plan(machine="4090", search={"method": "gradient"})
    kept = {"all_steps": 10.0, "one_step": 5.0, "one_block": 1.0}
    changed = {
        "resident_gigabytes": resident,
        "gradient": planned.gradient.model_copy(update=kept),
    }
    lines = memory_lines(planned.model_copy(update=changed))
    assert "10 GB" in lines[1]
    assert text in lines[2]


@pytest.mark.parametrize(
    ("tera", "text"),
    [
        (0.0, "0.000 TFLOP"),
        (7.2109e-05, "72.1 MFLOP"),
        (2.51497, "2.51 TFLOP"),
        (339.0, "339 TFLOP"),
        (999.96, "1000 TFLOP"),
        (20888374.0, "20.9 EFLOP"),
        (178e6, "178 EFLOP"),
        (1e-9, "0.001 MFLOP"),
    ],
)
def test_flops_are_written_with_three_digits_and_a_prefix(tera, text):
    assert flop_words(tera) == text


def test_the_command_and_the_call_agree(calibri):
    printed = Plan.model_validate(json.loads(calibri("plan", "--json").stdout))
    assert printed == plan(device="auto")

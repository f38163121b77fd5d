"""Each experiment that searches, on a landscape whose truth is known."""

from types import SimpleNamespace

import pytest

import calibri
from calibri.errors import CalibriError, ConfigError, PromptError
from calibri.experiments import ablation, granularity, sweep
from calibri.experiments.optimisers import OPTIMISERS
from calibri.experiments.registry import EXPERIMENTS
from calibri.pipelines import parameter_names
from calibri.pipelines.sites.site import Site
from calibri.shapes import PIPELINE_PATH
from tests.loras import saved_by_peft
from tests.tiny import FEW_PROMPTS, tiny_run

SEARCHING = [name for name, (_, kind) in EXPERIMENTS.items() if kind == "searches"]


def run(name, shipped, folder, searches=2, **values):
    """An experiment with searches that are long enough to find what there is."""
    config = tiny_run(
        FEW_PROMPTS
        | {
            "search.popsize": 8,
            "search.generations": 8,
            "search.validate_every": 2,
            "search.bucket_size": 4,
            "sampling.num_inference_steps": 4,
            "sampling.batch_size": 512,
            "evaluation.num_prompts": 12,
            "rewards.held_out": ("shapes-judge",),
        },
        **values,
    )
    return calibri.experiment(name, config, pipeline=shipped, searches=searches, output=folder)


def cells(findings, table=0):
    found = findings.tables[table]
    return {row[0]: dict(zip(found.columns[1:], row[1:], strict=True)) for row in found.rows}


@pytest.mark.parametrize("name", SEARCHING)
def test_every_one_ends_in_tables_a_verdict_and_a_page(name, landscape, shipped, tmp_path):
    values = {"evaluation__images_per_prompt": 2} if name in ("diversity", "alignment") else {}
    pipeline = shipped
    if name == "alignment":  # which loads the pipeline itself
        pipeline = "shapes"
        values["lora"] = str(saved_by_peft(shipped.transformer, tmp_path / "lora"))
    findings = run(name, pipeline, tmp_path / "out", **values)
    assert findings.verdict
    assert findings.tables[0].rows
    for table in findings.tables:
        assert set(table.signed) <= set(table.columns)
        assert all(len(row) == len(table.columns) for row in table.rows)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "over search seeds and prompts" in page
    assert (tmp_path / "out" / "figure.svg").read_text().startswith("<svg ")
    assert "nan" not in page.lower().replace("provenance", "")


def test_what_can_be_gained_is_found_at_every_granularity(landscape, shipped, tmp_path):
    findings = run("granularity", shipped, tmp_path / "out", search__generations=20)
    for row in cells(findings).values():
        # The landscape is 4 x 0.2 x 0.2 lower at the original than at its top.
        assert row["shapes"].low > 0
        assert row["shapes"].mean < 0.16 + 0.02


def test_a_reward_that_wants_something_else_falls(landscape, shipped, tmp_path):
    landscape(best={"shapes": 1.2, "shapes-judge": 0.9})
    findings = run("rewards", shipped, tmp_path / "out", search__generations=20)
    found = cells(findings)
    for name, other in (("shapes", "shapes-judge"), ("shapes-judge", "shapes")):
        assert found[f"for {name}"][name].low > 0 > found[f"for {name}"][other].high
    assert findings.answer == "not judged"
    assert "lowers another reward" in findings.verdict


def test_a_learning_search_is_ahead_of_one_that_does_not_learn(landscape, shipped, tmp_path):
    findings = run("optimisers", shipped, tmp_path / "out", search__generations=20)
    assert set(cells(findings)) == set(OPTIMISERS.values())
    # Without noise in the differences; an interval over two seeds is too wide to say so.
    assert cells(findings, 1)["random search"]["shapes"].mean > 0.02


def test_what_brings_as_much_as_twice_the_steps_needs_fewer(landscape, shipped, tmp_path):
    landscape(by_steps=0.05)
    findings = run("steps", shipped, tmp_path / "out", search__generations=20)
    found = cells(findings)
    assert list(found) == ["2", "3", "4", "6", "8", "12"]
    # On this landscape calibration gains as much at every number of steps.
    gains = [row["shapes"].mean for row in found.values()]
    assert max(gains) - min(gains) < 1e-6
    # So the optimum moves nowhere, though half the steps are enough.
    assert findings.answer == "confirmed in part"


def test_members_are_compared_at_equal_steps_and_at_equal_evaluations(landscape, shipped, tmp_path):
    findings = run("ensemble", shipped, tmp_path / "out", searches=1)
    found = cells(findings)
    for count in (2, 3):
        steps = found[f"{count} members, at as many steps"]["shapes"].mean
        evaluations = found[f"{count} members, at as many evaluations"]["shapes"].mean
        doublings = {2: 1.0, 3: 1.584962500721156}[count]
        assert steps - evaluations == pytest.approx(0.05 * doublings)


def test_images_of_a_prompt_that_grow_alike_are_seen(landscape, shipped, tmp_path):
    values = {"evaluation__images_per_prompt": 4, "search__generations": 12}
    for share, answer in ((1.0, "confirmed"), (0.1, "confirmed in part")):
        landscape(
            by_steps=0.0,
            diversity=lambda table, share=share: 1.0 if (table == 1).all() else share,
        )
        findings = run("diversity", shipped, tmp_path / str(share), **values)
        means = cells(findings)
        original = means["original at 12 steps"]["diversity"].mean
        calibrated = means["calibrated at 4 steps"]["diversity"].mean
        assert calibrated / original == pytest.approx(share, abs=0.1)
        assert findings.answer == answer


def test_what_this_pipeline_cannot_have_is_left_out_and_said(landscape, shipped, tmp_path):
    findings = run("trajectory", shipped, tmp_path / "out", searches=1)
    labels = [str(row[0]) for row in findings.tables[2].rows]
    assert labels[0] == "constants of the paper"
    assert "embedded guidance and shift" not in labels
    assert "Left out is 'embedded guidance and shift'" in findings.method


def test_several_pipelines_stand_in_one_table(landscape, tmp_path):
    (tmp_path / "copy").symlink_to(PIPELINE_PATH)
    both = ["shapes", str(tmp_path / "copy")]
    given = {"rewards__objective": "shapes"}
    findings = run("backbones", both, tmp_path / "out", **given)
    assert [row[0].split(",")[0] for row in findings.tables[0].rows[::3]] == both
    assert all(row["shapes"].mean for row in cells(findings, 1).values())
    assert findings.facts["Pipelines"] == ", ".join(both)
    again = run("backbones", both, tmp_path / "out", **given)
    assert again.tables == findings.tables


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("rewards", {"rewards__held_out": ()}, "each with --reward"),
        ("diversity", {"evaluation__images_per_prompt": 1}, "images_per_prompt to 2 or more"),
        ("diversity", {"evaluation__images_per_prompt": 9, "sampling__batch_size": 8}, "at most"),
        ("granularity", {"evaluation__num_prompts": 10**6}, "were asked for"),
        ("steps", {"search__num_validation_prompts": 10**6}, "were asked for"),
        ("trajectory", {"rewards__objective": "shapes:1,shapes-judge:1"}, "mixture"),
        ("steps", {"space__start": "skip-middle-block"}, "space.start"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    name, values, message, landscape, shipped, tmp_path
):
    with pytest.raises(CalibriError, match=message):
        run(name, shipped, tmp_path / "out", **values)
    assert not (tmp_path / "out").exists()


def test_more_prompts_than_there_are_is_an_error_of_prompts(landscape, shipped, tmp_path):
    few = tmp_path / "few.txt"
    few.write_text("a red circle\na blue square\n")
    with pytest.raises(PromptError, match="2 training prompts"):
        run("granularity", shipped, tmp_path / "out", prompts__train=str(few))


@pytest.mark.parametrize("count", [0, 2])
def test_one_pipeline_is_looked_at_unless_several_are_compared(count, shipped, tmp_path):
    with pytest.raises(ConfigError, match="one pipeline"):
        run("steps", [shipped] * count, tmp_path / "out")


def test_a_pipeline_is_compared_once(landscape, shipped, tmp_path):
    with pytest.raises(ConfigError, match="twice"):
        run("backbones", [shipped, shipped], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["ensemble", "trajectory"])
def test_under_guidance_the_same_is_searched(name, landscape, shipped, tmp_path):
    guided = {"sampling__guidance_scale": 3.0, "search__generations": 2}
    findings = run(name, shipped, tmp_path / "out", searches=1, **guided)
    assert findings.facts["Sampled"].endswith("guidance 3")
    if name == "trajectory":  # where guidance has a shift and knots to be searched with it
        sizes = {row[0]: row[1] for row in findings.tables[2].rows}
        constants = sizes["constants of the paper"]
        assert sizes["shift of the schedule"] == constants + 1
        assert sizes["output weights with 3 knots"] == constants + 2 * 2


def network(*paths):
    sites = [Site(f"{path}.attn", None, path, "attn", "visual") for path in paths]
    names = parameter_names(sites, "block")
    return SimpleNamespace(
        space=SimpleNamespace(names=names),
        config=tiny_run(),
        bench=SimpleNamespace(scaler=SimpleNamespace(sites=sites)),
    )


@pytest.mark.parametrize("made", [ablation, sweep])
def test_a_network_of_one_block_has_nothing_to_compare_it_with(made):
    with pytest.raises(ConfigError, match="one block, 'blocks.0'"):
        made.EXPERIMENT.conditions(network("blocks.0"))


def test_a_network_that_has_one_branch_in_each_block_has_no_granularities():
    with pytest.raises(ConfigError, match="are the same"):
        granularity.EXPERIMENT.cells(tiny_run(), network("blocks.0", "blocks.1"))

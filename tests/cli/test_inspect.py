"""``calibri inspect``: what a search has, by the same settings that ``calibri calibrate`` takes."""

import json

import pytest


@pytest.mark.parametrize(
    ("settings", "expected", "lines"),
    [
        ([], 23, ["22 gate scalars", "output weights"]),
        (
            ["space.granularity=block", "space.knots=3", "space.shift=true"],
            3 * 6 + 2,
            ["6 block scalars x 3 knots", "factor on the shift"],
        ),
        (
            ["sampling.guidance_scale=4", "space.branches=separate", "space.members=2"],
            3 * 22 + 3,
            ["22 gate scalars x 3 members (conditional, unconditional, conditional2)"],
        ),
        (["space.members=2", "space.output_weights=false"], 44, ["(member1, member2)"]),
    ],
)
def test_inspect_takes_the_vector_of_a_search_apart(calibri, settings, expected, lines):
    options = [word for setting in settings for word in ("--set", setting)]
    space = json.loads(calibri("inspect", *options, "--json").stdout)["space"]
    scales = space["names"] * len(space["members"]) * space["knots"]
    assert space["size"] == scales + space["output_weights"] + len(space["factors"]) == expected
    shown = calibri("inspect", *options).stdout
    assert all(line in shown for line in lines)
    last = shown.rstrip().splitlines()[-1].split()
    assert last == ["in", "all", str(expected)]


def test_inspect_reads_a_configuration_and_its_granularity_wins(calibri, tmp_path):
    (tmp_path / "run.yaml").write_text("space: {granularity: layer, members: 2}")
    space = json.loads(calibri("inspect", "--config", "run.yaml", "--json").stdout)["space"]
    assert (space["granularity"], len(space["members"])) == ("layer", 2)
    chosen = calibri("inspect", "--config", "run.yaml", "--granularity", "block", "--json")
    found = json.loads(chosen.stdout)
    assert found["space"]["granularity"] == "block"
    assert {site["parameter"] for site in found["sites"]} == {s["block"] for s in found["sites"]}


def test_inspect_refuses_a_search_that_the_pipeline_cannot_have(calibri):
    result = calibri("inspect", "--set", "space.guidance=true")
    assert result.exit_code == 3
    assert "no guidance embedded" in result.stderr

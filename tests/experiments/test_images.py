"""Experiments that search, with images of the shipped pipeline."""

import json

import pytest

import calibri
from tests.experiments.test_searching import TINY


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ensemble", "trajectory"])
def test_all_kinds_of_searches_sample_images_of_the_shipped_pipeline(name, shipped, tmp_path):
    findings = calibri.experiment(
        name,
        TINY,
        pipeline=shipped,
        searches=1,
        output=tmp_path / "out",
        space={"granularity": "block"},
    )
    assert findings.tables[0].rows
    assert json.loads((tmp_path / "out" / "results.json").read_bytes())["experiment"] == name

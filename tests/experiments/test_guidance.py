"""Experiments under guidance."""

import pytest

import calibri
from calibri.results import Figure
from tests.tiny import tiny_run


@pytest.mark.parametrize("branches", ["shared", "separate"])
def test_under_guidance_a_block_is_bypassed_in_both_branches(branches, tmp_path):
    config = tiny_run(
        sampling__guidance_scale=3.0, space__branches=branches, evaluation__num_prompts=2
    )
    findings = calibri.experiment("ablation", config, output=tmp_path / "o")
    rows = findings.tables[0].rows
    assert len(rows) == 6
    assert any(isinstance(row[1], Figure) and row[1].mean != 0 for row in rows)

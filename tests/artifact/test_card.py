from __future__ import annotations

import ast
import re

import pytest
import yaml

from calibri.artifact.calibration import Calibration
from calibri.artifact.card import render_card

HOSTILE = "</script><img onerror=alert(1) src=x> | a](javascript:x) `b` *c* \u202e \x00\n---\n# d"


def front_matter(card: str) -> dict[str, object]:
    _, header, _ = re.split(r"^---$", card, maxsplit=2, flags=re.MULTILINE)
    return yaml.safe_load(header)


def test_the_front_matter_says_what_the_hub_shows(calibration: Calibration) -> None:
    header = front_matter(render_card(calibration, "user/repo"))
    assert header["library_name"] == "calibri"
    assert header["base_model"] == "someone/a-pipeline"
    assert header["base_model_relation"] == "adapter"
    assert header["pipeline_tag"] == "text-to-image"
    (entry,) = header["model-index"]
    metrics = {m["type"]: m["value"] for m in entry["results"][0]["metrics"]}
    assert metrics == {"shapes": 0.625, "judge": 0.3125}


def test_the_snippet_can_be_run_as_it_stands(calibration: Calibration) -> None:
    code = render_card(calibration, "user/repo").split("```python")[1].split("```")[0]
    tree = ast.parse(code)
    calls = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert "calibri.load(pipe, 'user/repo')" in calls
    assert "pipe('a prompt', num_inference_steps=4, guidance_scale=4.5)" in calls


def test_the_snippet_has_the_guidance_and_the_negative_prompt_of_the_search(
    calibration: Calibration,
) -> None:
    text = 'ugly" \N{SNOWMAN} ``` \n x'
    changed = {"true_cfg_scale": 3.0, "negative_prompt": text, "guidance_scale": 1.0}
    sampling = calibration.sampling.model_copy(update=changed)
    card = render_card(calibration.model_copy(update={"sampling": sampling}), "user/repo")
    tree = ast.parse(card.split("```python")[1].split("\n```")[0])
    call = next(
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "pipe"
    )
    given = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    assert given == {"num_inference_steps": 4, **changed}


def test_a_model_of_half_precision_is_loaded_in_it(calibration: Calibration) -> None:
    for dtype, has in (("bfloat16", True), ("float32", False)):
        sampling = calibration.sampling.model_copy(update={"dtype": dtype})
        card = render_card(calibration.model_copy(update={"sampling": sampling}), "user/repo")
        code = card.split("```python")[1].split("```")[0]
        assert ("torch_dtype=torch.bfloat16" in code) == ("import torch\n" in code) == has
        ast.parse(code)


def test_a_calibration_of_videos_says_so(calibration: Calibration) -> None:
    sampling = calibration.sampling.model_copy(update={"num_frames": 9})
    card = render_card(calibration.model_copy(update={"sampling": sampling}), "user/repo")
    assert front_matter(card)["pipeline_tag"] == "text-to-video"
    assert "video = pipe" in card
    assert "num_frames=9).frames[0]" in card


def test_the_search_is_not_called_what_it_may_not_be(calibration: Calibration) -> None:
    by_gradient = calibration.model_copy(update={"provenance": {"method": "gradient"}})
    card = render_card(by_gradient, "user/repo")
    assert "| method | gradient |" in card
    assert "without gradients" not in card
    assert "found by maximising" in card


def test_figures_are_shown_with_their_intervals(calibration: Calibration) -> None:
    card = render_card(calibration, "user/repo")
    assert "| calibrated, 4 steps | 8 | 0.6250 (0.6150 to 0.6350) |" in card
    assert "+0.1250 (+0.1150 to +0.1350)" in card


def test_a_calibration_without_evaluation_has_a_card(calibration: Calibration) -> None:
    card = render_card(calibration.model_copy(update={"evaluation": None}), "user/repo")
    assert "model-index" not in front_matter(card)
    assert "## Scores" not in card


@pytest.mark.parametrize("base", ["/home/someone/model", "./model", "model", "a/b/c"])
def test_a_folder_is_not_offered_as_a_base_model_of_the_hub(
    calibration: Calibration, base: str
) -> None:
    card = render_card(calibration.model_copy(update={"base_model": base}), "user/repo")
    assert "base_model" not in front_matter(card)
    assert f'from_pretrained("{base}")' in card


def test_hostile_values_stay_text(calibration: Calibration) -> None:
    hostile = calibration.model_copy(
        update={
            "base_model": HOSTILE,
            "transformer_class": HOSTILE,
            "rewards": {"shapes": HOSTILE},
            "provenance": {HOSTILE: HOSTILE},
        }
    )
    card = render_card(hostile, HOSTILE)
    assert front_matter(card)["tags"][-1] == HOSTILE
    body = re.split(r"^---$", card, maxsplit=2, flags=re.MULTILINE)[2]
    code = body.split("```")[1]
    assert code.count("\n") == 7  # no value breaks out of its line
    prose = body.replace(code, "")
    assert not re.search(r"(?<!\\)[<>\[\]*]", prose)
    assert not any(c in body for c in "\x00\u202e")


def test_the_body_has_no_lines_but_its_own(calibration: Calibration) -> None:
    clean = render_card(calibration, "user/repo").count("\n")
    noisy = calibration.model_copy(update={"calibri_version": "a\n\n# b", "objective": "c\r\nd"})
    assert render_card(noisy, "user/repo").count("\n") == clean


def test_output_weights_with_knots_have_a_row_for_each_member(calibration):
    update = {"output_weights": (2.0, 5.0, -1.0, -4.0), "output_knots": 2}
    coefficients = calibration.coefficients.model_copy(update=update)
    card = render_card(calibration.model_copy(update={"coefficients": coefficients}), "me/it")
    assert "| Output weight 1, from the image to the noise | 2.0, 5.0 |" in card
    assert "| Output weight 2, from the image to the noise | -1.0, -4.0 |" in card

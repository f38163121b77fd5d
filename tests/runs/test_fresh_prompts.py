import pytest

from calibri.artifact import Calibration
from calibri.config import load_config
from calibri.prompts import prompt_sets
from calibri.runs.fresh_prompts import USED, unseen_prompts, used_shipped_prompts


def made_by(**provenance):
    # Of no model: only what it says of its making is read.
    return Calibration.model_construct(provenance=provenance)


@pytest.mark.parametrize("seed", [0, 7])
def test_prompts_that_chose_or_judged_a_calibration_do_not_judge_it_again(seed, tmp_path):
    (tmp_path / "train.txt").write_text("\n".join(f"prompt {i}" for i in range(30)))
    values = {"search.num_validation_prompts": 60, "evaluation.num_prompts": 90, "seed": seed}
    texts = {"prompts.train": str(tmp_path / "train.txt"), "prompts.held_out": "shapes"}
    config = load_config(values=values | texts)
    used = prompt_sets(config)
    made = made_by(seed=seed, **{USED: used_shipped_prompts(config)})
    seen = {prompt.text for prompt in (*used.validation, *used.test)}
    assert len(seen) == 150
    for other in (0, 7):
        drawn = unseen_prompts(made, 200, other)
        assert len(drawn) == len(set(drawn)) == 200
        assert not seen & {prompt.text for prompt in drawn}


def test_a_calibration_that_does_not_say_has_the_default_ones():
    used = prompt_sets(load_config())
    seen = {prompt.text for prompt in (*used.validation, *used.test)}
    assert not seen & {prompt.text for prompt in unseen_prompts(made_by(seed=0), 256, 1)}


def test_a_calibration_of_other_prompts_used_none():
    assert used_shipped_prompts(load_config(values={"prompts.train": "compositional"})) == 0
    assert used_shipped_prompts(load_config(values={"prompts.held_out": "p.txt"})) == 0
    everything = unseen_prompts(made_by(), 64, 3)
    assert unseen_prompts(made_by(seed=0, **{USED: 0}), 64, 3) == everything
    assert len(everything) == len(set(everything)) == 64

"""The prompts of a run: where they come from, and how they are cut into three sets."""

import re
from pathlib import Path

import pytest

from calibri.config import load_config
from calibri.errors import PromptError
from calibri.prompts.sources import prompt_sets
from calibri.shapes.scenes import held_out

SMALL = {
    "search.bucket_size": 2,
    "search.num_validation_prompts": 5,
    "evaluation.num_prompts": 4,
}


def sets(**values):
    return prompt_sets(load_config(values=SMALL | values))


def write(path, prompts):
    path.write_text("\n".join(prompts))
    return str(path)


def test_shipped_prompts_are_disjoint_and_never_trained_on():
    found = sets()
    texts = [{p.text for p in part} for part in (found.train, found.validation, found.test)]
    assert [len(t) for t in texts[1:]] == [5, 4]
    assert not texts[0] & (texts[1] | texts[2])
    assert not texts[1] & texts[2]
    assert not any(held_out(text) for text in texts[0])
    assert all(held_out(text) for text in texts[1] | texts[2])


def test_one_file_is_split_by_content_not_by_order(tmp_path):
    prompts = [f"prompt {i}" for i in range(60)]
    one = sets(**{"prompts.train": write(tmp_path / "a.txt", prompts)})
    other = sets(**{"prompts.train": write(tmp_path / "b.txt", prompts[::-1])})
    assert one == other
    assert len(one.train) == 48
    assert {p.text for p in one.validation + one.test}.isdisjoint(p.text for p in one.train)


def test_the_seed_decides_the_split(tmp_path):
    path = write(tmp_path / "a.txt", [f"prompt {i}" for i in range(60)])
    assert sets(**{"prompts.train": path}) != sets(**{"prompts.train": path, "seed": 1})


def test_a_held_out_file_must_not_share_prompts(tmp_path):
    train = write(tmp_path / "train.txt", [f"prompt {i}" for i in range(20)])
    test = write(tmp_path / "test.txt", [f"prompt {i}" for i in range(19, 40)])
    with pytest.raises(PromptError, match="prompt 19"):
        sets(**{"prompts.train": train, "prompts.held_out": test})


@pytest.mark.parametrize(
    ("bucket", "validation", "test"), [(2, 5, 4), (40, 5, 2), (1, 7, 2), (64, 6, 6)]
)
def test_too_few_prompts_are_refused_with_the_number_that_is_enough(
    tmp_path, bucket, validation, test
):
    def cut(count):
        return sets(
            **{
                "prompts.train": write(tmp_path / "some.txt", [f"p {i}" for i in range(count)]),
                "search.bucket_size": bucket,
                "search.num_validation_prompts": validation,
                "evaluation.num_prompts": test,
            }
        )

    with pytest.raises(PromptError, match=r"has 1 prompts.*needs ([\d,]+)") as refused:
        cut(1)
    needed = int(re.search(r"needs ([\d,]+)", str(refused.value))[1].replace(",", ""))
    with pytest.raises(PromptError, match=f"has {needed - 1} prompts"):
        cut(needed - 1)
    found = cut(needed)
    assert (len(found.validation), len(found.test)) == (validation, test)


def test_readme_says_how_many_prompts_the_defaults_need(tmp_path):
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    path = write(tmp_path / "short.txt", ["a", "b"])
    with pytest.raises(PromptError) as refused:
        prompt_sets(load_config(values={"prompts.train": path}))
    numbers = re.search(r"needs ([\d,]+).* which (\d+) choose.* and (\d+) give", str(refused.value))
    assert f"needs {numbers[1]} prompts" in readme
    assert f"{numbers[2]} choose among checkpoints and {numbers[3]} give the figures" in readme


def test_too_few_prompts_to_judge_on_are_refused(tmp_path):
    train = write(tmp_path / "train.txt", [f"prompt {i}" for i in range(20)])
    few = write(tmp_path / "few.txt", [f"other {i}" for i in range(4)])
    with pytest.raises(PromptError, match="4 held-out prompts are too few: 5"):
        sets(**{"prompts.train": train, "prompts.held_out": few})

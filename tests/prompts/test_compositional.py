from collections import Counter

import pytest

from calibri.config import load_config
from calibri.errors import PromptError
from calibri.prompts import compositional
from calibri.prompts.compositional import CATEGORIES, a, compositional_prompts, is_held_out
from calibri.prompts.files import check_disjoint, make_prompts
from calibri.prompts.sources import prompt_sets


def texts(*arguments):
    return [prompt.text for prompt in compositional_prompts(*arguments)]


def test_equal_arguments_give_equal_prompts_and_others_other_ones():
    assert texts(50, 0, "train") == texts(50, 0, "train")
    assert texts(50, 0, "train") != texts(50, 1, "train")


def test_a_smaller_count_gives_the_first_of_a_larger_one():
    assert texts(200, 3, "train")[:35] == texts(35, 3, "train")


def test_all_are_different_and_the_categories_take_turns():
    prompts = compositional_prompts(2100, 0, "train")
    assert len({prompt.text for prompt in prompts}) == 2100
    assert Counter(p.category for p in prompts) == dict.fromkeys(CATEGORIES, 300)


def test_no_seed_moves_a_prompt_to_the_other_split():
    train = make_prompts(t for seed in range(3) for t in texts(1400, seed, "train"))
    held_out = make_prompts(t for seed in range(3) for t in texts(700, seed, "held_out"))
    check_disjoint(train, held_out)
    assert not any(is_held_out(p.text) for p in train)
    assert all(is_held_out(p.text) for p in held_out)


def test_the_split_ignores_case_and_whitespace():
    for text in texts(100, 0, "train"):
        assert is_held_out(text.upper().replace(" ", "  ")) == is_held_out(text)


def test_a_fifth_is_held_out():
    mixed = {f"a red box number {i}" for i in range(2000)}
    assert 0.16 < sum(map(is_held_out, mixed)) / 2000 < 0.24


@pytest.mark.parametrize("category", CATEGORIES)
def test_one_category_alone_is_large_enough_for_a_run(category):
    prompts = compositional_prompts(500, 0, "held_out", (category,))
    assert {prompt.category for prompt in prompts} == {category}


def test_the_english_is_plain():
    for text in texts(2100, 1, "train"):
        words = text.replace(",", "").split()
        assert "  " not in text
        assert text == text.strip(" .")
        for article, following in zip(words, words[1:], strict=False):
            if article in ("a", "an"):
                assert (article == "an") == (following[0] in "aeiou"), text
        assert all(ord(character) < 128 for character in text)


def test_counts_come_with_plurals():
    numbers = {"two", "three", "four", "five", "six", "seven", "eight"}
    singular = ("vase", "box", "dog", "sheep", "bus", "man", "lady")
    for prompt in compositional_prompts(300, 0, "train", ("counting",)):
        words = prompt.text.split()
        assert words[0] in numbers
        assert words[1] not in singular or words[1] == "sheep"


@pytest.mark.parametrize(("words", "expected"), [("owl", "an owl"), ("fox", "a fox")])
def test_articles(words, expected):
    assert a(words) == expected


@pytest.mark.parametrize("categories", [("beauty",), ()])
def test_unknown_categories_are_refused(categories):
    with pytest.raises(PromptError, match="Known are color, shape"):
        compositional_prompts(3, 0, "train", categories)


def test_a_category_that_is_used_up_says_so(monkeypatch):
    monkeypatch.setitem(compositional.MAKERS, "color", lambda rng: "a red box")
    split = "held_out" if is_held_out("a red box") else "train"
    with pytest.raises(PromptError, match="'color' .* too few"):
        compositional_prompts(2, 0, split, ("color",))


def test_a_run_needs_no_data_set():
    values = {"search.num_validation_prompts": 40, "evaluation.num_prompts": 60}
    sets = prompt_sets(load_config(values=values | {"prompts.train": "compositional"}))
    assert (len(sets.train), len(sets.validation), len(sets.test)) == (4096, 40, 60)
    assert all(is_held_out(p.text) for p in sets.validation + sets.test)

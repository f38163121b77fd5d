import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from calibri.errors import PromptError
from calibri.shapes.scenes import (
    COLORS,
    RELATIONS,
    SHAPES,
    SIZES,
    VOCABULARY,
    Scene,
    Thing,
    all_captions,
    caption,
    held_out,
    parse_caption,
    sample_prompts,
    sample_scene,
)

things = st.builds(Thing, st.sampled_from(SIZES), st.sampled_from(COLORS), st.sampled_from(SHAPES))


@st.composite
def scenes(draw: st.DrawFn) -> Scene:
    first = draw(things)
    kind = draw(st.sampled_from(["one", "two", "pair"]))
    if kind == "one":
        return Scene((first,))
    if kind == "two":
        return Scene((first, first))
    second = draw(things.filter(lambda thing: thing.color != first.color))
    return Scene((first, second), draw(st.sampled_from([None, *RELATIONS])))


@given(scenes())
def test_a_caption_reads_back_as_its_scene(scene: Scene) -> None:
    assert parse_caption(caption(scene)) == scene


@given(scenes())
def test_captions_use_the_closed_vocabulary_and_fit_the_tokenizer(scene: Scene) -> None:
    words = caption(scene).split()
    assert set(words) <= set(VOCABULARY)
    assert len(words) <= 10


@given(scenes(), st.sampled_from(["upper", "title", "lower"]))
def test_letter_case_and_spacing_change_neither_scene_nor_split(scene: Scene, how: str) -> None:
    text = caption(scene)
    sloppy = "  " + getattr(text, how)().replace(" ", " \t ")
    assert parse_caption(sloppy) == scene
    assert held_out(sloppy) == held_out(text)


@pytest.mark.parametrize(
    ("scene", "text"),
    [
        (Scene((Thing("small", "red", "circle"),)), "a small red circle"),
        (Scene((Thing("medium", "red", "cross"),) * 2), "two red crosses"),
        (
            Scene((Thing("medium", "red", "circle"), Thing("large", "blue", "square")), "left of"),
            "a red circle left of a large blue square",
        ),
        (
            Scene((Thing("medium", "red", "circle"), Thing("small", "cyan", "triangle"))),
            "a red circle and a small cyan triangle",
        ),
    ],
)
def test_captions_read_like_english(scene: Scene, text: str) -> None:
    assert caption(scene) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a dog",
        "red circle",
        "a medium red circle",
        "a purple circle",
        "two red circle",
        "a red circle above",
        "a red circle above a blue square and a green cross",
        "a red circle over a blue square",
        "a red circle above a red square",
        "a red circle above a red circle",
    ],
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(PromptError, match=r"caption|colour"):
        parse_caption(text)


def test_a_scene_has_one_or_two_things() -> None:
    thing = Thing("small", "red", "circle")
    with pytest.raises(PromptError, match="one or two"):
        Scene((thing,) * 3)


def test_sampled_scenes_have_the_documented_shares() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = [sample_scene(generator) for _ in range(4000)]
    single = sum(len(scene.things) == 1 for scene in drawn) / 4000
    equal = sum(scene.is_pair_of_equals for scene in drawn) / 4000
    related = sum(scene.relation is not None for scene in drawn) / 4000
    assert (single, equal, related) == pytest.approx((0.15, 0.15, 0.5), abs=0.03)


def test_about_a_fifth_of_all_captions_is_held_out() -> None:
    texts = all_captions()
    assert len(set(texts)) == len(texts) == 72 * 2 + 72 * 60 * 5
    assert sum(map(held_out, texts)) / len(texts) == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_prompts_are_distinct_repeatable_and_of_their_split(split: str) -> None:
    prompts = sample_prompts(300, 5, split)
    assert len(set(prompts)) == 300
    assert {held_out(text) for text in prompts} == {split == "held_out"}
    assert sample_prompts(100, 5, split) == prompts[:100]
    assert sample_prompts(100, 6, split) != prompts[:100]


def test_too_many_prompts_and_unknown_splits_are_refused() -> None:
    with pytest.raises(PromptError, match="Unknown split"):
        sample_prompts(1, 0, "test")
    with pytest.raises(PromptError, match="held_out' split has"):
        sample_prompts(10**9, 0, "held_out")

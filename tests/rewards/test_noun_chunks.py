import re

import pytest

from calibri.prompts import compositional as words
from calibri.prompts.compositional import CATEGORIES, compositional_prompts
from calibri.rewards.compbench import CompBenchAttribute
from calibri.rewards.noun_chunks import rule_based_noun_chunks

NOUNS = {
    noun
    for group in (words.OBJECTS, words.COLORED, words.ANIMALS, words.PEOPLE)
    for pair in group
    for noun in pair
}
ADJECTIVES = {*words.COLORS, *words.SHAPES, *words.TEXTURES}
# What places and actions name, written out by hand.
OTHERS = (
    "a kitchen|a beach|a snowy forest|a busy street|a library|a mountain meadow|an empty room|"
    "a garden|a railway station|a starry sky|chess|a photo|a portrait|a newspaper|a bicycle|"
    "the violin|a puddle|an apple|a ladder|a fence|a kite|a cup"
)


def alternatives(texts):
    return "|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True))


# The noun phrases that the generator can write, from its vocabulary alone.
PHRASE = re.compile(
    rf"\b(?:(?:an?|{'|'.join(words.NUMBERS)}) (?:(?:{alternatives(ADJECTIVES)}) )?"
    rf"(?:{alternatives(NOUNS)})|{OTHERS})\b"
)


@pytest.mark.parametrize("category", CATEGORIES)
def test_our_compositional_prompts_are_cut_at_their_noun_phrases(category):
    prompts = [p.text for p in compositional_prompts(120, 4, "train", (category,))]
    for prompt in prompts:
        assert rule_based_noun_chunks(prompt) == PHRASE.findall(prompt), prompt


@pytest.mark.parametrize(
    ("prompt", "chunks"),
    [
        ("A red apple and a green cup.", ["A red apple", "a green cup"]),
        ("a painting of a man standing in a kitchen", ["a painting", "a man", "a kitchen"]),
        ("a living room with a white ceiling", ["a living room", "a white ceiling"]),
        ("the bird on the top of the bus", ["the bird", "the bus"]),
        ("The leather jacket and fluffy scarf keep", ["The leather jacket", "fluffy scarf keep"]),
        ("", []),
        ("and, or; a", []),
    ],
)
def test_chunks_of_other_captions(prompt, chunks):
    assert rule_based_noun_chunks(prompt) == chunks


def test_the_variant_says_where_noun_chunks_come_from():
    variants = {
        CompBenchAttribute(noun_chunks=source).info.variant
        for source in (None, "rules", {"a": ["a"]})
    }
    assert len(variants) == 3
    reward = CompBenchAttribute(noun_chunks="rules")
    assert "by rules" in reward.info.variant
    assert reward.noun_chunks("a cat on top of a box") == ["a cat", "a box"]

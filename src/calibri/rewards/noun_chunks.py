"""Noun chunks of an English caption by rules, where spaCy is not installed: a variant of its own.

The benchmark finds them with a trained parser. These rules cut a caption at the words that stand
between noun phrases; on our compositional prompts they are exact, on others they are a guess.
"""

from __future__ import annotations

import re

# Together they are one preposition; alone, some of their words would look like nouns.
_PLACES = re.compile(
    r"\b(?:in front of|next to|on (?:the )?(?:top|bottom|side) of|(?:to|on) the (?:left|right)"
    r"(?: side)? of|close to|as well as)\b",
    re.IGNORECASE,
)
_PUNCTUATION = re.compile(r"[.,;:!?\"()\[\]]")
_BETWEEN = re.compile(
    r"and|or|but|nor|with|without|of|in|on|at|by|for|from|to|into|onto|over|under|above|below|"
    r"behind|beside|besides|between|beneath|near|inside|outside|across|through|along|around|"
    r"against|among|upon|off|up|down|while|as|than|that|which|who|whose|where|when|is|are|was|were|"
    r"be|been|being|has|have|had|do|does|can|it|he|she|they|we|you|i|its|there|here|not|very|"
    r"together|"
    # verbs of captions
    r"sits?|stands?|lies?|lays|holds?|wears?|rides?|rests?|hangs?|eats?|drinks?|plays?|runs?|"
    r"walks?|looks?|flies|fly|floats|swims|sleeps|jumps|leans|contains|features|shows|parked|"
    r"seated|made|filled|covered|surrounded|,"
)
_ARTICLE = re.compile(r"an?|the|this|these|those|some|two|three|four|five|six|seven|eight")
# Words in -ing that are things; after an article any of them is.
_THING = re.compile(
    r"buildings?|paintings?|ceiling|ring|king|string|wing|morning|evening|thing|clothing|railing|"
    r"swing|spring|earring|awning|wedding|pudding|bedding|flooring"
)
_BE = re.compile(r"is|are|was|were")


def rule_based_noun_chunks(prompt: str) -> list[str]:
    """Cut a caption into its noun chunks.

    Args:
        prompt: English, lower case or not.

    Returns:
        Runs of words between prepositions, conjunctions, verbs and punctuation, in their order.
    """
    words = _PUNCTUATION.sub(" , ", _PLACES.sub(" , ", prompt)).split()
    chunks: list[list[str]] = [[]]
    for before, word in zip([",", *words], words, strict=False):
        if _is_between(before.lower(), word.lower()):
            chunks.append([])
        else:
            chunks[-1].append(word)
    return [" ".join(chunk) for chunk in chunks if _names_something(chunk)]


def _is_between(before: str, word: str) -> bool:
    if _BETWEEN.fullmatch(word):
        return True
    if not word.endswith("ing") or _ARTICLE.fullmatch(before):
        return False
    return bool(_BE.fullmatch(before)) or not _THING.fullmatch(word)


def _names_something(chunk: list[str]) -> bool:
    return any(not _ARTICLE.fullmatch(word.lower()) for word in chunk)

"""Encoded prompts are kept within a bound, the least recently used forgotten first."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from calibri.sampling.prompt_cache import PromptCache


def embeds(entries=100):
    return {"embeds": torch.zeros(entries)}


def test_it_is_bounded_and_forgets_the_least_recently_used():
    cache = PromptCache(max_bytes=3 * 400)
    made = []

    def make(name):
        made.append(name)
        return embeds()

    for name in "abcadab":
        cache.get(name, lambda name=name: make(name))
    # d takes the place of b, the only one not asked for since.
    assert made == ["a", "b", "c", "d", "b"]
    assert cache.full


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 60)), max_size=30))
def test_it_never_holds_more_than_its_bound_or_the_latest_one(asked):
    cache = PromptCache(max_bytes=400)
    sizes = {}
    for name, entries in asked:
        known = name in cache
        found = cache.get(name, lambda entries=entries: embeds(entries))["embeds"]
        assert len(found) == (sizes[name] if known else entries)
        sizes[name] = len(found)
        held = [sizes[n] for n in sizes if n in cache]
        assert name in cache
        assert 4 * sum(held) <= 400 or len(held) == 1


def test_a_prompt_that_is_larger_than_the_bound_is_kept_alone():
    cache = PromptCache(max_bytes=40)
    cache.get("a", embeds)
    cache.get("b", embeds)
    assert "a" not in cache
    assert "b" in cache

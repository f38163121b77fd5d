from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibri.errors import PromptError
from calibri.prompts.buckets import Buckets
from calibri.prompts.files import make_prompts
from calibri.search.buckets import bucket_size
from calibri.seeds import derive_seed


def some_prompts(count):
    return make_prompts(f"prompt {i}" for i in range(count))


@given(
    count=st.integers(1, 40),
    shares=st.lists(st.floats(0, 1), min_size=1, max_size=30),
    seed=st.integers(0, 5),
)
@settings(deadline=None)
def test_every_prompt_comes_once_before_any_comes_twice(count, shares, seed):
    prompts = some_prompts(count)
    buckets, stream = Buckets(prompts, seed), []
    for share in shares:
        size = 1 + round(share * (count - 1))
        drawn = buckets.draw(size)
        assert len(set(drawn)) == len(drawn) == size
        stream += drawn
    for start in range(0, len(stream), count):
        epoch = stream[start : start + count]
        assert len(set(epoch)) == len(epoch)


def test_growing_buckets_leave_no_prompt_out():
    sizes = [bucket_size(8, 16, generation, 20) for generation in range(20)]
    buckets = Buckets(some_prompts(100), 0)
    used = Counter(prompt for size in sizes for prompt in buckets.draw(size))
    assert sum(used.values()) == sum(sizes)
    assert set(used.values()) == {2, 3}


@given(count=st.integers(16, 60), size=st.integers(1, 16), seed=st.integers(0, 3))
@settings(deadline=None)
def test_buckets_of_one_size_run_through_one_order_an_epoch(count, size, seed):
    prompts = some_prompts(count)
    buckets = Buckets(prompts, seed)
    stream = [prompt for _ in range(count // size) for prompt in buckets.draw(size)]
    order = np.random.default_rng(derive_seed(seed, "bucket", 0)).permutation(count)
    assert stream == [prompts[index] for index in order[: len(stream)]]


def test_growing_buckets_begin_where_they_began_in_older_runs():
    # Finished and interrupted runs of the default search replay on the prompts they scored.
    prompts = some_prompts(4096)
    order = np.random.default_rng(derive_seed(0, "bucket", 0)).permutation(4096)
    buckets = Buckets(prompts, 0)
    for generation in range(20):
        size = bucket_size(8, 16, generation, 20)
        expected = order[generation * size : (generation + 1) * size]
        assert buckets.draw(size) == tuple(prompts[index] for index in expected)


def test_the_seed_and_the_sizes_decide():
    prompts = some_prompts(100)
    one, same, other = Buckets(prompts, 7), Buckets(prompts, 7), Buckets(prompts, 8)
    drawn = [one.draw(16) for _ in range(40)]
    assert drawn == [same.draw(16) for _ in range(40)]
    assert len({frozenset(bucket) for bucket in drawn}) == 40
    assert all(other.draw(16) != bucket for bucket in drawn)


def test_buckets_favour_no_prompt():
    # Also where every bucket spans two epochs: each prompt equally often in each place.
    prompts = some_prompts(7)
    places = [Counter[str]() for _ in range(5)]
    for seed in range(300):
        buckets = Buckets(prompts, seed)
        for _ in range(7):
            for place, prompt in zip(places, buckets.draw(5), strict=True):
                place[prompt.id] += 1
    # 2100 draws of probability 1/7: mean 300, standard deviation 16.
    assert all(abs(place[prompt.id] - 300) < 80 for place in places for prompt in prompts)


def test_impossible_buckets_are_refused():
    with pytest.raises(ValueError, match="size >= 1"):
        Buckets(some_prompts(1), 0).draw(0)
    with pytest.raises(PromptError, match="cannot be drawn"):
        Buckets(some_prompts(1), 0).draw(2)

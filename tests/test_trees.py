"""Walks over nested tensors, against leaves taken one by one."""

from collections import namedtuple

import pytest
import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from hypothesis import given, settings
from hypothesis import strategies as st

from calibri.trees import (
    alike,
    floating,
    joined,
    mapped,
    moved,
    parts_of,
    rebuilt,
    repeated,
    shapes,
    size,
    split,
    tensors,
    weighted_sum,
    writes,
)

Pair = namedtuple("Pair", ["one", "two"])
ROWS = 2


def leaves(rows=ROWS):
    return st.one_of(
        st.integers(0, 9).map(lambda n: torch.arange(rows * 3.0).view(rows, 3) + n),
        st.integers(0, 9).map(lambda n: torch.full((rows,), n)),
        st.sampled_from([None, "word", 3]),
    )


def trees(leaf, lists=True):
    def containers(inner):
        kinds = [
            st.tuples(inner, inner),
            st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
            st.builds(Pair, inner, inner),
        ]
        return st.one_of(*kinds, *[st.lists(inner, max_size=3)] * lists)

    return st.recursive(leaf, containers, max_leaves=6)


def flat(value):
    """Leaves and containers of a tree as text, for comparing."""
    if isinstance(value, torch.Tensor):
        return (str(value.dtype), value.tolist())
    if isinstance(value, dict):
        return {name: flat(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return (type(value).__name__, [flat(part) for part in value])
    return value


@given(trees(leaves()))
def test_a_container_is_rebuilt_from_its_parts(tree):
    parts = parts_of(tree)
    if parts is not None:
        again = rebuilt(tree, parts)
        assert type(again) is type(tree)
        assert flat(again) == flat(tree)


@given(trees(leaves()))
def test_mapping_changes_every_tensor_and_nothing_else(tree):
    doubled = mapped(lambda tensor: tensor * 2, tree)
    assert [t.tolist() for t in tensors(doubled)] == [(t * 2).tolist() for t in tensors(tree)]
    assert flat(mapped(lambda tensor: tensor // 2, doubled)) == flat(
        mapped(lambda tensor: tensor * 2 // 2, tree)
    )
    added = mapped(lambda first, second: second - first, tree, doubled)
    assert flat(added) == flat(tree)


@given(trees(leaves()))
def test_figures_of_a_tree_are_those_of_its_tensors(tree):
    found = list(tensors(tree))
    assert shapes(tree) == [tensor.shape for tensor in found]
    assert size(tree) == sum(t.numel() * t.element_size() for t in found)
    assert all(t.dtype == torch.float32 for t in floating(tree))
    assert len(floating(tree)) == sum(t.dtype == torch.float32 for t in found)
    before = writes(tree)
    for tensor in found[:1]:
        tensor.add_(1)
        assert writes(tree) != before


def test_a_tensor_that_is_there_is_not_copied():
    tree = {"a": [torch.ones(2)], "b": "text"}
    there = moved(tree, torch.device("cpu"))
    assert there["a"][0] is tree["a"][0]
    assert moved(tree, torch.device("meta"))["a"][0].device.type == "meta"


def test_outputs_of_diffusers_stay_what_they_are():
    output = Transformer2DModelOutput(sample=torch.ones(4, 1))
    halves = split(output, 2)
    assert [type(half) for half in halves] == [Transformer2DModelOutput] * 2
    total = weighted_sum(halves, torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert isinstance(total, Transformer2DModelOutput)
    assert total.sample.flatten().tolist() == [4.0, 6.0]


@settings(max_examples=60)
@given(trees(leaves(), lists=False), st.integers(1, 3))
def test_splitting_what_was_repeated_gives_it_back(tree, count):
    together = mapped(lambda tensor: repeated(tensor, count, ROWS), tree)
    for one in split(together, count):
        assert flat(one) == flat(tree)


def test_only_what_has_the_rows_is_repeated():
    timestep, other = torch.tensor(5.0), torch.ones(3)
    assert repeated(timestep, 2, ROWS) is timestep
    assert repeated(other, 2, ROWS) is other
    assert repeated(["a", "b"], 2, ROWS) == ["a", "b", "a", "b"]
    assert repeated(["a"], 2, ROWS) == ["a"]
    assert split(["a", "b", "c"] * 2, 2) == [["a", "b", "c"]] * 2


@settings(max_examples=60)
@given(st.lists(st.lists(st.integers(-4, 4), min_size=ROWS, max_size=ROWS), min_size=1, max_size=3))
def test_a_weighted_sum_weights_every_row(weights):
    parts = [torch.arange(ROWS * 3.0).view(ROWS, 3) * (i + 1) for i in range(len(weights))]
    wanted = [
        [
            sum(w[row] * part[row, k].item() for w, part in zip(weights, parts, strict=True))
            for k in (0, 1, 2)
        ]
        for row in range(ROWS)
    ]
    found = weighted_sum([(part, {"x": part}, 7) for part in parts], torch.tensor(weights).float())
    assert found[0].tolist() == found[1]["x"].tolist() == wanted
    assert found[2] == 7


def test_frames_folded_into_the_batch_have_the_weight_of_their_row():
    parts = [torch.ones(4, 1), torch.ones(4, 1)]
    found = weighted_sum(parts, torch.tensor([[1.0, 2.0], [10.0, 20.0]]))
    assert found.flatten().tolist() == [11.0, 11.0, 22.0, 22.0]


def test_outputs_that_are_lists_of_rows_are_weighted_row_by_row():
    rows = [torch.ones(1, 2), torch.ones(1, 3)]
    weights = torch.tensor([[2.0, 3.0], [1.0, -1.0]])
    first, second = weighted_sum([(rows,), (rows,)], weights)[0]
    assert (first.tolist(), second.tolist()) == ([[3.0, 3.0]], [[2.0, 2.0, 2.0]])


def test_half_precision_is_added_in_single():
    first = torch.full((1, 1), 1.0, dtype=torch.bfloat16)
    # 256 + 1 is not a bfloat16: adding in it would lose the one.
    weights = torch.tensor([[256.0], [1.0], [-256.0]])
    assert weighted_sum([first] * 3, weights).item() == 1.0


def test_shorter_prompts_are_padded_behind_with_zeros():
    parts = [{"embeds": torch.ones(1, n, 2), "mask": [torch.ones(n)]} for n in (2, 3)]
    together = joined(parts)
    assert together["embeds"].sum(dim=(1, 2)).tolist() == [4.0, 6.0]
    assert together["embeds"][0, 2].tolist() == [0.0, 0.0]


@pytest.mark.parametrize(("change", "same"), [(1e-3, True), (0.1, False)])
def test_answers_are_alike_but_for_rounding(change, same):
    assert alike((torch.ones(3),), [torch.ones(3) + change]) is same
    assert not alike(torch.ones(3), torch.ones(4))

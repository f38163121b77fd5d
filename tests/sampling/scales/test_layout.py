"""Which image and branch the rows of a forward belong to."""

import pytest
import torch

from calibri.errors import GuidanceError
from calibri.pipelines.calls import Call
from calibri.sampling.scales.layout import RowLayout


def call(rows):
    return Call((torch.ones(1),), {"hidden_states": torch.ones(rows, 3)})


def test_the_resolver_is_told_every_argument():
    seen = []
    layout = RowLayout(None, False, lambda arguments: seen.append(arguments) or (1, 0))
    assert layout.branches(call(2)) == (1, 0)
    assert sorted(seen[0]) == ["0", "hidden_states"]


def test_a_transformer_of_one_branch_needs_no_resolver():
    assert RowLayout(1, False, None).branches(call(2)) == (1,)
    with pytest.raises(GuidanceError, match="which rows are conditional"):
        RowLayout(None, False, None).branches(call(2))


@pytest.mark.parametrize(("rows", "scaled", "branches", "images"), [(4, 2, 2, 2), (6, 1, 2, 3)])
def test_images_are_counted(rows, scaled, branches, images):
    assert RowLayout(None, False, None).images(call(rows), scaled, branches) == images


def test_other_images_than_were_scaled_are_refused():
    layout = RowLayout(None, False, None)
    with pytest.raises(GuidanceError, match="batch of 4 rows for 3 images in 2 branches"):
        layout.images(call(4), 3, 2)


def test_a_packed_sequence_is_one_row():
    assert RowLayout(None, True, None).images(call(7), 1, 1) == 1

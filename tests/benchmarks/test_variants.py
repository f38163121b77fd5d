import numpy as np
import pytest
from benchmarks.variants import (
    budget_of,
    config_of,
    difference,
    scores,
    search,
    smooth_in_depth,
    waves,
)

from calibri.planning.procedures import images_by_phase
from calibri.runs.basis import search_basis
from calibri.runs.session import Session

TINY = {
    "seed": 3,
    "sampling.num_inference_steps": 4,
    "sampling.workers": 1,
    "rewards.held_out": ("shapes-judge",),
    "search.generations": 2,
    "search.popsize": 4,
    "search.bucket_size": 2,
    "search.num_validation_prompts": 5,
    "evaluation.num_prompts": 3,
}


@pytest.mark.parametrize("count", [1, 2, 6])
def test_waves_are_orthogonal_and_as_long_in_all_as_single_steps(count):
    found = waves(count)
    products = found.T @ found
    np.testing.assert_allclose(products, np.diag(np.diag(products)), atol=1e-12)
    assert np.trace(products) == pytest.approx(count)
    assert (np.diff(np.diag(products)) < 0).all()
    assert np.ptp(found[:, 0]) == pytest.approx(0)  # all depths alike


def test_a_smooth_basis_mixes_one_kind_of_site_over_the_depth():
    space = Session(config_of(TINY)).space
    plain, basis = search_basis(space), smooth_in_depth(space)
    assert np.linalg.matrix_rank(basis) == space.size
    mixed = [space.labels[i] for i in np.flatnonzero(basis[0])]
    assert mixed == [f"transformer_blocks.{block}.attn[0]" for block in range(6)]
    assert basis[-1, -1] == plain[-1, -1]


def test_generations_are_as_many_as_images_pay_for():
    def images(config):
        return images_by_phase(config, 23)["search"]

    budget = budget_of(TINY)
    assert budget == images(config_of(TINY))
    longer = config_of(TINY, 3 * budget)
    assert longer.search.generations > 2
    assert images(longer) <= 3 * budget
    more = longer.search.model_copy(update={"generations": longer.search.generations + 1})
    assert images(longer.model_copy(update={"search": more})) > 3 * budget


@pytest.mark.end_to_end
@pytest.mark.parametrize("variant", ["blocks, then gates", "images at cache interval 2"])
def test_a_variant_is_scored_beside_the_original(variant):
    tables = scores(variant, TINY)
    assert np.shape(tables["shapes"]) == (3, 3)
    assert tables["shapes"][0] != tables["shapes"][2]


def test_differences_pool_seeds():
    runs = [{"r": [[0, 0], [1, 2], [5, 5]]}, {"r": [[0, 0], [3, 4], [5, 5]]}]
    others = [{"r": [[0, 0], [1, 1], [5, 5]]}, {"r": [[0, 0], [1, 1], [4, 4]]}]
    assert difference(runs, others, "r", 1).mean == pytest.approx(1.5)
    assert difference(runs, others, "r", 2).mean == pytest.approx(0.5)


@pytest.mark.end_to_end
def test_the_basis_decides_what_is_found():
    config = config_of(TINY)
    assert search(config) == search(config)
    assert search(config) != search(config, smooth_in_depth)

import numpy as np
import pytest
import torch

from calibri.search.adam import AdamSearch
from calibri.search.method import Setup

WIDE = np.tile([-10.0, 10.0], (5, 1))


def gradients(count, size=5, seed=0):
    return np.random.default_rng(seed).normal(size=(count, size)) * np.logspace(-3, 2, size)


def make(start, basis=None, bounds=None, rate=0.05, **options):
    size = len(start)
    return AdamSearch(
        Setup(
            start=np.asarray(start, dtype=float),
            basis=np.eye(size) if basis is None else basis,
            bounds=WIDE[:size] if bounds is None else bounds,
            seed=0,
            popsize=4,
            sigma0=0.0,
            learning_rate=rate,
            tail=1.0,
        ),
        **options,
    )


def tell(search, gradient):
    search.tell(search.ask(), np.asarray(gradient)[None])


@pytest.mark.parametrize("clipped", [False, True])
@pytest.mark.parametrize("momentum", [0.5, 0.9])
def test_every_step_is_that_of_torch_where_lengths_are_alike(momentum, clipped):
    search = make(np.ones(5), momentum=momentum, clipped=clipped)
    tensor = torch.ones(5, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([tensor], lr=0.05, betas=(momentum, 0.999), maximize=True)
    for step, rows in enumerate(gradients(120).reshape(40, 3, 5), 1):
        if clipped:
            rows *= 2 / np.linalg.norm(rows, axis=1, keepdims=True)
        search.tell(search.ask(), rows)
        tensor.grad = torch.from_numpy(rows.mean(axis=0))
        adam.step()
        np.testing.assert_allclose(search.mean, tensor.detach().numpy(), rtol=1e-9)
        assert search.generation == step


@pytest.mark.parametrize("factor", [1.0, 1e3, 1e12])
def test_an_image_counts_no_more_however_long_its_gradient_is(factor):
    rows = np.random.default_rng(2).normal(size=(7, 5))
    rows[np.argsort(np.linalg.norm(rows, axis=1))[4:]] *= 1e3
    ours, theirs = make(np.ones(5), clipped=True), make(np.ones(5), clipped=True)
    ours.tell(ours.ask(), rows)
    rows[np.argsort(np.linalg.norm(rows, axis=1))[4:]] *= factor
    theirs.tell(theirs.ask(), rows)
    np.testing.assert_allclose(ours.mean, theirs.mean, rtol=1e-9)


def test_one_long_gradient_after_short_ones_turns_a_search_little():
    search = make(np.zeros(2), momentum=0.5, clipped=True)
    for _ in range(50):
        tell(search, [1.0, 1e-3])
    before = search.mean
    tell(search, [-1e6, 0.0])
    # It counts as a few of those before would, not as a million.
    assert search.mean[0] - before[0] > -0.1
    for _ in range(5):
        tell(search, [1.0, 1e-3])
    assert search.mean[0] > before[0]


def test_images_without_a_gradient_do_not_silence_the_others():
    search = make(np.ones(2), clipped=True)
    for _ in range(3):
        search.tell(search.ask(), np.array([[0.0, 0.0]] * 9 + [[1.0, -2.0]]))
    np.testing.assert_allclose(search.mean, [1.15, 0.85], rtol=1e-6)
    search.tell(search.ask(), np.zeros((4, 2)))
    assert np.isfinite(search.mean).all()


def test_the_first_step_has_the_length_of_the_rate_along_every_column():
    basis = np.array([[3.0, 3.0], [-2.0, -3.0]])
    search = make([3.0, -2.0], basis)
    gradient = np.array([1.0, 0.4])
    tell(search, gradient)
    inner = np.linalg.solve(basis, search.mean - [3.0, -2.0])
    np.testing.assert_allclose(inner, 0.05 * np.sign(basis.T @ gradient), rtol=1e-6)


def test_a_basis_is_a_change_of_variables():
    basis = np.random.default_rng(1).normal(size=(5, 5))
    inside, outside = make(np.zeros(5)), make(np.zeros(5), basis)
    for gradient in gradients(20):
        tell(outside, gradient)
        tell(inside, basis.T @ gradient)
    np.testing.assert_allclose(outside.mean, basis @ inside.mean, rtol=1e-9)


def test_it_climbs_to_the_top_and_stays_within_its_bounds():
    top = np.array([0.5, -0.3, 4.0])
    search = make(np.zeros(3), bounds=np.tile([-1.0, 1.0], (3, 1)))
    for _ in range(400):
        tell(search, 2 * (top - search.mean))
    np.testing.assert_allclose(search.mean, [0.5, -0.3, 1.0], atol=0.02)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite_is_refused_and_moves_nothing(bad):
    search = make(np.ones(2))
    with pytest.raises(ValueError, match="finite"):
        tell(search, [1.0, bad])
    assert np.array_equal(search.mean, np.ones(2))
    assert search.generation == 0


@pytest.mark.parametrize("shape", [(2,), (0, 2), (1, 3), (1, 2, 2)])
def test_it_is_told_gradients_of_images(shape):
    search = make(np.ones(2))
    with pytest.raises(ValueError, match="one candidate and gradients of 2 numbers"):
        search.tell(search.ask(), np.zeros(shape))

import numpy as np
import pytest
import torch

from calibri.search.adam import AdamSearch
from calibri.search.method import Setup

WIDE = np.tile([-10.0, 10.0], (5, 1))


def gradients(count, size=5, seed=0):
    return np.random.default_rng(seed).normal(size=(count, size)) * np.logspace(-3, 2, size)


def make(start, basis=None, bounds=None, rate=0.05):
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
        )
    )


def tell(search, gradient):
    search.tell(search.ask(), np.asarray(gradient)[None])


def test_every_step_is_that_of_torch():
    search = make(np.ones(5))
    tensor = torch.ones(5, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([tensor], lr=0.05, maximize=True)
    for step, gradient in enumerate(gradients(40), 1):
        tell(search, gradient)
        tensor.grad = torch.from_numpy(gradient)
        adam.step()
        np.testing.assert_allclose(search.mean, tensor.detach().numpy(), rtol=1e-10)
        assert search.generation == step


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


@pytest.mark.parametrize("shape", [(2,), (2, 2), (1, 3)])
def test_it_is_told_one_gradient(shape):
    search = make(np.ones(2))
    with pytest.raises(ValueError, match="one candidate and its gradient of 2 numbers"):
        search.tell(search.ask(), np.zeros(shape))

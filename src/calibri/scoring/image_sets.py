"""Numbers about a set of images rather than about one image and its prompt."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def diversity(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Mean RMS distance of each image to the other images of its prompt.

    Args:
        images: uint8 (N, 3, H, W).
        prompts: N texts; images of one prompt form a group.

    Returns:
        float32 (N,) in [0, 1]; 0 for a prompt with a single image. The mean over a group is its
        mean pairwise distance.
    """
    return diversity_float(images.float() / 255, prompts)


def diversity_float(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """``diversity`` of float images in [0, 1], with a gradient."""
    pixels = images.flatten(1)
    distances = torch.zeros(len(prompts))
    for prompt in set(prompts):
        rows = [i for i, other in enumerate(prompts) if other == prompt]
        if len(rows) > 1:
            group = pixels[rows]
            rms = torch.cdist(group, group) / group.shape[1] ** 0.5
            distances[rows] = rms.sum(dim=1) / (len(rows) - 1)
    return distances


def feature_diversity(features: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean RMS distance between the features of a prompt's images.

    Args:
        features: (prompts, images of each, D), at least two images.

    Returns:
        (prompts,), at least 0, in units of the features.
    """
    count, size = features.shape[1:]
    gaps = features[:, :, None] - features[:, None]
    distances = np.sqrt((gaps**2).sum(axis=-1) / size)
    return np.asarray(distances.sum(axis=(1, 2)) / (count * (count - 1)))


def frechet_influence(
    a: NDArray[np.float64], b: NDArray[np.float64]
) -> tuple[float, NDArray[np.float64]]:
    """Frechet distance, and how much each image of the first set adds to it.

    To first order the distance of a resampled set is the distance plus the mean of the influences
    of its images (infinitesimal jackknife: Efron 1982, *The Jackknife, the Bootstrap and Other
    Resampling Plans*, chapter 6), so that two sets of the same prompts can be compared in pairs
    without a matrix root for each resample.

    Args:
        a: features of one set, (N, D), N > 1.
        b: features of the other, (M, D).

    Returns:
        The distance, and the influences, (N,), of mean 0.
    """
    centred = a - a.mean(axis=0)
    cov_a = centred.T @ centred / len(a)
    # The gradient of tr (A B)^{1/2} in A is T / 2, with T the optimal map of N(0, A) to N(0, B),
    # which satisfies T A T = B (Olkin and Pukelsheim 1982).
    root, inverse = _roots(cov_a)
    middle, _ = _roots(root @ np.cov(b, rowvar=False) @ root)
    gradient = np.eye(len(cov_a)) - inverse @ middle @ inverse
    squared = np.einsum("nd,de,ne->n", centred, gradient, centred)
    influence = 2 * centred @ (a.mean(axis=0) - b.mean(axis=0)) + squared - squared.mean()
    return frechet_distance(a, b), influence


def _roots(matrix: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Root of a symmetric, positive semidefinite matrix, and the root's pseudo-inverse."""
    values, vectors = np.linalg.eigh(matrix)
    values = values.clip(min=0)
    roots = np.sqrt(values)
    kept = values > values.max() * len(values) * np.finfo(np.float64).eps
    inverses = np.where(kept, 1 / np.where(kept, roots, 1.0), 0.0)
    return (vectors * roots) @ vectors.T, (vectors * inverses) @ vectors.T


def frechet_distance(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Frechet distance between two Gaussians fitted to features (Heusel et al. 2017).

    Args:
        a: features of one set, (N, D), N > 1.
        b: features of the other, (M, D).

    Returns:
        ``|mean difference|^2 + tr(A + B - 2 (A B)^{1/2})``, at least 0.
    """
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    # tr (A B)^{1/2} = sum of the square roots of the eigenvalues of A B, which are real and >= 0.
    eigenvalues = np.linalg.eigvals(cov_a @ cov_b).real.clip(min=0)
    gap = a.mean(axis=0) - b.mean(axis=0)
    total = gap @ gap + np.trace(cov_a) + np.trace(cov_b) - 2 * np.sqrt(eigenvalues).sum()
    return float(max(total, 0.0))

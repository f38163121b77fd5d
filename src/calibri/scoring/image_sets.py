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
    pixels = images.float().flatten(1) / 255
    distances = torch.zeros(len(prompts))
    for prompt in set(prompts):
        rows = [i for i, other in enumerate(prompts) if other == prompt]
        if len(rows) > 1:
            group = pixels[rows]
            rms = torch.cdist(group, group) / group.shape[1] ** 0.5
            distances[rows] = rms.sum(dim=1) / (len(rows) - 1)
    return distances


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

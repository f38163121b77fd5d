import numpy as np
import pytest
import torch

from calibri.scoring.image_sets import diversity, frechet_distance


def test_diversity_is_the_mean_pairwise_rms_distance():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (6, 3, 4, 4), generator=generator, dtype=torch.uint8)
    prompts = ["a", "b", "a", "a", "b", "alone"]
    for prompt in ("a", "b"):
        rows = [i for i, p in enumerate(prompts) if p == prompt]
        pairs = [
            (((images[i].double() - images[j].double()) / 255) ** 2).mean().sqrt()
            for i in rows
            for j in rows
            if i < j
        ]
        ours = diversity(images, prompts)[rows].mean()
        assert ours == pytest.approx(float(torch.stack(pairs).mean()), rel=1e-3)
    assert diversity(images, prompts)[5] == 0


def test_equal_images_have_no_diversity():
    assert diversity(torch.full((3, 3, 2, 2), 9, dtype=torch.uint8), ["a"] * 3).sum() == 0


def test_frechet_of_diagonal_gaussians_has_a_closed_form():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(40_000, 3)) * [1.0, 2.0, 3.0]
    b = rng.normal(size=(40_000, 3)) * [2.0, 2.0, 1.0] + [1.0, 0.0, 0.0]
    # |m|^2 + sum (sigma_a - sigma_b)^2
    assert frechet_distance(a, b) == pytest.approx(1 + 1 + 0 + 4, rel=0.05)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-6)

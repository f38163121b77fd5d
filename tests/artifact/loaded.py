"""What loaded calibrations are tested with."""

import torch

from calibri.coefficients.space import SearchSpace
from calibri.pipelines.sites.find import find_sites
from tests.tiny import scaled_calibration


def sample(pipe, guidance_scale=1.0, count=1):
    return pipe(
        "a red circle above a blue square",
        num_inference_steps=3,
        guidance_scale=guidance_scale,
        num_images_per_prompt=count,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
    ).images


def ensemble(pipe):
    space = SearchSpace.build(find_sites(pipe.transformer), "gate", members=2)
    vector = space.start.copy()
    vector[:10] = 1.2
    vector[-2:] = [1.4, -0.4]
    vector[30] = 0.0
    return scaled_calibration(pipe).model_copy(update={"coefficients": space.coefficients(vector)})

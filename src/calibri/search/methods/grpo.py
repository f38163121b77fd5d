"""Adam along the policy gradient of a sampler whose steps are random: Flow-GRPO on the vector.

The supplement of the paper (figure 3) sets it against CMA-ES. It needs no differentiable reward:
the gradient is that of how likely the sampler was to go the way of better images
(``scoring.policy``).
"""

from __future__ import annotations

from calibri.search.method import MethodInfo
from calibri.search.methods.gradient import TailAveragedAdam

GROUP_SIZE = 24  # images of a prompt, as published


def _group_size(dimension: int) -> int:
    return GROUP_SIZE


# The candidates of a generation are the images of a prompt: one update on popsize x bucket images,
# and none of them is left out of a part of the bucket. Published runs have 48 prompts an update of
# two halves, more than a small search has images for.
INFO = MethodInfo(
    "grpo",
    TailAveragedAdam,
    popsize=_group_size,
    defaults={"race_keep": 1.0},
    uses_gradients=True,
    by_policy=True,
)

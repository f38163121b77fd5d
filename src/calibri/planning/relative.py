"""What a cheaper image costs beside one at full fidelity, on any pipeline.

``flops`` counts operations, of the families whose inputs are known. This counts the tokens that a
transformer sees, which every loaded pipeline tells, and leaves out that attention grows faster than
they do: FLUX.1-dev at 448 instead of 512 pixels costs 0.84 here and 0.83 in FLOPs. What is chosen
for a search is chosen by this one, so that pipelines are treated alike.
"""

from __future__ import annotations

from collections.abc import Callable

from calibri.results import FULL, Fidelity


def image_tokens(height: int, width: int, latent: int) -> float:
    """Count the tokens of an image: latents are packed two by two.

    Args:
        height: in pixels.
        width: in pixels.
        latent: pixels that one latent is wide.
    """
    return height * width / (2 * latent) ** 2


def relative_cost(
    fidelity: Fidelity, num_inference_steps: int, tokens: Callable[[Fidelity], float | None]
) -> float:
    """Count what an image costs in units of one at full fidelity.

    Args:
        fidelity: of the image.
        num_inference_steps: of the full fidelity.
        tokens: that the transformer sees of image and text together; None where not known.

    Returns:
        Evaluations of the transformer times the tokens that it sees; evaluations alone where these
        are not known.
    """
    share = fidelity.evaluations(num_inference_steps) / num_inference_steps
    before, after = tokens(FULL), tokens(fidelity)
    return share * after / before if before and after else share

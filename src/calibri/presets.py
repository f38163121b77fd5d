"""Known guidance as coefficients of an ensemble: settings to use, or to start a search from.

Skip Layer Guidance adds ``g * (f - f_skip)`` to the prediction, where f_skip leaves some blocks
out: a weaker model that the prediction is pushed away from, and so a training-free Autoguidance. In
the ensemble of spec section 2 it is a further member of the prompt, with scales 0 in those blocks
and the output weight -g.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from calibri.coefficients import Coefficients, Granularity, parameter_names
from calibri.errors import ConfigError
from calibri.sites import find_sites


@dataclass(frozen=True)
class Preset:
    """A named setting.

    Attributes:
        description: what it is and where it comes from.
        transformer_class: the model it is for, or None for any.
        blocks: indices of the blocks that the further member leaves out; None for the middle one.
        scale: g.
    """

    description: str
    transformer_class: str | None
    blocks: tuple[int, ...] | None
    scale: float


PRESETS: dict[str, Preset] = {
    "sd3.5-medium-skip-layers": Preset(
        "Skip Layer Guidance of Stable Diffusion 3.5 Medium with the blocks and the scale that "
        "diffusers recommends, at every step.",
        "SD3Transformer2DModel",
        (7, 8, 9),
        2.8,
    ),
    "skip-middle-block": Preset(
        "Guidance away from the model without its middle block; a start for a search on any model.",
        None,
        None,
        1.0,
    ),
}


def skip_layer_guidance(
    transformer: nn.Module,
    blocks: Sequence[int],
    *,
    scale: float,
    guidance_scale: float = 1.0,
    granularity: Granularity = "block",
) -> Coefficients:
    """Express Skip Layer Guidance as coefficients.

    Args:
        transformer: a model whose sites are known.
        blocks: indices of the blocks to leave out, in the order of the model.
        scale: g, diffusers' ``skip_layer_guidance_scale``.
        guidance_scale: w of classifier-free guidance beside it; at most 1 means none.
        granularity: how sites share a scalar.

    Returns:
        Without classifier-free guidance the output weights (1 + g, -g) of two members of the
        prompt; with it (w + g, 1 - w, -g) of the prompt, the negative prompt and the prompt again.

    Raises:
        ConfigError: the model has no such block.
    """
    sites = find_sites(transformer)
    paths = list(dict.fromkeys(site.block for site in sites))
    if wrong := [index for index in blocks if not 0 <= index < len(paths)]:
        raise ConfigError(
            f"{type(transformer).__name__} has {len(paths)} blocks, from 0; it has no block "
            f"{wrong[0]}."
        )
    left_out = {paths[index] for index in blocks}
    skipped = parameter_names((s for s in sites if s.block in left_out), granularity)
    full = dict.fromkeys(parameter_names(sites, granularity), 1.0)
    weaker = full | dict.fromkeys(skipped, 0.0)
    if guidance_scale > 1.0:
        return Coefficients(
            granularity=granularity,
            scales=(full, dict(full), weaker),
            output_weights=(guidance_scale + scale, 1.0 - guidance_scale, -scale),
            start_weights=(guidance_scale, 1.0 - guidance_scale, 0.0),
            branches=("conditional", "unconditional", "conditional"),
        )
    return Coefficients(
        granularity=granularity,
        scales=(full, weaker),
        output_weights=(1.0 + scale, -scale),
        start_weights=(1.0, 0.0),
        branches=("conditional", "conditional"),
    )


def preset(
    name: str,
    transformer: nn.Module,
    *,
    guidance_scale: float = 1.0,
    granularity: Granularity = "block",
) -> Coefficients:
    """Make the coefficients of a named preset.

    Args:
        name: one of ``PRESETS``.
        transformer: the model to use it on.
        guidance_scale: w of classifier-free guidance beside it; at most 1 means none.
        granularity: how sites share a scalar.

    Raises:
        ConfigError: there is no such preset, or it is for another model.
    """
    found = PRESETS.get(name)
    if found is None:
        raise ConfigError(f"There is no preset '{name}'. There are {', '.join(PRESETS)}.")
    kind = type(transformer).__name__
    if found.transformer_class not in (None, kind):
        raise ConfigError(
            f"The preset '{name}' is for {found.transformer_class}; this model is a {kind}."
        )
    count = len({site.block for site in find_sites(transformer)})
    return skip_layer_guidance(
        transformer,
        (count // 2,) if found.blocks is None else found.blocks,
        scale=found.scale,
        guidance_scale=guidance_scale,
        granularity=granularity,
    )

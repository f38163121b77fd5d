"""Known guidance as coefficients of an ensemble: settings to use, or to start a search from.

They push the prediction away from that of a weaker model, which is the same model without some of
its blocks: a member of the ensemble of spec section 2 whose scales are 0 in those blocks.

* Skip Layer Guidance adds ``g * (f - f_weaker)``: the weaker member sees the prompt and has the
  output weight -g. Spatiotemporal Guidance (arXiv 2411.18664) does the same in its variant that
  skips residuals. Its other variant, like Perturbed-Attention Guidance, puts the values in place of
  the attention, which no scale of an output can do.
* Autoguidance (arXiv 2406.02507) as diffusers has it gives the weaker member the negative prompt:
  ``u_weaker + w * (f - u_weaker)``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from calibri.coefficients.coefficients import BRANCHES, Coefficients, Member
from calibri.config import Granularity
from calibri.errors import ConfigError
from calibri.pipelines import (
    Network,
    PipelineOrTransformer,
    Schedule,
    Site,
    networks_of,
    parameter_names,
    sites_of,
)
from calibri.signatures import typed

# Most of diffusers' schedulers count timesteps from 1000, the noise.
_FLOW = Schedule.flow()
_MAX_KNOTS = 2000


@dataclass(frozen=True)
class Preset:
    """A named setting.

    Attributes:
        description: what it is and where it comes from.
        transformer_class: the model it is for, or None for any.
        blocks: indices of the blocks that the weaker member leaves out; None for the middle one.
        scale: g; None when the weaker member sees the negative prompt.
    """

    description: str
    transformer_class: str | None
    blocks: tuple[int, ...] | None
    scale: float | None


PRESETS: dict[str, Preset] = {
    "skip-layer-guidance": Preset(
        "Skip Layer Guidance with the scale of diffusers' SkipLayerGuidance.", None, None, 2.8
    ),
    "spatiotemporal-guidance": Preset(
        "Spatiotemporal Guidance that skips residuals, with the scale of diffusers' LTX-2 "
        "pipeline.",
        None,
        None,
        1.0,
    ),
    "autoguidance": Preset(
        "Autoguidance by leaving out blocks, as diffusers' AutoGuidance does.", None, None, None
    ),
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


@dataclass(frozen=True)
class Window:
    """The steps at which a guidance acts: those i with ``start < i / steps < stop``.

    Attributes:
        timesteps: of every step of the sampling, as the scheduler lists them:
            ``pipe.scheduler.timesteps`` after ``pipe.scheduler.set_timesteps(steps)``, or after an
            image of a pipeline that shifts them by the size of the image.
        start: diffusers' ``skip_layer_guidance_start``.
        stop: diffusers' ``skip_layer_guidance_stop``.
    """

    timesteps: Sequence[float]
    start: float = 0.01
    stop: float = 0.2

    def knots(self, schedule: Schedule = _FLOW) -> list[bool]:
        """Say for every knot whether the guidance acts there, with as few knots as there can be.

        Scales are linear between knots. So that they are whole at every step, both neighbours of a
        step agree.

        Args:
            schedule: where the timesteps of the scheduler begin and end.

        Raises:
            ConfigError: there are no timesteps, too many to be told apart, or others than the
                schedule has.
        """
        steps = len(self.timesteps)
        acts = [self.start * steps < i < self.stop * steps for i in range(steps)]
        places = [schedule.position(float(timestep)) for timestep in self.timesteps]
        if places and not -1e-6 <= min(places) <= max(places) <= 1 + 1e-6:
            raise ConfigError(
                f"Timesteps of this scheduler go from {schedule.noise:g}, the noise, to "
                f"{schedule.image:g}; got {self.timesteps[0]:g} to {self.timesteps[-1]:g}. Pass "
                "those of the scheduler."
            )
        for count in range(2, _MAX_KNOTS):
            found = _agreeing(places, acts, count)
            if found is not None:
                return found
        raise ConfigError(
            f"{_MAX_KNOTS} knots cannot tell these {steps} timesteps apart. Pass those of the "
            "scheduler, from the noise to the image."
        )


def _agreeing(places: Sequence[float], acts: Sequence[bool], count: int) -> list[bool] | None:
    """Give each of ``count`` knots the state of the steps beside it, if they agree."""
    states: dict[int, bool] = {}
    for place, state in zip(places, acts, strict=True):
        at = place * (count - 1)
        # A little more than rounding, so that no step has a trace of a knot beyond its neighbours.
        first, last = max(0, math.floor(at - 1e-3)), min(count - 1, math.ceil(at + 1e-3))
        for knot in range(first, last + 1):
            if states.setdefault(knot, state) != state:
                return None
    return [states.get(knot, False) for knot in range(count)]


def skip_layer_guidance(
    pipe: PipelineOrTransformer,
    blocks: Sequence[int],
    *,
    scale: float,
    guidance_scale: float = 1.0,
    granularity: Granularity = "block",
    window: Window | None = None,
) -> Coefficients:
    """Express Skip Layer Guidance as coefficients.

    Args:
        pipe: a pipeline, or a bare transformer, whose sites are known.
        blocks: indices of the blocks to leave out, in the order of the model; of each model where
            the pipeline has two.
        scale: g, diffusers' ``skip_layer_guidance_scale``.
        guidance_scale: w of classifier-free guidance beside it; at most 1 means none.
        granularity: how sites share a scalar.
        window: steps at which it acts; None for all. Outside them the weaker member is the model
            itself, so it costs as much as inside.

    Returns:
        Without classifier-free guidance the output weights (1 + g, -g) of two members of the
        prompt; with it (w + g, 1 - w, -g) of the prompt, the negative prompt and the prompt again.

    Raises:
        ConfigError: the model has no such block, or the window cannot be expressed.
        UnsupportedModelError: there is a window, and the timesteps of the model are not known.
    """
    networks = networks_of(pipe)
    full, weaker = _full_and_weaker(networks, blocks, granularity)
    acts = [True] if window is None else window.knots(networks[0].schedule)
    whole, path = (full,) * len(acts), tuple(weaker if inside else full for inside in acts)
    guided = guidance_scale > 1.0
    w, u = (guidance_scale, 1.0 - guidance_scale) if guided else (1.0, 0.0)
    unconditional = Member("unconditional", u, (u,), whole)
    members = (
        Member("conditional", w, (w + scale,), whole),
        *[unconditional] * guided,
        Member("conditional", 0.0, (-scale,), path),
    )
    return Coefficients.from_members(members, granularity)


def autoguidance(
    pipe: PipelineOrTransformer,
    blocks: Sequence[int],
    *,
    guidance_scale: float,
    granularity: Granularity = "block",
) -> Coefficients:
    """Express diffusers' AutoGuidance as coefficients.

    Args:
        pipe: see ``skip_layer_guidance``.
        blocks: indices of the blocks that the negative prompt's member leaves out.
        guidance_scale: w, which the pipeline must be called with.
        granularity: how sites share a scalar.

    Returns:
        The output weights (w, 1 - w) of the prompt and the negative prompt, each with its scales.

    Raises:
        ConfigError: the model has no such block, or the pipeline has no negative branch at this w.
    """
    if guidance_scale <= 1.0:
        raise ConfigError(
            f"Autoguidance acts on the branch of the negative prompt, and at guidance_scale "
            f"{guidance_scale} there is none. Set it above 1."
        )
    weights = (guidance_scale, 1.0 - guidance_scale)
    scales = _full_and_weaker(networks_of(pipe), blocks, granularity)
    members = [
        Member(branch, weight, (weight,), (own,))
        for branch, weight, own in zip(BRANCHES, weights, scales, strict=True)
    ]
    return Coefficients.from_members(members, granularity)


_Scales = dict[str, float]


def _full_and_weaker(
    networks: Sequence[Network], blocks: Sequence[int], granularity: Granularity
) -> tuple[_Scales, _Scales]:
    sites = sites_of(networks)
    left_out = {path for network in networks for path in _paths(network.sites, blocks)}
    skipped = parameter_names((s for s in sites if s.block in left_out), granularity)
    full = dict.fromkeys(parameter_names(sites, granularity), 1.0)
    return full, full | dict.fromkeys(skipped, 0.0)


def _paths(sites: Sequence[Site], blocks: Sequence[int]) -> list[str]:
    paths = list(dict.fromkeys(site.block for site in sites))
    if wrong := [index for index in blocks if not 0 <= index < len(paths)]:
        raise ConfigError(
            f"The transformer has {len(paths)} blocks, from 0; it has no block {wrong[0]}."
        )
    return [paths[index] for index in blocks]


@typed
def preset(
    name: str,
    pipe: PipelineOrTransformer,
    *,
    blocks: Sequence[int] | None = None,
    scale: float | None = None,
    guidance_scale: float = 1.0,
    granularity: Granularity = "block",
    window: Window | None = None,
) -> Coefficients:
    """Make the coefficients of a named preset, which ``calibri.load`` takes.

    Args:
        name: one of ``PRESETS``.
        pipe: the pipeline, or the bare transformer, to use it on.
        blocks: other blocks to leave out than the preset's, see ``skip_layer_guidance``.
        scale: another g.
        guidance_scale: w of classifier-free guidance beside it, which the pipeline is called with;
            at most 1 means none.
        granularity: how sites share a scalar.
        window: steps at which it acts; None for all.

    Raises:
        ConfigError: there is no such preset, it is for another model, or an argument does not fit.
    """
    found = PRESETS.get(name)
    if found is None:
        raise ConfigError(f"There is no preset '{name}'. There are {', '.join(PRESETS)}.")
    first = networks_of(pipe)[0]
    kind = type(first.transformer).__name__
    if found.transformer_class not in (None, kind):
        raise ConfigError(
            f"The preset '{name}' is for {found.transformer_class}; this model is a {kind}."
        )
    middle = len({site.block for site in first.sites}) // 2
    chosen = blocks or found.blocks or (middle,)
    if found.scale is not None:
        return skip_layer_guidance(
            pipe,
            chosen,
            scale=found.scale if scale is None else scale,
            guidance_scale=guidance_scale,
            granularity=granularity,
            window=window,
        )
    if scale is not None or window is not None:
        raise ConfigError(
            f"The scale of '{name}' is guidance_scale, and it acts at every step. Leave out scale "
            "and window."
        )
    return autoguidance(pipe, chosen, guidance_scale=guidance_scale, granularity=granularity)

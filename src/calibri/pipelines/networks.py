"""The transformers of a pipeline, where it has more than one, and the sites of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeAlias, cast

from torch import nn

from calibri.errors import UnsupportedModelError
from calibri.pipelines.families.family import Family
from calibri.pipelines.families.lookup import family_of
from calibri.pipelines.families.timesteps import Schedule
from calibri.pipelines.pipeline import Pipeline, PipelineOrTransformer
from calibri.pipelines.sites.find import find_output_sites, find_sites
from calibri.pipelines.sites.site import Site
from calibri.pipelines.trajectory import Trajectory, knows_timesteps, schedule_of, trajectory_of

# What pipelines call their transformers, the one that bears the plain names first.
TRANSFORMERS = ("transformer", "transformer_2", "unconditional_transformer")
# Branch of guidance of each where there is one for each branch.
_BRANCHES = {"transformer": 0, "unconditional_transformer": 1}


@dataclass(frozen=True, eq=False)
class Network:
    """One transformer of a pipeline.

    Attributes:
        transformer: the model.
        name: what the names of its sites begin with: nothing for the ``transformer`` of a pipeline,
            ``"transformer_2"`` or the like for another.
        branch: the only branch of guidance that the pipeline runs it for, 0 the conditional, 1 the
            unconditional; None when it is run for all of them.
        scheduler: of the pipeline; None for a bare transformer.
    """

    transformer: nn.Module
    name: str = ""
    branch: int | None = None
    scheduler: Any = None

    @property
    def sites(self) -> tuple[Site, ...]:
        """The residual-branch sites, by the names they have in the pipeline."""
        return tuple(map(self._named, find_sites(self.transformer)))

    @property
    def outputs(self) -> tuple[Site, ...]:
        """The final linears, by the names they have in the pipeline."""
        return tuple(map(self._named, find_output_sites(self.transformer)))

    @property
    def schedule(self) -> Schedule:
        """Where the timesteps of the scheduler begin and end.

        Raises:
            UnsupportedModelError: that is not known, see ``schedule_of``.
        """
        return schedule_of(self.transformer, self.scheduler)

    @property
    def family(self) -> Family:
        """What is known of its class."""
        return family_of(self.transformer)

    @property
    def embeds_guidance(self) -> bool:
        """Whether it is distilled to take its guidance as an input."""
        return bool(getattr(getattr(self.transformer, "config", None), "guidance_embeds", False))

    @property
    def knows_timesteps(self) -> bool:
        """Whether its scales can change over the sampling steps; see ``schedule_of``."""
        return knows_timesteps(self.transformer, self.scheduler)

    @cached_property
    def trajectory(self) -> Trajectory:
        """The timesteps it is called with.

        Raises:
            UnsupportedModelError: they are not known, see ``trajectory_of``.
        """
        return trajectory_of(self.transformer, self.scheduler)

    def _named(self, site: Site) -> Site:
        return replace(
            site,
            path=self.path(site.path),
            block=self.path(site.block) if site.block else "",
            fold=tuple(replace(fold, path=self.path(fold.path)) for fold in site.fold),
        )

    def path(self, inner: str) -> str:
        """Name what has the path ``inner`` in the transformer."""
        return f"{self.name}.{inner}" if self.name else inner


Model: TypeAlias = PipelineOrTransformer | Sequence[Network]


def sites_of(model: Model) -> tuple[Site, ...]:
    """List the residual-branch sites of all networks, in their order.

    Args:
        model: see ``networks_of``.

    Raises:
        UnsupportedModelError: there are no networks, or the blocks of one of them are not known.
    """
    return tuple(site for network in networks_of(model) for site in network.sites)


def _plain(model: nn.Module) -> nn.Module:
    """Look into what ``torch.compile(model)`` returns: the model itself, which it runs."""
    inner: nn.Module = getattr(model, "_orig_mod", model)
    return inner


def networks_of(model: Model) -> tuple[Network, ...]:
    """List the transformers of a pipeline; a bare transformer is the only one.

    Wan 2.2 runs one while there is much noise and another while there is little; Ideogram 4 has one
    for each branch of guidance.

    Args:
        model: a pipeline, a transformer, or the networks of one, which are returned as they are.

    Raises:
        UnsupportedModelError: the pipeline has none (a UNet, say).
    """
    if isinstance(model, nn.Module):
        return (Network(_plain(model)),)
    if isinstance(model, Sequence) and model and all(isinstance(one, Network) for one in model):
        return tuple(model)
    return _networks_of_pipeline(cast(Any, model))


def _networks_of_pipeline(pipe: Pipeline) -> tuple[Network, ...]:
    parts = {name: getattr(pipe, name, None) for name in TRANSFORMERS}
    if parts["transformer_2"] is not None and getattr(pipe.config, "boundary_ratio", 1) is None:
        del parts["transformer_2"]  # which the pipeline then never runs
    branches = _BRANCHES if parts["unconditional_transformer"] is not None else {}
    scheduler = getattr(pipe, "scheduler", None)
    networks = tuple(
        Network(_plain(part), "" if name == "transformer" else name, branches.get(name), scheduler)
        for name, part in parts.items()
        if isinstance(part, nn.Module)
    )
    if not networks:
        components = sorted(getattr(pipe, "components", {}))
        raise UnsupportedModelError(
            f"{type(pipe).__name__} has no transformer to calibrate; its parts are {components}. "
            "Calibri works on Diffusion Transformers such as SD3 and FLUX."
        )
    return networks

"""Look at a pipeline: its blocks, their sites, and parameters per granularity."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from calibri.coefficients import (
    Capabilities,
    Factor,
    SearchSpace,
    build_space,
    check_factors,
    resolve,
)
from calibri.config import GRANULARITIES, Granularity, RunConfig
from calibri.configure import ConfigLike, merge_config
from calibri.errors import ConfigError, UnsupportedModelError
from calibri.pipelines import (
    Discovery,
    Network,
    Site,
    build_networks,
    find_geometry,
    is_published,
    load_pipeline,
    load_pipeline_skeleton,
    networks_of,
    parameter_names,
    sites_of,
)
from calibri.pipelines import discover as discover_sites
from calibri.planning import searched, with_defaults
from calibri.results import Record, SiteRecord
from calibri.sampling import Sampler
from calibri.signatures import typed


class SpaceRecord(Record):
    """The flat vector of a search, part by part.

    Attributes:
        names: scalars in one set.
        members: names of the sets; one without a name when every member has the same.
        knots: points of the trajectory, each with scalars of its own in every set.
        output_weights: how many are searched, over all members and knots of theirs.
        factors: what else is searched, one number each.
        size: length of the vector.
    """

    granularity: Granularity
    names: int
    members: list[str]
    knots: int
    output_weights: int
    factors: list[Factor]
    size: int


class Inspection(Record):
    """What ``calibri inspect`` shows.

    Attributes:
        counts: granularity to number of scalars, output weights not included.
        output: name of the site that scales the model's output.
        discovery: how the sites were found, when they were measured or read from a file.
        space: the numbers a search has; None where there is no pipeline to sample from.
    """

    pipeline: str
    transformer_class: str
    counts: dict[str, int]
    sites: list[SiteRecord]
    output: str
    discovery: Discovery | None = None
    space: SpaceRecord | None = None


@typed
def inspect(
    pipeline: Any = None,
    *,
    granularity: Granularity | None = None,
    config: ConfigLike | None = None,
    revision: str | None = None,
    discover: bool = False,
    sites: str | Path | None = None,
) -> Inspection:
    """List the sites of a pipeline or transformer.

    Args:
        pipeline: a name (see ``load_pipeline``; also ``"flux.1-dev"`` and the others that
            ``calibri.plan`` knows), a loaded pipeline, or a bare transformer; None for the one of
            ``config``, the shipped one unless it says so.
        granularity: which coefficient each site is listed under; None for that of the search.
        config: of the search that is described, as ``calibri.calibrate`` takes it.
        revision: branch, tag or commit of a repository.
        discover: measure the sites in one step of the pipeline instead of looking them up. They
            become the sites of this loaded model.
        sites: a saved discovery to use instead.

    Raises:
        ConfigError: both ``discover`` and ``sites``, or ``discover`` without a pipeline to run.
        UnsupportedModelError: it cannot be loaded, or has no sites or not what is searched.
    """
    config = merge_config(config)
    if pipeline is None:
        pipeline, revision = config.pipeline, revision or config.revision
    if discover and sites is not None:
        raise ConfigError("Discover the sites or read them from a file, not both.")
    name = pipeline if isinstance(pipeline, str | Path) else type(pipeline).__name__
    if not discover and isinstance(pipeline, str | Path) and is_published(str(pipeline)):
        return _of_published(str(pipeline), granularity, config, sites)
    loaded = _loaded(pipeline, revision, with_weights=discover)
    networks = networks_of(loaded)
    transformer = networks[0].transformer
    discovery = _discover(loaded, transformer) if discover else _read(sites)
    if discovery is not None:
        discovery.assign_all(loaded)
    found = _inspection(str(name), networks, granularity or config.space.granularity)
    space = None if loaded is transformer else _space(loaded, config)
    return found.model_copy(update={"discovery": discovery, "space": space})


def _read(sites: str | Path | None) -> Discovery | None:
    return None if sites is None else Discovery.load(sites)


def _of_published(
    name: str, granularity: Granularity | None, config: RunConfig, sites: str | Path | None
) -> Inspection:
    """Look at a model of which nothing but its geometry is known, as ``calibri.plan`` does."""
    geometry = find_geometry(name)
    config = with_defaults(config.model_copy(update={"pipeline": name}), geometry)
    networks = build_networks(geometry)
    discovery = _read(sites)
    if discovery is not None:
        discovery.assign_all(networks["transformer"])
    found = _inspection(
        name, networks_of(networks["transformer"]), granularity or config.space.granularity
    )
    space = _record(searched(networks, config))
    return found.model_copy(update={"discovery": discovery, "space": space})


def _space(pipe: Any, config: RunConfig) -> SpaceRecord | None:
    try:
        sampler = Sampler(pipe, config.sampling)
    except UnsupportedModelError:  # its sites can be looked at all the same
        return None
    sampler.remove()
    capabilities = Capabilities.of(pipe, sampler.cfg_scale)
    space = build_space(resolve(config, capabilities), capabilities)
    check_factors(space.factors, pipe)
    return _record(space)


def _record(space: SearchSpace) -> SpaceRecord:
    return SpaceRecord(
        granularity=space.granularity,
        names=len(space.names),
        members=list(space.member_names),
        knots=space.knots,
        output_weights=space.num_outputs,
        factors=list(space.factors),
        size=space.size,
    )


def _inspection(name: str, networks: Sequence[Network], granularity: Granularity) -> Inspection:
    sites = sites_of(networks)
    return Inspection(
        pipeline=name,
        transformer_class=type(networks[0].transformer).__name__,
        counts={g: len(parameter_names(sites, g)) for g in GRANULARITIES},
        sites=site_records(sites, granularity),
        output=networks[0].outputs[0].name,
    )


def site_records(sites: Sequence[Site], granularity: Granularity) -> list[SiteRecord]:
    """Write down sites, each with the parameter that scales it under a granularity."""
    return [
        SiteRecord(
            name=site.name,
            block=site.block,
            layer=site.layer,
            stream=site.stream,
            parameter=site.parameter(granularity),
        )
        for site in sites
    ]


def _loaded(pipeline: Any, revision: str | None, with_weights: bool) -> Any:
    if not isinstance(pipeline, str | Path):
        return pipeline
    if with_weights:
        return load_pipeline(str(pipeline), revision=revision, device="cpu")
    return load_pipeline_skeleton(str(pipeline), revision=revision)


def _discover(pipeline: Any, transformer: nn.Module) -> Discovery:
    if pipeline is transformer:
        raise ConfigError(
            "A bare transformer does not say how to run it. Call calibri.discover(transformer, "
            "run) with a function that runs it once, then .assign(transformer)."
        )
    # Two rows, so that the axis of the batch can be told from the others.
    return discover_sites(
        transformer, lambda: pipeline(["a photo", "a drawing"], num_inference_steps=1)
    )

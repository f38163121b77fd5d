"""Look at a pipeline: its blocks, their sites, and parameters per granularity."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from calibri.coefficients import GRANULARITIES, Granularity, parameter_name, parameter_names
from calibri.config import SHIPPED
from calibri.errors import ConfigError
from calibri.pipelines import load_pipeline
from calibri.results import Record, SiteRecord
from calibri.sites import Networks, networks_of, sites_of
from calibri.sites.discovered import Discovery
from calibri.sites.discovery import discover as discover_sites


class Inspection(Record):
    """What ``calibri inspect`` shows.

    Attributes:
        counts: granularity to number of scalars, output weights not included.
        output: name of the site that scales the model's output.
        discovery: how the sites were found, when they were measured or read from a file.
    """

    pipeline: str
    transformer_class: str
    counts: dict[str, int]
    sites: list[SiteRecord]
    output: str
    discovery: Discovery | None = None


def inspect(
    pipeline: Any = SHIPPED,
    *,
    granularity: Granularity = "gate",
    revision: str | None = None,
    discover: bool = False,
    sites: str | Path | None = None,
) -> Inspection:
    """List the sites of a pipeline or transformer.

    Args:
        pipeline: a name (see ``load_pipeline``), a loaded pipeline, or a bare transformer.
        granularity: which coefficient each site is listed under.
        revision: branch, tag or commit of a repository.
        discover: measure the sites in one step of the pipeline instead of looking them up. They
            become the sites of this loaded model.
        sites: a saved discovery to use instead.

    Raises:
        ConfigError: both ``discover`` and ``sites``, or ``discover`` without a pipeline to run.
        UnsupportedModelError: it cannot be loaded, or has no sites.
    """
    if discover and sites is not None:
        raise ConfigError("Discover the sites or read them from a file, not both.")
    name = pipeline if isinstance(pipeline, str | Path) else type(pipeline).__name__
    loaded = _loaded(pipeline, revision)
    networks = networks_of(loaded)
    transformer = networks[0].transformer
    discovery = _discover(loaded, transformer) if discover else None
    if sites is not None:
        discovery = Discovery.load(sites)
    if discovery is not None:
        for network in networks:  # of one class, so built alike
            discovery.assign(network.transformer)
    return _inspection(str(name), networks, granularity, discovery)


def _inspection(
    name: str, networks: Networks, granularity: Granularity, discovery: Discovery | None
) -> Inspection:
    sites = sites_of(networks)
    return Inspection(
        pipeline=name,
        transformer_class=type(networks[0].transformer).__name__,
        counts={g: len(parameter_names(sites, g)) for g in GRANULARITIES},
        sites=[
            SiteRecord(
                name=site.name,
                block=site.block,
                layer=site.layer,
                stream=site.stream,
                parameter=parameter_name(site, granularity),
            )
            for site in sites
        ],
        output=networks[0].outputs[0].name,
        discovery=discovery,
    )


def _loaded(pipeline: Any, revision: str | None) -> Any:
    if isinstance(pipeline, str | Path):
        return load_pipeline(str(pipeline), revision=revision, device="cpu")
    return pipeline


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

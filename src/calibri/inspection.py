"""Look at a pipeline: its blocks, their sites, and parameters per granularity."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from calibri.coefficients import GRANULARITIES, Granularity, parameter_name, parameter_names
from calibri.config import SHIPPED
from calibri.pipelines import load_pipeline, transformer_of
from calibri.results import Record, SiteRecord
from calibri.sites import find_output_sites, find_sites


class Inspection(Record):
    """What ``calibri inspect`` shows.

    Attributes:
        counts: granularity to number of scalars, output weights not included.
        output: name of the site that scales the model's output.
    """

    pipeline: str
    transformer_class: str
    counts: dict[str, int]
    sites: list[SiteRecord]
    output: str


def inspect(
    pipeline: Any = SHIPPED, *, granularity: Granularity = "gate", revision: str | None = None
) -> Inspection:
    """List the sites of a pipeline or transformer.

    Args:
        pipeline: a name (see ``load_pipeline``), a loaded pipeline, or a bare transformer.
        granularity: which coefficient each site is listed under.
        revision: branch, tag or commit of a repository.

    Raises:
        UnsupportedModelError: it cannot be loaded, or has no sites.
    """
    name = pipeline if isinstance(pipeline, str | Path) else type(pipeline).__name__
    transformer = _transformer(pipeline, revision)
    sites = find_sites(transformer)
    return Inspection(
        pipeline=str(name),
        transformer_class=type(transformer).__name__,
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
        output=find_output_sites(transformer)[0].name,
    )


def _transformer(pipeline: Any, revision: str | None) -> nn.Module:
    if isinstance(pipeline, nn.Module):
        return pipeline
    if isinstance(pipeline, str | Path):
        return transformer_of(load_pipeline(str(pipeline), revision=revision, device="cpu"))
    return transformer_of(pipeline)

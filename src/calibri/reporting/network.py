"""Where each coefficient sits in the network: its block, stream and layer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from calibri.reporting.charts import SHAPES, Mark, Stack
from calibri.reporting.text import interval, mean
from calibri.results import Figure, RunSummary, SiteRecord

BRANCHES = {"": "", "conditional/": "conditional branch", "unconditional/": "unconditional branch"}
# A label of ``SearchSpace``: the member, if there are several, the name, and the knot, likewise.
_LABEL = re.compile(
    r"(?P<member>(?:(?:(?:un)?conditional\d*|member\d+)/)?)(?P<name>.*?)(?P<knot>(?:@\d+)?)",
    re.DOTALL,
)
STREAMS = {"visual": "visual stream", "text": "text stream", "joint": "both streams"}


@dataclass(frozen=True)
class Panel:
    """The coefficients of one member of the ensemble."""

    title: str
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class OtherCoefficient:
    """A coefficient without a depth: an output weight."""

    name: str
    start: float | None
    value: float


@dataclass(frozen=True)
class Network:
    """All coefficients of a run, placed."""

    panels: tuple[Panel, ...]
    stacks: tuple[Stack, ...]
    others: tuple[OtherCoefficient, ...]
    streams: tuple[tuple[str, str], ...]
    layers: tuple[tuple[str, str], ...]


def place_coefficients(summary: RunSummary) -> Network:
    """Place every coefficient of a run at its block; what has no site is listed apart."""
    parameters = _parameters(summary.sites)
    blocks = list(dict.fromkeys(site.block for site in summary.sites))
    layers = list(dict.fromkeys(layer for _, layer, _ in parameters.values()))
    shapes = {layer: SHAPES[k % len(SHAPES)] for k, layer in enumerate(layers)}
    panels: dict[str, list[Mark]] = {}
    others = []
    for label, value in summary.coefficients.items():
        prefix, name = _split(label)
        if name not in parameters:
            others.append(OtherCoefficient(label, summary.start.get(label), value))
            continue
        block, layer, stream = parameters[name]
        mark = Mark(label, blocks.index(block), stream, shapes[layer], value)
        panels.setdefault(prefix, []).append(mark)
    used = {mark.stream for marks in panels.values() for mark in marks}
    return Network(
        panels=tuple(Panel(_title(prefix), tuple(marks)) for prefix, marks in panels.items()),
        stacks=_stacks(blocks),
        others=tuple(others),
        streams=tuple((name, said) for name, said in STREAMS.items() if name in used),
        layers=tuple((shapes[layer], layer) for layer in layers),
    )


def place_figures(
    sites: Sequence[SiteRecord], values: Mapping[str, Figure]
) -> tuple[tuple[Mark, ...], tuple[Stack, ...], tuple[tuple[str, str], ...]]:
    """Place figures of coefficients at their blocks.

    Returns:
        The marks, the lists of blocks, and a legend of the streams that occur.
    """
    parameters = _parameters(sites)
    blocks = list(dict.fromkeys(site.block for site in sites))
    layers = list(dict.fromkeys(layer for _, layer, _ in parameters.values()))
    marks = []
    for name, figure in values.items():
        block, layer, stream = parameters[name]
        shape = SHAPES[layers.index(layer) % len(SHAPES)]
        said = f"{name}: {mean(figure)} ({interval(figure)})"
        place = blocks.index(block)
        mark = Mark(name, place, stream, shape, figure.mean, figure.low, figure.high, said)
        marks.append(mark)
    used = {mark.stream for mark in marks}
    legend = tuple((f"stream-{name}", said) for name, said in STREAMS.items() if name in used)
    return tuple(marks), _stacks(blocks), legend


def _split(label: str) -> tuple[str, str]:
    found = _LABEL.fullmatch(label)
    assert found, "every text is a label"
    return found["member"] + found["knot"], found["name"]


def _title(prefix: str) -> str:
    member, at, knot = prefix.partition("@")
    parts = (BRANCHES.get(member, member.rstrip("/")), f"knot {knot}" if at else "")
    return ", ".join(part for part in parts if part)


def _parameters(sites: Sequence[SiteRecord]) -> Mapping[str, tuple[str, str, str]]:
    """Block, layer and stream of each coefficient; shared ones join the names of their sites."""
    groups: dict[str, list[SiteRecord]] = {}
    for site in sites:
        groups.setdefault(site.parameter, []).append(site)
    return {name: _summarise(members) for name, members in groups.items()}


def _summarise(members: Sequence[SiteRecord]) -> tuple[str, str, str]:
    layers = dict.fromkeys(site.layer for site in members)
    streams = {site.stream for site in members}
    stream = next(iter(streams)) if len(streams) == 1 else "joint"
    layer = next(iter(layers)) if len(layers) == 1 else "whole block"
    return members[0].block, layer, stream if stream in STREAMS else "joint"


def _stacks(blocks: Sequence[str]) -> tuple[Stack, ...]:
    counts: dict[str, int] = {}
    for block in blocks:
        name = block.rpartition(".")[0] or block
        counts[name] = counts.get(name, 0) + 1
    stacks, first = [], 0
    for name, size in counts.items():
        stacks.append(Stack(name, first, size))
        first += size
    return tuple(stacks)

"""Find the sites of an unknown transformer by measurement.

One call of one block of each kind is replayed with inner outputs scaled. The outputs are visited in
the reverse of the order in which they were complete, so a module is met before its parts and the
norm that ends a branch before the sublayer it normalises. An output is a branch when, with the
branches already found switched off,

1. it has an influence on the block's output;
2. that output is exactly linear in its scale: f(2) - f(0) = 2 (f(1) - f(0));
3. without it the block still carries its input on, as a residual stream does.

When all branches are off, a block whose branches were all found is the identity on its streams.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from calibri.errors import UnsupportedModelError
from calibri.pipelines.discovery.block_probe import BlockProbe
from calibri.pipelines.discovery.findings import Discovery, Finding
from calibri.pipelines.discovery.kinds import block_kinds
from calibri.pipelines.discovery.output_probe import discover_outputs
from calibri.pipelines.discovery.replay import calls_of
from calibri.signatures import typed


@typed
def discover(transformer: nn.Module, run: Callable[[], Any]) -> Discovery:
    """Find the residual branches, their streams and fold targets, and the output layer.

    Args:
        transformer: any Diffusion Transformer in float32, in evaluation mode, that works.
        run: runs the transformer at least once: ``lambda: model(**inputs)``, or a pipeline for one
            step. Give it more than one row, so that the batch axis can be told.

    Returns:
        The sites with the figures of their tests. ``assign`` makes them the model's sites.

    Raises:
        UnsupportedModelError: the weights are not in float32, the run does not reach the
            transformer, or nothing in it is a residual branch.
    """
    _refuse_low_precision(transformer)
    kinds = block_kinds(transformer)
    calls = calls_of(transformer, ["", *(path for paths in kinds for path in paths)], run)
    if "" not in calls:
        raise UnsupportedModelError(
            f"The run did not call this {type(transformer).__name__}. Run the model itself, or a "
            "pipeline that uses it."
        )
    rows = calls[""].batch_size
    called = [[path for path in paths if path in calls] for paths in kinds]
    probes = {paths[0]: BlockProbe(transformer, calls, paths, rows) for paths in called if paths}
    findings = [f for p in probes.values() if p.is_identity for f in p.findings()]
    doubtful = [f for p in probes.values() if not p.is_identity for f in p.findings()]
    if not findings and not doubtful:
        raise UnsupportedModelError(
            f"No output inside {type(transformer).__name__} behaves like a residual branch."
        )
    return Discovery(
        transformer_class=type(transformer).__name__,
        findings=_in_order(transformer, findings),
        doubtful=_in_order(transformer, doubtful),
        outputs=discover_outputs(
            transformer, calls[""], [path for paths in kinds for path in paths]
        ),
        blocks=[probe.block_finding() for probe in probes.values() if probe.accepted],
    )


def _in_order(transformer: nn.Module, findings: list[Finding]) -> list[Finding]:
    order = {path: position for position, (path, _) in enumerate(transformer.named_modules())}
    return sorted(findings, key=lambda finding: order[finding.site.block])


def _refuse_low_precision(transformer: nn.Module) -> None:
    dtypes = {p.dtype for p in transformer.parameters() if p.dtype is not torch.float32}
    if dtypes - {torch.float64}:
        raise UnsupportedModelError(
            f"Discovery measures differences that {sorted(map(str, dtypes))[0]} cannot hold. Load "
            "the transformer with torch_dtype=torch.float32; the sites hold for every dtype."
        )

"""Sites of every transformer class of diffusers: counts, hooks and folds, table and discovery.

python -m benchmarks.sites

Runs a tiny random model of every class that the tests know (tests/pipelines/zoo).
"""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass, field

import diffusers
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from calibri.config import GRANULARITIES
from calibri.pipelines import classes_where, family_of, parameter_names
from calibri.pipelines.classes import transformer_classes
from calibri.pipelines.families.lookup import block_family
from calibri.pipelines.sites.find import find_sites
from calibri.sampling import Fused
from tests.pipelines.measuring import by_block, distance, measured, random_scales, scaled
from tests.pipelines.zoo import ZOO, Specimen, run


@dataclass(frozen=True)
class Row:
    """What was found in one model.

    Attributes:
        counts: scalars at each granularity.
        error: largest difference between hooks and folds, relative to the output; None when some
            site has no weights to fold into.
        blocks: class of each block that was compared to whether discovery found the same sites.
    """

    name: str
    model_class: str
    counts: tuple[int, ...]
    error: float | None
    blocks: list[tuple[str, bool]] = field(default_factory=list)

    @property
    def agreeing(self) -> int:
        return sum(agrees for _, agrees in self.blocks)


def measure(specimen: Specimen) -> Row:
    """Count, fold and discover the sites of one model."""
    model = specimen.model()
    sites = find_sites(model)
    return Row(
        specimen.id,
        specimen.model_class,
        tuple(len(parameter_names(sites, granularity)) for granularity in GRANULARITIES),
        fold_error(model, specimen) if all(site.fold for site in sites) else None,
        agreement(model, specimen),
    )


def fold_error(model: nn.Module, specimen: Specimen) -> float:
    with scaled(model) as scaler:
        scales = random_scales(scaler)
        scaler.set(scales)
        hooked = run(model, specimen.draw())
    fused = Fused(model, scales[0, 0].tolist())
    error = distance(run(model, specimen.draw()), hooked)
    fused.undo()
    return error


def agreement(model: nn.Module, specimen: Specimen) -> list[tuple[str, bool]]:
    discovery = measured(specimen, model)
    found = by_block([finding.site for finding in (*discovery.findings, *discovery.doubtful)])
    return [
        (type(model.get_submodule(block)).__name__, set(found.get(block, {})) == set(known))
        for block, known in by_block(find_sites(model)).items()
    ]


def table(rows: list[Row]) -> Table:
    shown = Table("class", box=None, pad_edge=False)
    for name in (*GRANULARITIES, "hook - fuse", "blocks agree"):
        shown.add_column(name, justify="right")
    for row in rows:
        error = "not foldable" if row.error is None else f"{row.error:.1e}"
        counts = map(str, row.counts)
        shown.add_row(row.name, *counts, error, f"{row.agreeing}/{len(row.blocks)}")
    return shown


def _refinement(kind: str) -> str:
    family = block_family(kind)
    return family.refined.get(kind, "NOT EXPLAINED") if family else "NOT KNOWN"


def summary(rows: list[Row]) -> list[str]:
    classes, run_classes = set(transformer_classes()), {row.model_class for row in rows}
    refused = classes_where(lambda family: family.refused)
    folded = [row for row in rows if row.error is not None]
    worst = max(folded, key=lambda row: row.error or 0.0)
    unfolded = ", ".join(row.name for row in rows if row.error is None)
    blocks = [block for row in rows for block in row.blocks]
    differing = sorted({kind for kind, agrees in blocks if not agrees})
    same = sum(agrees for _, agrees in blocks)
    lines = [
        f"{len(classes)} transformer classes in diffusers: {len(run_classes)} run here "
        f"({len(rows)} models), {len(refused)} refused, "
        f"{len(classes - run_classes - set(refused))} not run",
        *(f"  {name}: {family_of(name).refused}" for name in refused),
        f"hooks against folds: worst relative difference {worst.error:.1e} ({worst.name}), "
        f"over {len(folded)} models; not foldable: {unfolded or 'none'}",
        f"table against discovery: {same} of {len(blocks)} blocks agree, "
        f"{len({kind for kind, _ in blocks}) - len(differing)} of "
        f"{len({kind for kind, _ in blocks})} block classes; the others:",
        *(f"  {kind}: {_refinement(kind)}" for kind in differing),
        f"{time.process_time():.0f} s of processor time, torch {torch.__version__}, "
        f"diffusers {diffusers.__version__}",
    ]
    return lines


def main() -> None:
    warnings.simplefilter("ignore")  # of the models themselves
    diffusers.logging.set_verbosity_error()
    rows = [measure(specimen) for specimen in ZOO]
    console = Console(highlight=False, width=120)
    console.print(table(rows))
    for line in summary(rows):
        console.print(line, soft_wrap=True)


if __name__ == "__main__":
    main()

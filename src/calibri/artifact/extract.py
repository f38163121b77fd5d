"""Coefficients out of a checkpoint whose branches were scaled, and how much of a change is such."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from calibri.artifact.calibration import Calibration, Sampling
from calibri.artifact.change import Change, total
from calibri.artifact.checkpoints import (
    OUTPUT_WEIGHT,
    Piece,
    find_checkpoint,
    is_pipeline,
    names_of,
    part_folder,
    pieces_of,
    read_tensors,
)
from calibri.artifact.extraction import Extraction, SiteChange
from calibri.artifact.plain_sampling import plain_sampling
from calibri.artifact.tuned import Tuned, TunedWeights, open_tuned
from calibri.coefficients import Coefficients
from calibri.config import Granularity
from calibri.errors import CalibrationError
from calibri.files import check_new_folder
from calibri.pipelines import is_adapter, load_skeletons, sites_of
from calibri.signatures import typed
from calibri.version import __version__

_COARSER: tuple[Granularity, ...] = ("layer", "block")
_UNKNOWN = "unknown"


@typed
def extract(
    base: str | Path,
    tuned: str | Path,
    *,
    output: str | Path | None = None,
    project: bool = False,
    granularity: Granularity = "gate",
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    revision: str | None = None,
) -> Extraction:
    """Recover coefficients from a model whose branches were scaled in its weights.

    For any other fine-tune, and for a LoRA, it says how much of the change is a scaling. Weights
    are read a few rows at a time; no model is loaded.

    Args:
        base: the model before: ``"shapes"``, the folder of a pipeline or of its transformer, or a
            repository id.
        tuned: the model after, in the same forms; or a safetensors file of the transformer, or of
            a LoRA in the form of diffusers, PEFT or kohya's scripts.
        output: folder to write the calibration to, new or empty; None to write none.
        project: write the nearest scaling even where it is not all of the change.
        granularity: of the calibration: how sites share a scalar.
        num_inference_steps: to note in the calibration; None for those of a plain call.
        guidance_scale: to note in the calibration; None for that of a plain call.
        revision: branch, tag or commit of the repository of the base.

    Returns:
        Every site with its scale and verdict.

    Raises:
        RunError: the output is not empty or cannot be written.
        UnsupportedModelError: a model cannot be read.
        CalibrationError: they are different models; or an output was asked for, and the change is
            no scaling.
    """
    if output is not None:
        check_new_folder(Path(output))
    comparison = _Comparison(base, tuned, revision)
    found = comparison.extraction(granularity)
    if output is None:
        return found
    if not (found.is_scaling or project):
        raise CalibrationError(
            f"{found.verdict} Nothing was written. Without --output every site is listed; with "
            "--project the nearest scaling is written, which is another model than TUNED."
        )
    sampling, starts = comparison.sampling(num_inference_steps, guidance_scale)
    coefficients = comparison.coefficients(granularity, starts)
    calibration = _calibration(found, coefficients, sampling, revision)
    return found.model_copy(update={"folder": calibration.save_pretrained(output)})


class _Comparison:
    """Two models, and what became of every piece of the first.

    Args:
        base: the model before.
        tuned: the model after.
        revision: of the repository of the base.
    """

    def __init__(self, base: str | Path, tuned: str | Path, revision: str | None) -> None:
        self._names = str(base), str(tuned)
        folder, other = find_checkpoint(base, revision), find_checkpoint(tuned, None)
        _refuse_file(folder, base)
        self._folder = folder
        self.networks = load_skeletons(str(folder))
        tensors = [read_tensors(part_folder(folder, network)) for network in self.networks]
        self._tuned = open_tuned(other, folder, self.networks, tensors)
        self._pieces = pieces_of(self.networks, tensors)
        self._changes = _measure(self._pieces, self._tuned)
        self._sites = {s.name: s for s in sites_of(self.networks)}

    def extraction(self, granularity: Granularity) -> Extraction:
        """Say of every site what became of it."""
        sites = tuple(
            SiteChange.of(name, self._changes.get(name, {}))
            for name in (*self._sites, OUTPUT_WEIGHT)
        )
        elsewhere = self._changes.get("", {})
        moved = {n: c for n, c in elsewhere.items() if c.changed and not c.is_rounding}
        shared = [name for name in _COARSER if self._holds(name)]
        return Extraction(
            base=self._names[0],
            tuned=self._names[1],
            transformer_class=type(self.networks[0].transformer).__name__,
            is_adapter=self._tuned.is_adapter,
            sites=sites,
            elsewhere=tuple(moved),
            power_elsewhere=sum(change.power for change in moved.values()),
            shared=tuple(shared),
            is_coarse=not all(total(c).is_scaling for c in self._groups(granularity).values()),
            is_swapped=self._is_swapped([s.name for s in sites if s.verdict == "no scaling"]),
            granularity=granularity,
        )

    def coefficients(self, granularity: Granularity, starts: Sequence[float]) -> Coefficients:
        """Take one scale for each coefficient: the nearest where none gives all of the change."""
        groups = self._groups(granularity)
        output = total(self._changes[OUTPUT_WEIGHT].values()).scale
        return Coefficients(
            granularity=granularity,
            scales=({name: total(changes).scale for name, changes in groups.items()},),
            output_weights=tuple(start * output for start in starts),
            start_weights=tuple(starts),
        )

    def sampling(
        self, steps: int | None, guidance: float | None
    ) -> tuple[Sampling, tuple[float, ...]]:
        """Note how the model is sampled: as it was said, or as a plain call does it."""
        dtype = self._tuned.dtype() if isinstance(self._tuned, TunedWeights) else "float32"
        return plain_sampling(self._folder, dtype, steps, guidance)

    def _groups(self, granularity: Granularity) -> dict[str, list[Change]]:
        groups: dict[str, list[Change]] = defaultdict(list)
        for name, site in self._sites.items():
            groups[site.parameter(granularity)] += self._changes.get(name, {}).values()
        return groups

    def _holds(self, granularity: Granularity) -> bool:
        """Whether one scale for all sites of a group gives all of their changes."""
        groups = self._groups(granularity)
        if len(groups) == len(self._sites):
            return False  # no site shares with another
        return all(total(changes).is_scaling for changes in groups.values())

    def _is_swapped(self, failed: Sequence[str]) -> bool:
        """Whether the other way round those that are no scaling are one."""
        if not failed or not isinstance(self._tuned, TunedWeights):
            return False
        wanted = [[p for p in pieces if p.site in failed] for pieces in self._pieces]
        changes = _measure(wanted, self._tuned.swapped)
        return all(total(of_site.values()).is_scaling for of_site in changes.values())


def _refuse_file(folder: Path, base: str | Path) -> None:
    if folder.is_dir() and is_adapter(_adapter_names(folder)):
        raise CalibrationError(f"'{base}' is an adapter, not a model. Pass BASE first, then TUNED.")
    if folder.is_file():
        hint = "an adapter" if is_adapter(names_of(folder)) else "a single file"
        raise CalibrationError(
            f"'{base}' is {hint}. BASE, which comes first, must be the folder or repository of a "
            "pipeline or of its transformer."
        )


def _adapter_names(folder: Path) -> tuple[str, ...]:
    file = folder / "pytorch_lora_weights.safetensors"
    return names_of(file) if file.is_file() and not is_pipeline(folder) else ()


def _measure(parts: Sequence[Sequence[Piece]], tuned: Tuned) -> dict[str, dict[str, Change]]:
    """Measure all pieces: site to the tensors with its scale to what became of them."""
    changes: dict[str, dict[str, Change]] = defaultdict(dict)
    for part, pieces in enumerate(parts):
        for piece in pieces:
            label = f"{part}:{piece.tensor}[{piece.rows[0]}]" if part else piece.tensor
            found = tuned.change(part, piece)
            before = changes[piece.site].get(label)
            changes[piece.site][label] = found if before is None else before + found
    return changes


def _calibration(
    found: Extraction, coefficients: Coefficients, sampling: Sampling, revision: str | None
) -> Calibration:
    provenance: Mapping[str, str | int | float] = {
        "source": f"extracted from {Path(found.tuned).name}",
        "explained": found.explained,
        "projection": "no" if found.is_scaling else "yes: the weights changed otherwise, too",
    }
    return Calibration(
        calibri_version=__version__,
        transformer_class=found.transformer_class,
        base_model=found.base,
        base_revision=revision,
        coefficients=coefficients,
        sampling=sampling,
        rewards={_UNKNOWN: "the weights do not say"},
        objective=_UNKNOWN,
        provenance=dict(provenance),
    )

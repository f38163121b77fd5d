"""Use a calibration on a pipeline: load, set its strength, fuse, unfuse, unload."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from calibri.artifact.calibration import Calibration
from calibri.artifact.watch import Watch
from calibri.coefficients import BRANCHES, Branch, Coefficients, check_factors
from calibri.errors import (
    CalibrationError,
    CalibriError,
    CalibriWarning,
    FuseError,
    GuidanceError,
)
from calibri.pipelines import Network, lora_of, networks_of, sites_of
from calibri.sampling import (
    BranchResolver,
    Fused,
    Layout,
    Scaler,
    Uncopied,
    change_shift,
    own_negative_prompt,
)
from calibri.signatures import typed

# Marks a transformer, and no more than that: what stands on it goes along wherever it is copied.
_APPLIED = "_calibri_applied"


class AppliedCalibration(Uncopied):
    """A calibration on a pipeline. Made by ``load``.

    Attributes:
        calibration: what was loaded; None for bare coefficients, such as a preset.
    """

    def __init__(self, pipe: Any, calibration: Calibration | Coefficients, strength: float) -> None:
        self.pipe = pipe
        self.networks = networks_of(pipe)
        self.calibration = calibration if isinstance(calibration, Calibration) else None
        self._full = _coefficients_of(calibration)
        self._coefficients = self._full.with_strength(strength)
        self._resolver: BranchResolver | _ToldBranch | None = None
        self._scaler: Scaler | None = None
        self._watch: Watch | None = None
        self._fused: Fused | None = None
        self._is_loaded = True
        self._strength = strength
        self._restore_schedule: Callable[[], None] = lambda: None
        self._attach()

    def __repr__(self) -> str:
        """What it is, how to sample with it, and what state it is in."""
        what = self.calibration or self._full
        state = "fused" if self._fused is not None else f"strength {self._strength:g}"
        return f"<loaded {what!r}, {state if self._is_loaded else 'unloaded'}>"

    @property
    def strength(self) -> float:
        """From 0, the original model, to 1, the full calibration."""
        return self._strength

    @property
    def coefficients(self) -> Coefficients:
        """The coefficients at the present strength."""
        return self._coefficients

    def branch(self, name: Branch) -> AbstractContextManager[None]:
        """Say which branch of guidance the forwards inside belong to.

        A pipeline tells by itself; a transformer that is called without one cannot.

        Args:
            name: ``"conditional"`` or ``"unconditional"``.
        """
        return contextlib.nullcontext() if self._resolver is None else self._resolver.branch(name)

    def set_strength(self, strength: float) -> None:
        """Blend with the original model: 0 is the original, 1 the full calibration.

        Raises:
            CalibrationError: ``strength`` is outside [0, 1].
            FuseError: the calibration is fused.
        """
        self._check_hooked()
        self._coefficients = self._full.with_strength(strength)
        self._strength = strength
        self._set()

    def fuse(self, *, keep_originals: bool = True) -> None:
        """Fold the scales into the weights; sampling then costs exactly what it did before.

        Args:
            keep_originals: keep copies of the changed weights on the CPU so that ``unfuse`` is
                exact.

        Raises:
            FuseError: the calibration is an ensemble, the scales differ between the branches of
                guidance, or a weight cannot take a scale.
            CalibrationError: it is not loaded any more.
        """
        self._check_loaded()
        if self._fused is not None:
            return
        scales = scales_to_fold(self._coefficients, self.networks)
        self._fused = Fused(self.networks, scales, keep_originals=keep_originals)
        self._detach()

    def unfuse(self) -> None:
        """Restore the original weights bit for bit and scale by hooks again.

        Raises:
            FuseError: the originals were not kept.
        """
        if self._fused is None:
            return
        # The hooks first: what refuses leaves the calibration fused as it was.
        self._attach()
        try:
            self._fused.undo()
        except CalibriError:
            self._detach()
            raise
        self._fused = None

    def unload(self) -> None:
        """Remove the calibration; the pipeline is as it was before.

        Raises:
            FuseError: it was fused without keeping the original weights.
        """
        if not self._is_loaded:
            return
        if self._fused is not None:
            self._fused.undo()
            self._fused = None
        self._detach()
        self._is_loaded = False
        for network in self.networks:
            delattr(network.transformer, _APPLIED)

    @contextlib.contextmanager
    def lifted(self) -> Iterator[None]:
        """Take the calibration off the pipeline inside of ``with``, without unloading it.

        Raises:
            FuseError: it is fused.
            CalibrationError: it is not loaded any more.
        """
        self._check_hooked()
        self._detach()
        try:
            yield
        finally:
            self._attach()

    def _check_hooked(self) -> None:
        self._check_loaded()
        if self._fused is not None:
            raise FuseError("The calibration is fused into the weights. Call unfuse() first.")

    def _check_loaded(self) -> None:
        if not self._is_loaded:
            raise CalibrationError(
                "This calibration was unloaded. Load it again and use the handle that load returns."
            )

    def _attach(self) -> None:
        if self._full.num_branches > 1 and self._full.per_branch:
            bare = isinstance(self.pipe, nn.Module)
            self._resolver = _ToldBranch() if bare else BranchResolver(self.pipe)
        try:
            self._scaler = Scaler(self.networks, self._resolver)
            self._watch = Watch(self.pipe, self.networks, self._scaler)
            self._set()
        except CalibriError:
            self._detach()
            raise

    def _set(self) -> None:
        assert self._scaler is not None
        assert self._watch is not None
        self._scaler.apply([self._coefficients])
        self._restore_schedule()
        shift = self._coefficients.shift
        self._restore_schedule = change_shift(self.pipe, shift)
        self._watch.expect_scheduler(None if shift == 1.0 else self.pipe.scheduler)

    def _detach(self) -> None:
        self._restore_schedule()
        self._restore_schedule = lambda: None
        if self._watch is not None:
            self._watch.remove()
            self._watch = None
        if self._scaler is not None:
            self._scaler.remove()
            self._scaler = None
        if self._resolver is not None:
            self._resolver.remove()
            self._resolver = None


def _coefficients_of(calibration: Calibration | Coefficients) -> Coefficients:
    if isinstance(calibration, Calibration):
        return calibration.coefficients
    return calibration


def scales_to_fold(
    coefficients: Coefficients,
    networks: Sequence[Network],
    otherwise: str = "Keep it loaded without fusing.",
) -> list[Sequence[float]]:
    """Give each network the scales that its weights are to take.

    Args:
        coefficients: of these networks.
        networks: those of a pipeline.
        otherwise: what to do where weights cannot hold them, in words.

    Raises:
        FuseError: weights cannot hold these coefficients.
        CalibrationError: they are for another model.
    """
    owned = [_of_branch(coefficients, network.branch) for network in networks]
    for own in owned:
        if reason := own.unfoldable:
            raise FuseError(f"{reason} {otherwise}")
    sites = sites_of(networks)
    return [own.site_scales(sites)[0].tolist() for own in owned]


def check_class(calibration: Calibration, networks: Sequence[Network]) -> None:
    """Refuse a calibration of another transformer.

    Raises:
        CalibrationError: the class is another.
    """
    found = type(networks[0].transformer).__name__
    if found != calibration.transformer_class:
        raise CalibrationError(
            f"This calibration was made for {calibration.transformer_class} "
            f"({calibration.base_model}); the pipeline has a {found}. Load it onto the model it "
            "was made for."
        )


def _of_branch(coefficients: Coefficients, branch: int | None) -> Coefficients:
    """Say what a network that runs one branch of guidance alone gets of them."""
    if branch is None or coefficients.is_ensemble or coefficients.num_branches == 1:
        return coefficients
    member = next(m for m in coefficients.members if m.branch == BRANCHES[branch])
    # The pipeline itself multiplies by the start weight (guidance formula).
    weights = tuple(weight / member.start_weight for weight in member.output_weights)
    alone = replace(member, branch="conditional", start_weight=1.0, output_weights=weights)
    return Coefficients.from_members(
        [alone],
        coefficients.granularity,
        guidance=coefficients.guidance,
        shift=coefficients.shift,
    )


class _ToldBranch:
    """Stands in for ``BranchResolver`` on a bare transformer: the caller says the branch."""

    def __init__(self) -> None:
        self._layout: Layout | None = None

    @contextlib.contextmanager
    def branch(self, name: Branch) -> Iterator[None]:
        before, self._layout = self._layout, (BRANCHES.index(name),)
        try:
            yield
        finally:
            self._layout = before

    def remove(self) -> None:
        """Nothing was changed."""

    def __call__(self, arguments: Mapping[str, Any]) -> Layout:
        if self._layout is None:
            raise GuidanceError(
                "This calibration scales the branches of guidance differently, and a transformer "
                "without its pipeline cannot tell them apart. Call it inside "
                "applied.branch('conditional') or applied.branch('unconditional')."
            )
        return self._layout


@typed
def load(
    pipe: Any,
    calibration: Calibration | Coefficients | str | Path,
    *,
    strength: float = 1.0,
    revision: str | None = None,
    token: str | None = None,
) -> AppliedCalibration:
    """Load a calibration onto a diffusers pipeline.

    Warns when the calibration was searched with a negative prompt that a plain call of the pipeline
    does not use, or on top of a LoRA that the pipeline seems not to have.

    Args:
        pipe: a loaded pipeline, or a bare transformer; its images change from now on.
        calibration: a folder, that of a finished run, a Hugging Face repository id, a
            ``Calibration``, or bare coefficients such as ``calibri.preset`` makes.
        strength: 0 is the original model, 1 the full calibration.
        revision: branch, tag or commit of the repository.
        token: access token of the hub.

    Returns:
        A handle with ``set_strength``, ``fuse``, ``unfuse`` and ``unload``.

    Raises:
        CalibrationError: the calibration is for another model, or one is loaded already.
    """
    if isinstance(calibration, str | Path):
        calibration = Calibration.from_pretrained(calibration, revision=revision, token=token)
    if isinstance(calibration, Calibration):
        _warn_of_negative_prompt(pipe, calibration)
        _warn_of_lora(pipe, calibration)
    return apply(pipe, calibration, strength)


def _warn_of_negative_prompt(pipe: Any, calibration: Calibration) -> None:
    searched = calibration.sampling.negative_prompt
    plain = "" if isinstance(pipe, nn.Module) else own_negative_prompt(pipe)
    if calibration.coefficients.num_branches > 1 and searched != plain:
        warnings.warn(
            f"This calibration was searched with the negative prompt {searched!r}, which a plain "
            f"call does not use. Call the pipeline with negative_prompt={searched!r}.",
            stacklevel=3,
        )


def _warn_of_lora(pipe: Any, calibration: Calibration) -> None:
    """Say that a LoRA is missing, as far as one can tell: one that was fused left no trace."""
    transformer = networks_of(pipe)[0].transformer
    if calibration.lora is None or lora_of(pipe) or getattr(transformer, "peft_config", None):
        return
    warnings.warn(
        f"This calibration was made on top of the LoRA '{calibration.lora}', and the pipeline "
        "seems to have none. Load it first: pipe.load_lora_weights, or PEFT where it is an adapter "
        "of PEFT. If it is fused into the weights, all is well.",
        CalibriWarning,
        stacklevel=3,
    )


@contextlib.contextmanager
def applied(
    pipe: Any, calibration: Calibration | Coefficients, strength: float
) -> Iterator[AppliedCalibration]:
    """Have a calibration on a pipeline inside of ``with``."""
    loaded = apply(pipe, calibration, strength)
    try:
        yield loaded
    finally:
        loaded.unload()


def apply(
    pipe: Any, calibration: Calibration | Coefficients, strength: float
) -> AppliedCalibration:
    """Do what ``load`` does with a calibration that is loaded, without its warning."""
    networks = networks_of(pipe)
    if isinstance(calibration, Calibration):
        check_class(calibration, networks)
    if any(getattr(network.transformer, _APPLIED, None) for network in networks):
        raise CalibrationError(
            "A calibration is already loaded onto this pipeline. Call unload() on it first."
        )
    coefficients = _coefficients_of(calibration)
    coefficients.site_scales(sites_of(networks))  # refuses another size
    check_factors(coefficients.factors, pipe)
    applied = AppliedCalibration(pipe, calibration, strength)
    for network in networks:
        setattr(network.transformer, _APPLIED, True)
    return applied

"""Speak up where a loaded calibration would be lost without a word."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from calibri.errors import CalibrationError, CalibriWarning
from calibri.pipelines import Network, PipelineOrTransformer
from calibri.sampling import Scaler, replace_method

# The last thing that a pipeline of diffusers does in a call.
_END_OF_CALL = "maybe_free_model_hooks"
_SAVE = "save_pretrained"


class Watch:
    """Checks each call of a pipeline, and warns when it is saved.

    The check is made outside of the transformers, where no compiled graph hides it: a graph that
    was made without the scales runs without any of our code.

    Args:
        pipe: a pipeline or bare transformer, which has no end of a call.
        networks: its transformers.
        scaler: knows which of their sites were scaled.
    """

    def __init__(
        self, pipe: PipelineOrTransformer, networks: Sequence[Network], scaler: Scaler
    ) -> None:
        self._networks = networks
        self._scaler = scaler
        self._pipe: Any = pipe
        self._scheduler: Any = None
        self._saving = False
        self._undo: list[Callable[[], None]] = []
        if hasattr(pipe, _END_OF_CALL):
            self._undo.append(replace_method(pipe, _END_OF_CALL, self._checked))
        owners = {id(owner): owner for owner in (pipe, *[n.transformer for n in networks])}
        for owner in owners.values():
            if hasattr(owner, _SAVE):
                self._undo.append(replace_method(owner, _SAVE, self._warned))

    def expect_scheduler(self, scheduler: Any) -> None:
        """Check that the pipeline still has a scheduler, which bears a part of the calibration.

        Args:
            scheduler: None when it bears none.
        """
        self._scheduler = scheduler

    def remove(self) -> None:
        """Give the pipeline its own methods back."""
        while self._undo:
            self._undo.pop()()

    def check(self) -> None:
        """Say whether the calibration acted since the last check.

        Raises:
            CalibrationError: it did not.
        """
        skipped = self._scaler.skipped()
        whole = [
            len(names) == len(network.sites)
            for names, network in zip(skipped, self._networks, strict=True)
        ]
        if all(whole):
            raise CalibrationError(
                f"The calibration is loaded, but none of its scales acted: the "
                f"{type(self._networks[0].transformer).__name__} ran in a graph that was compiled "
                "without them, and the images are those of the original model. Call "
                "torch.compiler.reset() and sample again, or fold the scales into the weights with "
                "fuse()."
            )
        if self._scheduler is not None and self._pipe.scheduler is not self._scheduler:
            raise CalibrationError(
                "The scheduler of the pipeline was replaced after the calibration was loaded, and "
                "with it went the shift that the calibration gives it. Call set_strength() again, "
                "which changes the new one."
            )
        # One of several transformers may have no step of a short schedule.
        ran = [names for names, none in zip(skipped, whole, strict=True) if not none]
        if some := [name for names in ran for name in names]:
            warnings.warn(
                f"{len(some)} sites of the calibration did not run in this call, '{some[0]}' the "
                "first of them. If no block was left out on purpose, these were compiled without "
                "their scales: call torch.compiler.reset() and sample again.",
                CalibriWarning,
                stacklevel=4,
            )

    def _checked(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def end_of_call(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            self.check()
            return result

        return end_of_call

    def _warned(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def save_pretrained(*args: Any, **kwargs: Any) -> Any:
            if self._saving:  # by the pipeline, which has said it
                return original(*args, **kwargs)
            warnings.warn(
                "What is saved is the original model: the calibration on it is not a part of its "
                "weights. Call fuse() before saving, or calibri.fuse(calibration, folder), to save "
                "calibrated weights; or save the calibration itself.",
                CalibriWarning,
                stacklevel=2,
            )
            self._saving = True
            try:
                return original(*args, **kwargs)
            finally:
                self._saving = False

        return save_pretrained

"""Where the text encoders of a pipeline rest, and when they visit the device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from calibri.pipelines import Pipeline, movable_modules

_CPU = torch.device("cpu")


class TextEncoders:
    """The text encoders of a pipeline, which need no place on the device while images are sampled.

    Encoders that another library places (offloading, quantisation) are left to it.
    """

    def __init__(self, pipe: Pipeline) -> None:
        self._pipe = pipe
        self._home: torch.device | None = None
        self._staying = False

    def offload(self) -> None:
        """Keep them on the CPU from now on; they visit the device to encode."""
        if self._home is None:
            self._home = self._pipe._execution_device
            self._move(_CPU)

    def _restore(self) -> None:
        if self._home is not None:
            self._move(self._home)
            self._home = None

    @contextmanager
    def present(self) -> Iterator[None]:
        """Have them on the device inside."""
        home = self._home
        self._restore()
        try:
            with torch.no_grad():
                yield
        finally:
            if home is not None and not self._staying:
                self.offload()

    @contextmanager
    def staying(self) -> Iterator[None]:
        """Once they were needed inside, leave them on the device until the end."""
        home = self._home
        self._staying = True
        try:
            yield
        finally:
            self._staying = False
            if home is not None:
                self.offload()

    def _move(self, device: torch.device) -> None:
        movable = movable_modules(self._pipe)
        for name, module in self._pipe.components.items():
            if name.startswith("text_encoder") and any(module is other for other in movable):
                module.to(device)
        if device.type == "cpu" and torch.cuda.is_available():
            torch.cuda.empty_cache()

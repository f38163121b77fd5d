"""Where GPU figures are measured, how forwards are timed, scaled and compiled."""

from __future__ import annotations

import contextlib
import gc
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from benchmarks import gpu_models as models
from benchmarks.gpu_models import Geometry, Inputs
from benchmarks.machine import Spread
from calibri.sampling import Scaler

Figures = dict[str, Any]


class NotHereError(Exception):
    """This device cannot do it."""


@dataclass
class Bench:
    """Where to run, and what has been built there.

    Attributes:
        device: as torch calls it.
        tiny: take tiny networks.
        repeats: of every timed forward; medians are shown.
        rows: figures found so far.
        image_seconds: time of an image in the reference's setting, once it is known.
    """

    device: str
    tiny: bool
    repeats: int
    rows: list[Figures] = field(default_factory=list)
    image_seconds: float | None = None
    _flux: nn.Module | None = None
    _flops: dict[str, float] = field(default_factory=dict)

    dtype = torch.bfloat16

    @property
    def flux_geometry(self) -> Geometry:
        """FLUX.1-dev."""
        return models.TINY_FLUX if self.tiny else models.FLUX

    @property
    def sd3_geometry(self) -> Geometry:
        """SD3.5-medium."""
        return models.TINY_SD35 if self.tiny else models.SD35

    def flux(self) -> nn.Module:
        """Make FLUX.1-dev once."""
        if self._flux is None:
            self._flux = self.flux_geometry.make(self.device, self.dtype)
        return self._flux

    def drop_flux(self) -> None:
        """Give its memory back."""
        self._flux = None

    def batches(self, *rows: int) -> tuple[int, ...]:
        """Batch sizes to measure."""
        return rows[:1] if self.tiny else rows

    def inputs(self, geometry: Geometry, rows: int) -> Inputs:
        """Random arguments of a forward."""
        return geometry.inputs(rows, self.device, self.dtype)

    def wait(self) -> None:
        """Wait until the device has done everything."""
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()

    def time(self, work: Callable[[], object], repeats: int | None = None) -> Spread:
        """Time some work, after doing it once untimed."""
        times = []
        for _ in range(1 + (repeats or self.repeats)):
            self.wait()
            started = time.perf_counter()
            work()
            self.wait()
            times.append(time.perf_counter() - started)
        return Spread(tuple(times[1:]))

    def add(self, item: str, what: str, **figures: Any) -> None:
        """Keep figures and show them."""
        self.rows.append({"item": item, "what": what, **figures})
        shown = "  ".join(f"{name} {_text(value)}" for name, value in figures.items())
        print(f"{item}  {what:58s} {shown}", flush=True)

    def add_forward(
        self,
        item: str,
        what: str,
        geometry: Geometry,
        images: int,
        seconds: Spread,
        passes: int = 1,
    ) -> float:
        """Keep the time of a step of some images, ``passes`` rows of the transformer for each."""
        if geometry.name not in self._flops:
            self._flops[geometry.name] = geometry.flops()
        flops = self._flops[geometry.name] * images * passes
        per_image = geometry.steps * seconds.median / images
        ratio = {"x_of_G1": self.image_seconds / per_image} if self.image_seconds else {}
        self.add(
            item,
            f"{what}, {images} images",
            image_seconds=per_image,
            tflops=flops / seconds.median / 1e12,
            **(ratio if geometry is self.flux_geometry else {}),
            step_seconds=seconds.values,
        )
        return per_image


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return f"({min(value):.4g} to {max(value):.4g})"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@torch.no_grad()
def forward(model: nn.Module, inputs: Inputs) -> Tensor:
    """One evaluation of a transformer."""
    output: Tensor = model(**inputs, return_dict=False)[0]
    return output


@contextlib.contextmanager
def scaled(model: nn.Module, rows: int) -> Iterator[Callable[[int], None]]:
    """Hook a model; what is given sets new scales, other ones for every row."""
    scaler = Scaler(model)
    sites = len(scaler.sites) + 1

    def change(seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        scaler.set(1 + 0.25 * torch.randn(rows, 1, sites, generator=generator))

    change(0)
    try:
        yield change
    finally:
        scaler.remove()


@contextlib.contextmanager
def compiled(bench: Bench, model: nn.Module, **options: Any) -> Iterator[None]:
    """Compile the repeated blocks of a model; without a GPU only their graphs are taken."""
    torch._dynamo.reset()
    counters.clear()
    if not bench.device.startswith("cuda"):
        options = {"backend": "eager"}
    # As diffusers' compile_repeated_blocks, which does not know SD3's.
    for path, module in model.named_modules():
        if re.fullmatch(r"(single_)?transformer_blocks\.\d+", path):
            module.compile(fullgraph=True, dynamic=False, **options)
    try:
        yield
    finally:
        for module in model.modules():
            module._compiled_call_impl = None
        torch._dynamo.reset()


def free(bench: Bench) -> None:
    """Give unused memory back to the device."""
    gc.collect()
    if bench.device.startswith("cuda"):
        torch.cuda.empty_cache()

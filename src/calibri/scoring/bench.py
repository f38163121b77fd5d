"""A pipeline with hooks, and the rewards that see its images: all that computing a unit takes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from calibri.config import RunConfig
from calibri.devices import resolve_device
from calibri.errors import NoMemoryError
from calibri.memory import Halving, is_out_of_memory
from calibri.pipelines import Discovery, load_pipeline, networks_of
from calibri.sampling import BranchResolver, Noise, Sampler, Scaler
from calibri.scoring.compilation import compile_transformers
from calibri.scoring.device_swap import REWARDS, DeviceSwap, share_device
from calibri.scoring.measures import Measures, measured
from calibri.scoring.measuring import measure_rows
from calibri.scoring.pictures import Pictures, join_pictures
from calibri.scoring.units import Row, Unit


class Bench:
    """Samples and measures the rows of units, in this process.

    Args:
        config: of a run; its prompts, space and search are not looked at.
        measures: what images are measured by; None for the rewards of the configuration.
        pipe: a loaded pipeline, which stays where it is; None for the configured one.

    Attributes:
        config: the same.
        pipe: the pipeline.
        measures: what images are measured by.
        device: where the pipeline samples.
        swap: of pipeline and rewards, when they alternate on the device.
        sampler: samples through the pipeline.
        scaler: hooks of its transformers.
        is_configured: whether the configuration names all of it, so that another process can make
            the same.

    Raises:
        CalibriError: the pipeline or a reward does not work.
    """

    def __init__(
        self, config: RunConfig, measures: Measures | None = None, pipe: Any = None
    ) -> None:
        self.config = config
        self.measures = measures or Measures.of(config)
        self.is_configured = pipe is None and self.measures.are_configured
        self.pipe = pipe if pipe is not None else _configured_pipeline(config)
        if config.space.sites is not None:
            Discovery.load(config.space.sites).assign_all(self.pipe)
        self.device = resolve_device(config.device)
        self.swap: DeviceSwap | None = None
        if config.rewards.offload:
            self.swap = share_device(self.pipe, self.measures.rewards.values(), self.device)
        self.sampler = Sampler(self.pipe, config.sampling)
        if self.swap is not None:
            self.sampler.offload_encoders()
        self._branches = self._watched()
        self.scaler = Scaler(networks_of(self.pipe), self._branches)
        if config.sampling.compile:
            compile_transformers(self.pipe)
        self._halving = Halving(config.sampling.batch_size)

    def _watched(self) -> BranchResolver | None:
        """Watch which branch of guidance the transformers are called for."""
        if not self.sampler.guided:
            return None
        branches = BranchResolver(self.pipe)
        self.sampler.before_call = branches.expect
        return branches

    def freeze(self) -> None:
        """Have no weight of the pipeline ask for a gradient."""
        for part in self.pipe.components.values():
            if isinstance(part, nn.Module):
                part.requires_grad_(False)

    def close(self) -> None:
        """Take the hooks off: the pipeline is as it was before."""
        self.scaler.remove()
        if self._branches is not None:
            self._branches.remove()
        self.sampler.remove()

    @property
    def batch_size(self) -> int:
        """Images that are sampled at once: as configured, or what has fitted into memory."""
        return self._halving.size

    def sample(self, unit: Unit, rows: Sequence[Row]) -> Pictures:
        """Sample rows of a unit, fewer at once from now on when they do not fit into memory.

        Raises:
            NoMemoryError: one image alone does not fit.
        """
        prompts = [noise.prompt for _, noise in rows]
        self.sampler.prepare(prompts, unit.fidelity.max_sequence_length)
        try:
            return join_pictures(list(self._batches(unit, rows)))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise NoMemoryError(
                "One image alone does not fit into the memory of the device. Everything "
                "before this is kept. Lower sampling.height and width, use "
                "dtype=bfloat16, or free the device, and resume the run."
            ) from error

    def _batches(self, unit: Unit, rows: Sequence[Row]) -> Iterator[Pictures]:
        # A batch has one schedule of noise, so its candidates must shift it alike.
        for _, group in itertools.groupby(rows, key=lambda row: unit.candidates[row[0]].shift):
            for _, images in self._halving.run(list(group), lambda part: self._batch(unit, part)):
                yield images

    def _batch(self, unit: Unit, rows: Sequence[Row]) -> Pictures:
        self.scaler.apply(unit.candidates, [candidate for candidate, _ in rows])
        shift = unit.candidates[rows[0][0]].shift
        noises = [noise for _, noise in rows]
        return Pictures(*self.sampler.sample_checked(noises, unit.fidelity, shift))

    def measure(self, unit: Unit, rows: Sequence[Row], pictures: Pictures) -> dict[str, Tensor]:
        """Measure the images of rows by every measure of their unit.

        Returns:
            Name to one number, or row of numbers, for each row; NaN for a broken image and, where a
            measure compares the images of a prompt, for those that it would be compared with.
        """
        return measure_rows(self.measures, unit, rows, pictures)

    def score(self, images: Tensor, noises: Sequence[Noise], names: Sequence[str]) -> None:
        """Measure images by rewards, to see whether these take them.

        Raises:
            RewardError: one does not.
        """
        if self.swap is not None:
            self.swap.use(REWARDS)
        for name in names:
            measured(self.measures[name], images, [noise.prompt for noise in noises])


def _configured_pipeline(config: RunConfig) -> Any:
    return load_pipeline(
        config.pipeline,
        revision=config.revision,
        lora=config.lora,
        dtype=config.dtype,
        device=config.device,
    )

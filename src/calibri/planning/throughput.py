"""How many FLOPs a machine does in a second: published for some, measured for this one."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from calibri.config import RunConfig
from calibri.pipelines import load_pipeline
from calibri.prompts import make_prompts
from calibri.results import Fidelity, Record
from calibri.sampling import Noise, Sampler
from calibri.shapes import sample_prompts

MEASURED_STEPS = 2
_TIMED_CALLS = 3


class Speed(Record):
    """A range of throughputs.

    Attributes:
        label: how the machine runs, for people.
        low: TFLOP/s in the worst of the cases behind it.
        high: TFLOP/s in the best.
        source: where the figures are from.
    """

    label: str
    low: float
    high: float
    source: str


@dataclass(frozen=True)
class Machine:
    """A GPU.

    Attributes:
        title: for people.
        gigabytes: of its memory.
        speeds: ranges of throughput of diffusers in bfloat16.
    """

    title: str
    gigabytes: int
    speeds: tuple[Speed, ...]


_H100 = "FLUX.1-dev at 1024 px, batches of 1 to 16; diffusers-torchao, xDiT, PyTorch"
_A100 = "the H100's, divided by what CogVideoX-5b takes longer in diffusers-torchao (2.2, 2.4)"


def _speeds(
    eager: tuple[float, float], compiled: tuple[float, float], *sources: str
) -> tuple[Speed, Speed]:
    """Both ranges of a machine, from one source or one each."""
    first, last = sources[0], sources[-1]
    return (
        Speed(label="eager", low=eager[0], high=eager[1], source=first),
        Speed(label="compiled", low=compiled[0], high=compiled[1], source=last),
    )


MACHINES: Mapping[str, Machine] = {
    "h100": Machine("H100", 80, _speeds((311, 342), (463, 526), _H100)),
    "h200": Machine(
        "H200",
        141,
        _speeds((311, 342), (463, 526), "as the H100: the same matrix units", "as the H100"),
    ),
    "a100": Machine("A100", 80, _speeds((144, 158), (191, 217), _A100)),
    "4090": Machine(
        "RTX 4090",
        24,
        _speeds(
            (100, 126),
            (126, 150),
            "FLUX.1-dev at 1024 px: 1.7 steps/s in the README of flux-fp8-api; the low end is an "
            "estimate",
            "estimate: up to nine tenths of its peak of 165",
        ),
    ),
}


def machine_here() -> Machine | None:
    """Return the machine of the table that this one is, if it is one."""
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name().lower()
    return next((machine for key, machine in MACHINES.items() if key in name), None)


def measure(config: RunConfig, flops_per_image: float) -> Speed:
    """Sample a few batches of ``MEASURED_STEPS`` steps here.

    Everything that sampling does is in the time: the transformer, the VAE and the host.

    Args:
        config: of the run.
        flops_per_image: of one image at that number of steps, its prompt not encoded.

    Raises:
        CalibriError: the pipeline cannot be loaded or sampled from.
    """
    pipe = load_pipeline(
        config.pipeline,
        revision=config.revision,
        lora=config.lora,
        dtype=config.dtype,
        device=config.device,
    )
    sampler = Sampler(pipe, config.sampling)
    prompts = make_prompts(sample_prompts(config.sampling.batch_size, 0, "train"))
    noises = [Noise(prompt, index) for index, prompt in enumerate(prompts)]
    fidelity = Fidelity(num_inference_steps=MEASURED_STEPS)
    sampler.sample(noises, fidelity)  # encodes the prompts, and warms up
    seconds = []
    for _ in range(_TIMED_CALLS):
        started = time.perf_counter()
        sampler.sample(noises, fidelity)
        seconds.append(time.perf_counter() - started)
    tera = len(noises) * flops_per_image / 1e12
    return Speed(
        label="measured here",
        low=tera / max(seconds),
        high=tera / min(seconds),
        source=f"{_TIMED_CALLS} batches of {len(noises)} images at {MEASURED_STEPS} steps",
    )

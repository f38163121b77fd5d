"""B1 and B2: images per second and text encoder calls, ours against the reference procedure.

Both run on the shipped pipeline in this process, each with the candidates and the bucket of its own
generation: the reference's 13 x 16, and whatever ``calibri calibrate`` asks for. Their images are
compared before anything is timed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks.machine import Row, Spread, alternating, threads
from benchmarks.reference import Procedure, Settings
from calibri.arrays import Vector
from calibri.coefficients import Coefficients
from calibri.config import load_config
from calibri.pipelines import load_pipeline
from calibri.progress import Progress
from calibri.rewards import Reward
from calibri.runs import Session, planned_images
from calibri.runs.loop import SearchLoop
from calibri.scoring import Evaluator, Ledger, Local, MemoryRecords


@dataclass(frozen=True)
class Pair:
    """The same pipeline twice: with our evaluator, and with the reference procedure."""

    session: Session
    reference: Procedure


def make_pair(**values: Any) -> Pair:
    """Set both up with the same steps and guidance.

    Args:
        values: changes to the default configuration, by dotted key.
    """
    session = Session(load_config(values=values))
    sampling = session.config.sampling
    settings = Settings(sampling.num_inference_steps, sampling.guidance_scale)
    pipe = load_pipeline(session.config.pipeline, device=session.config.device)
    reward = session.bench.measures.rewards[session.config.rewards.objective]
    train, held_out = ([p.text for p in s] for s in (session.prompts.train, session.prompts.test))
    return Pair(session, Procedure(pipe, on_pictures(reward), train, held_out, settings))


def on_pictures(reward: Reward) -> Any:
    """Let a reward score PIL images."""

    def score(images: list[Image.Image], prompts: list[str]) -> list[float]:
        values: list[float] = reward.score(pixels(images), prompts).tolist()
        return values

    return score


def pixels(images: Sequence[Image.Image]) -> Tensor:
    """PIL images as uint8 (N, 3, H, W)."""
    arrays = np.stack([np.asarray(image) for image in images])
    return torch.from_numpy(arrays).permute(0, 3, 1, 2).contiguous()


def coefficients(reference: Procedure, vector: Vector) -> Coefficients:
    """Name a vector of the reference procedure as ours."""
    gates = reference.gates
    return Coefficients(
        granularity="gate",
        scales=tuple(gates.named(vector)),
        output_weights=tuple(vector[gates.is_output]),
        start_weights=reference.settings.start_weights,
    )


def largest_difference(pair: Pair, count: int = 8) -> int:
    """Largest difference of any pixel, in levels of 255, over a few random candidates."""
    found = 0
    start = pair.reference.gates.start
    for number in range(count):
        noise = np.random.default_rng(number).standard_normal(start.size)
        vector = start + 0.25 * noise
        noises = pair.session.noises("check", number, pair.session.prompts.train[:4])
        texts, seeds = [n.prompt.text for n in noises], [n.seed for n in noises]
        theirs = pixels(pair.reference.sample(vector, texts, seeds)).int()
        ours = pair.session.sample(coefficients(pair.reference, vector), noises).int()
        found = max(found, int((ours - theirs).abs().max()))
    return found


def throughput(pair: Pair, repeats: int) -> tuple[list[Row], dict[str, Any]]:
    """B1: images per second."""
    difference = largest_difference(pair)
    if difference > 1:
        raise RuntimeError(f"The images differ by {difference} levels of 255; nothing was timed.")
    count = torch.get_num_threads()
    planned = sum(planned_images(pair.session).values())
    started = time.perf_counter()
    with pair.session.evaluator(Ledger(MemoryRecords()), images=planned) as evaluator:
        search = SearchLoop(pair.session, evaluator, Progress())
        images = [next(search).images]  # warm up; workers load their models
        first = time.perf_counter() - started
        with threads(count):
            pair.reference.score(pair.reference.gates.start, *pair.reference.bucket())

        def theirs(repeat: int) -> None:
            with threads(count):
                pair.reference.step()

        our_times, their_times = alternating(
            lambda repeat: images.append(next(search).images), theirs, repeats
        )
    before = pair.reference.search.popsize * pair.reference.settings.bucket_size
    counts = np.diff(images).tolist()
    ours = Spread(tuple(n / t for n, t in zip(counts, our_times, strict=True)))
    reference = Spread(tuple(before / t for t in their_times))
    pairs = zip(ours.values, reference.values, strict=True)
    ratio = Spread(tuple(a / b for a, b in pairs))
    startup = max(0.0, first - images[0] / ours.median)
    steps = pair.session.config.sampling.num_inference_steps
    guidance = pair.session.config.sampling.guidance_scale
    what = f"{steps} steps, guidance {guidance:g}"
    rows = [
        Row("B1", f"images/s, reference procedure, {what}, {count} threads", reference.text(1)),
        Row("B1", f"images/s, ours, {what}", ours.text(1)),
        Row("B1", "images/s, ours / reference", ratio.text(), "2 to 4"),
        Row("B1", "start of the evaluator and its workers, once, s", f"{startup:.1f}"),
        Row("B1", "largest difference of a pixel, of 255", str(difference), "<= 1"),
    ]
    figures = {
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "reference_threads": count,
        "images_per_second_reference": reference.values,
        "images_per_second_ours": ours.values,
        "ratio_median": ratio.median,
        "startup_seconds": startup,
        "largest_pixel_difference": difference,
    }
    return rows, figures


@contextmanager
def counted(encoder: nn.Module) -> Iterator[list[int]]:
    """Collect the number of texts of every call of a text encoder."""
    calls: list[int] = []

    def count(module: nn.Module, args: Any, kwargs: Any) -> None:
        calls.append(len(args[0] if args else kwargs["input_ids"]))

    handle = encoder.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


def encoder_calls(pair: Pair) -> tuple[list[Row], dict[str, Any]]:
    """B2: calls of a text encoder in one generation; no timing."""
    with counted(pair.reference.pipe.text_encoder) as theirs:
        pair.reference.step()
    backend = Local(pair.session.bench)
    sampling = pair.session.config.sampling

    def first_generation() -> list[int]:
        full = pair.session.bench.sampler.full
        evaluator = Evaluator(backend, sampling.batch_size, full, Ledger(MemoryRecords()))
        with counted(pair.session.bench.pipe.text_encoder) as calls:
            next(SearchLoop(pair.session, evaluator, Progress()))
        return calls

    first, again = first_generation(), first_generation()
    backend.close()
    what, size = "texts encoded in a generation", pair.session.config.search.bucket_size
    rows = [
        Row("B2", f"{what}, reference", f"{sum(theirs)} in {len(theirs)} calls"),
        Row("B2", f"{what}, ours", f"{sum(first)} in {len(first)} calls", str(size)),
        Row("B2", "texts encoded when the prompts come again, ours", str(sum(again)), "0"),
    ]
    return rows, {"reference": sum(theirs), "ours": sum(first), "ours_again": sum(again)}

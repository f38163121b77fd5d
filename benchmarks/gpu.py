"""What calibration costs on a GPU, at the geometry of FLUX.1-dev and SD3.5-medium.

    python -m benchmarks.gpu [--only G1 G3] [--folder FOLDER]
    python -m benchmarks.gpu --tiny        # tiny networks, on a CPU too: does everything run?

Weights and inputs are random, 512 x 512 pixels, bf16. Needs torch and diffusers; G6 and G7 need
transformers too. Takes under 10 minutes on one H200. What fails is said at the end and stops
nothing else.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._dynamo.utils import counters

from benchmarks import gpu_models as models
from benchmarks import machine
from benchmarks.gpu_bench import Bench, Figures, NotHereError, compiled, forward, free, scaled
from benchmarks.gpu_models import Inputs
from benchmarks.machine import Spread

LIMIT_SECONDS = 540.0
CANDIDATES = 100


def reference(bench: Bench) -> None:
    """G1: eager, 4 images, without hooks and with a plain hook on every gate."""
    geometry, model = bench.flux_geometry, bench.flux()
    inputs = bench.inputs(geometry, 4)
    bench.add_forward(
        "G1", "eager, no hooks", geometry, 4, bench.time(partial(forward, model, inputs))
    )
    hooks = models.PlainHooks(model)
    hooks.set([1.1] * len(hooks))
    seconds = bench.time(partial(forward, model, inputs))
    hooks.remove()
    bench.image_seconds = bench.add_forward("G1", "eager, plain hooks", geometry, 4, seconds)


def per_row(bench: Bench) -> None:
    """G2: eager, every row with scales of its own."""
    geometry, model = bench.flux_geometry, bench.flux()
    for rows in bench.batches(8, 16, 32):
        inputs = bench.inputs(geometry, rows)
        with scaled(model, rows):
            seconds = bench.time(partial(forward, model, inputs))
        bench.add_forward("G2", "eager, scales for every row", geometry, rows, seconds)


def _compiled_rows(bench: Bench, item: str, what: str, rows: int, **options: Any) -> None:
    """Time compiled forwards, and count graphs made while candidates change."""
    geometry, model = bench.flux_geometry, bench.flux()
    inputs = bench.inputs(geometry, rows)
    with scaled(model, rows) as change, compiled(bench, model, **options):
        started = time.perf_counter()
        forward(model, inputs)
        bench.wait()
        first = time.perf_counter() - started
        before = counters["stats"]["unique_graphs"]
        seeds = iter(range(10**6))

        def step() -> None:
            change(next(seeds))
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
            forward(model, inputs)

        seconds = bench.time(step, max(bench.repeats, -(-CANDIDATES // rows)))
        made = counters["stats"]["unique_graphs"] - before
    bench.add_forward(item, what, geometry, rows, seconds)
    bench.add(
        item,
        f"{what}: over {CANDIDATES} candidates",
        graphs=before,
        recompiled=made,
        first_seconds=first,
    )


def compile_blocks(bench: Bench) -> None:
    """G3: compiled blocks, every row with scales of its own."""
    for rows in bench.batches(8, 16):
        _compiled_rows(bench, "G3", "compiled blocks", rows)


def cuda_graphs(bench: Bench) -> None:
    """G3: compiled blocks in CUDA graphs."""
    if not bench.device.startswith("cuda"):
        raise NotHereError("CUDA graphs need a GPU")
    _compiled_rows(bench, "G3", "compiled blocks, CUDA graphs", 8, mode="reduce-overhead")


def fp8(bench: Bench) -> None:
    """G4: linear layers in 8-bit floats with scales found as they run, compiled blocks."""
    if bench.device.startswith("cuda") and torch.cuda.get_device_capability() < (8, 9):
        raise NotHereError("8-bit floats need a GPU of compute capability 8.9 or higher")
    model = bench.flux()
    inputs = bench.inputs(bench.flux_geometry, 4)
    exact = forward(model, inputs).float()
    try:
        count = models.quantise(model)
        error = (forward(model, inputs).float() - exact).norm() / exact.norm()
        bench.add("G4", "8-bit linear layers", layers=count, relative_error=float(error))
        for rows in bench.batches(8, 16):
            _compiled_rows(bench, "G4", "8-bit linear layers, compiled blocks", rows)
    finally:
        bench.drop_flux()


def block_cache(bench: Bench) -> None:
    """G5: first-block cache that skips a given share of the forwards, whatever they show."""
    from diffusers import FirstBlockCacheConfig
    from diffusers.hooks.first_block_cache import FBCHeadBlockHook

    geometry, model = bench.flux_geometry, bench.flux()
    any_model: Any = model
    rows, steps = (2, 4) if bench.tiny else (8, 12)
    inputs = bench.inputs(geometry, rows)
    for share, every in ((0.0, 0), (1 / 3, 3), (1 / 2, 2)):
        calls = iter(range(10**6))

        def needed(hook: object, residual: Tensor, calls: Any = calls, every: int = every) -> bool:
            number = next(calls) % steps
            return every == 0 or number % every != every - 1

        def generation() -> None:
            with any_model.cache_context("cond"):
                for _ in range(steps):
                    forward(model, inputs)

        name = "_should_compute_remaining_blocks"
        with scaled(model, rows), mock.patch.object(FBCHeadBlockHook, name, needed):
            any_model.enable_cache(FirstBlockCacheConfig())
            try:
                seconds = bench.time(generation, 2)
            finally:
                any_model.disable_cache()
        one = Spread(tuple(t / steps for t in seconds.values))
        bench.add_forward("G5", f"eager, {share:.0%} of forwards skipped", geometry, rows, one)


def _alone(bench: Bench, name: str, images: int, work: Callable[[], object]) -> None:
    with torch.no_grad():
        seconds = bench.time(work).median / images
    share = {"share_of_G1": seconds / bench.image_seconds} if bench.image_seconds else {}
    bench.add("G6", f"{name}, {images} images", image_seconds=seconds, **share)


def text_encoder(bench: Bench) -> None:
    """G6: the text encoder alone, as a share of an image's time."""
    encoder = models.make_text_encoder(bench.device, bench.dtype, tiny=bench.tiny)
    images, tokens = (2, 5) if bench.tiny else (16, 512)
    ids = torch.arange(images * tokens).view(images, tokens).remainder(60).to(bench.device)
    _alone(bench, "T5 XXL", images, lambda: encoder(ids))


def vae_decoder(bench: Bench) -> None:
    """G6: the VAE decoder alone, as a share of an image's time."""
    vae: Any = models.make_vae(bench.device, bench.dtype, tiny=bench.tiny)
    images, side = (2, 8) if bench.tiny else (16, 64)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(images, 16, side, side, generator=generator)
    latents = latents.to(bench.device, bench.dtype)
    _alone(bench, "VAE decoder", images, lambda: vae.decode(latents))


def reward(bench: Bench) -> None:
    """G6: the reward alone, as a share of an image's time."""
    network = models.make_reward(bench.device, bench.dtype, tiny=bench.tiny)
    images = 2 if bench.tiny else 16
    given = models.reward_inputs(network, images, bench.device, bench.dtype)
    _alone(bench, "HPSv3", images, lambda: network(*given))


def overlap(bench: Bench) -> None:
    """G7: the reward after each unit, or on a stream of its own during the next one.

    A unit has a third of the steps and a third of the rewards: the proportion of a whole one.
    """
    geometry, model = bench.flux_geometry, bench.flux()
    rows, count = 6, 3
    network = models.make_reward(bench.device, bench.dtype, tiny=bench.tiny)
    given = models.reward_inputs(network, rows // 3, bench.device, bench.dtype)
    inputs = bench.inputs(geometry, rows)
    cuda = bench.device.startswith("cuda")

    def score() -> None:
        stream = torch.cuda.Stream() if cuda else None  # type: ignore[no-untyped-call]
        with torch.no_grad(), torch.cuda.stream(stream):
            network(*given)
        if stream is not None:
            stream.synchronize()

    def sample() -> None:
        for _ in range(geometry.steps // 3):
            latents = forward(model, inputs)
        latents.float().mean().cpu()  # waits for the images, as the product does

    def units(aside: bool) -> None:
        with ThreadPoolExecutor(1) as pool:
            for _ in range(count):
                sample()
                future = pool.submit(score)
                if not aside:
                    future.result()

    with scaled(model, rows):
        after, aside = bench.time(lambda: units(False), 2), bench.time(lambda: units(True), 2)
    for what, seconds in (("after it", after), ("during the next", aside)):
        per_image = 3 * seconds.median / (count * rows)
        bench.add("G7", f"{count} units, reward {what}", image_seconds=per_image)
    bench.add("G7", "overlap", speedup=after.median / aside.median)


def guidance(bench: Bench) -> None:
    """G8: SD3.5, both branches in one batch against two calls that wait for the device."""
    geometry = bench.sd3_geometry
    model = geometry.make(bench.device, bench.dtype)
    for images in bench.batches(4, 16):
        one, both = bench.inputs(geometry, images), bench.inputs(geometry, 2 * images)

        def two_calls(one: Inputs = one) -> None:
            for _ in range(2):
                forward(model, one).abs().max().item()

        with scaled(model, 1):
            seconds = bench.time(two_calls)
        first = bench.add_forward("G8", "eager, two calls", geometry, images, seconds, 2)
        with scaled(model, 2 * images):
            seconds = bench.time(partial(forward, model, both))
            second = bench.add_forward("G8", "eager, one batch", geometry, images, seconds, 2)
        with scaled(model, 2 * images), compiled(bench, model):
            seconds = bench.time(partial(forward, model, both))
            third = bench.add_forward("G8", "compiled, one batch", geometry, images, seconds, 2)
        bench.add("G8", f"{images} images", one_batch_x=first / second, compiled_x=second / third)


# What needs FLUX.1-dev as it is comes before what quantises it.
Items = tuple[tuple[str, Callable[[Bench], None]], ...]
ITEMS: Items = (
    ("G1", reference),
    ("G2", per_row),
    ("G5", block_cache),
    ("G7", overlap),
    ("G3", compile_blocks),
    ("G3", cuda_graphs),
    ("G4", fp8),
    ("G6", text_encoder),
    ("G6", vae_decoder),
    ("G6", reward),
    ("G8", guidance),
)


def run(bench: Bench, only: list[str] | None, items: Items = ITEMS) -> list[Figures]:
    """Run the items one after the other and say which failed."""
    started = time.perf_counter()
    failed = []
    for name, item in items:
        if only and name not in only:
            continue
        what = (item.__doc__ or "").splitlines()[0]
        try:
            if time.perf_counter() - started > LIMIT_SECONDS:
                raise NotHereError(f"{LIMIT_SECONDS:.0f} s were used up before it")
            item(bench)
        except Exception as error:  # one item must not stop the others
            reason = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
            failed.append({"item": name, "what": what, "reason": reason})
        free(bench)
    for row in failed:
        print(f"FAILED {row['what']} {row['reason']}")
    return failed


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true", help="tiny networks")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="+", help="items, such as G1 G3")
    parser.add_argument("--folder", type=Path, default=machine.RESULTS)
    options = parser.parse_args(arguments)
    if options.device == "cpu" and not options.tiny:
        parser.error("there is no GPU here; add --tiny to see whether everything runs")
    machine.quiet()
    bench = Bench(options.device, options.tiny, options.repeats)
    failed = run(bench, options.only)
    name = "gpu-tiny" if options.tiny else "gpu"
    machine.save(name, {"rows": bench.rows, "failed": failed}, options.folder)


if __name__ == "__main__":
    main()

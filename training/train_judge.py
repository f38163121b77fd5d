"""Train the judge on rendered scenes, near misses and damaged pictures.

python training/train_judge.py --minutes 7 --seed 0 --output src/calibri/shapes/judge
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.multiprocessing as mp
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from calibri.rewards.shapes_judge import (
    CONFIG_FILE,
    FORMAT,
    WEIGHTS_FILE,
    JudgeNetwork,
    encode_captions,
)
from calibri.seeds import derive_seed
from calibri.shapes import Scene, caption, held_out, render_batch, sample_scene
from calibri.shapes.variations import DAMAGES, NEAR_MISSES
from parallel import Log, Optimizer, join, train

LEARNING_RATE = 1.5e-3
WARMUP_STEPS = 200
EMA_DECAY = 0.998
WIDTHS, CONDITION = (32, 48, 64), 64
CHUNK = 256
# Shares of the pictures: right, near miss, damaged; the rest has the caption of another picture.
RIGHT, NEAR, DAMAGED = 0.40, 0.40, 0.17
LARGEST_HARMLESS_NOISE = 4.0  # of 255, on every picture: no verdict hangs on the last bits
TEST_SCENES = 2000


@dataclass(frozen=True)
class Job:
    """What one training is asked to do."""

    seconds: float
    seed: int
    batch_size: int
    workers: int
    output: Path
    log: Path
    scratch: Path


def near_miss(scene: Scene, generator: torch.Generator) -> Scene:
    """A scene that is wrong in one respect, each respect that applies being equally likely."""
    misses = [miss(scene, generator) for miss in NEAR_MISSES.values()]
    found = [miss for miss in misses if miss is not None]
    return found[int(torch.randint(len(found), (1,), generator=generator))]


def harmless_noise(images: Tensor, generator: torch.Generator) -> Tensor:
    """Noise too weak to matter, of another strength in every picture."""
    level = LARGEST_HARMLESS_NOISE * torch.rand((len(images), 1, 1, 1), generator=generator)
    noisy = images + level * torch.randn(images.shape, generator=generator)
    return noisy.round().clamp(0, 255).to(torch.uint8)


def damage_some(images: Tensor, rows: Tensor, generator: torch.Generator) -> None:
    """Damage the given rows in place, every kind of damage to an equal share."""
    for damage, share in zip(DAMAGES.values(), rows.chunk(len(DAMAGES)), strict=False):
        images[share] = damage(images[share], generator)


def draw_chunk(split: str, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures, slot vectors and labels (1 for right and undamaged) of one split's captions."""
    scenes = [sample_scene(generator) for _ in range(CHUNK)]
    scenes = [s for s in scenes if held_out(caption(s)) == (split == "held_out")]
    count = len(scenes)
    right, near, damaged = int(RIGHT * count), int(NEAR * count), int(DAMAGED * count)
    shown = list(scenes)
    for row in range(right, right + near):
        shown[row] = near_miss(scenes[row], generator)
    images = render_batch(shown, generator)
    damage_some(images, torch.arange(right + near, right + near + damaged), generator)
    images = harmless_noise(images, generator)
    texts = [caption(scene) for scene in scenes]
    texts[right + near + damaged :] = texts[: count - right - near - damaged]
    labels = (torch.arange(count) < right).float()
    order = torch.randperm(count, generator=generator)
    return images[order], encode_captions(texts)[order], labels[order]


def batches(size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Endless training batches."""
    while True:
        chunk = draw_chunk("train", generator)
        for start in range(0, len(chunk[0]) - size + 1, size):
            images, captions, labels = (part[start : start + size] for part in chunk)
            yield images, captions, labels


def rates(network: JudgeNetwork, seed: int) -> dict[str, object]:
    """Accepted share of right pictures, rejected share of every kind of wrong one, held out."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "judge test"))
    scenes = [sample_scene(generator) for _ in range(5 * TEST_SCENES)]
    scenes = [scene for scene in scenes if held_out(caption(scene))][:TEST_SCENES]
    captions = encode_captions([caption(scene) for scene in scenes])
    right = render_batch(scenes, generator)

    @torch.no_grad()
    def accepted(images: Tensor, rows: list[int]) -> float:
        parts = zip(images.split(200), captions[rows].split(200), strict=True)
        return torch.cat([network(*part) > 0 for part in parts]).float().mean().item()

    everyone = list(range(len(scenes)))
    result: dict[str, object] = {"accepted": round(accepted(right, everyone), 3)}
    for name, miss in NEAR_MISSES.items():
        missed = [(i, miss(scene, generator)) for i, scene in enumerate(scenes)]
        found = [(i, other) for i, other in missed if other is not None]
        pictures = render_batch([other for _, other in found], generator)
        result[f"rejected {name}"] = round(1 - accepted(pictures, [i for i, _ in found]), 3)
    for name, damage in DAMAGES.items():
        result[f"rejected {name}"] = round(1 - accepted(damage(right, generator), everyone), 3)
    result["rejected shuffled"] = round(1 - accepted(right.roll(1, 0), everyone), 3)
    return result


def save(network: JudgeNetwork, folder: Path) -> None:
    """Write weights in half precision and the configuration; the folder appears whole."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    weights = {name: value.half().contiguous() for name, value in network.state_dict().items()}
    save_file(weights, partial / WEIGHTS_FILE)
    config = {"format": FORMAT, "widths": WIDTHS, "condition": CONDITION}
    (partial / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)


def work(rank: int, job: Job) -> None:
    """The body of one process."""
    join(rank, job.workers, job.scratch / "rendezvous")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(job.seed, "judge weights"))
        network = JudgeNetwork(WIDTHS, CONDITION)
    optimizer = Optimizer(network, LEARNING_RATE, WARMUP_STEPS, EMA_DECAY)
    generator = torch.Generator().manual_seed(derive_seed(job.seed, "judge data", rank))
    data = batches(job.batch_size // job.workers, generator)

    def backward() -> float:
        images, captions, labels = next(data)
        loss = functional.binary_cross_entropy_with_logits(network(images, captions), labels)
        loss.backward()
        return float(loss)

    log = Log(job.log, every=max(2.0, job.seconds / 100))
    train(backward, optimizer, log, job.seconds)
    if rank == 0:
        optimizer.averaged_into(network)
        save(network, job.output)
        log.write(rates(network, job.seed))


def main() -> None:
    """Read the command line and start the processes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=7)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--log", type=Path, default=Path(__file__).parent / "logs/judge.jsonl")
    args = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="calibri-judge-"))
    seconds = args.minutes * 60
    job = Job(seconds, args.seed, args.batch_size, args.workers, args.output, args.log, scratch)
    mp.spawn(work, (job,), nprocs=job.workers)


if __name__ == "__main__":
    main()

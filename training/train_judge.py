"""Train the judge on rendered scenes, near misses and damaged pictures.

python training/train_judge.py --minutes 14 --seed 0 --output src/calibri/shapes/judge
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

from calibri.seeds import derive_seed
from calibri.shapes.judge_network import (
    CONFIG_FILE,
    FORMAT,
    WEIGHTS_FILE,
    JudgeNetwork,
    encode_captions,
)
from calibri.shapes.render import render_batch
from calibri.shapes.scenes import Scene, caption, held_out, sample_scene
from calibri.shapes.variations import DAMAGES, NEAR_MISSES, wrong_relation
from parallel import Log, Optimizer, join, train

LEARNING_RATE = 1.5e-3
WARMUP_STEPS = 200
EMA_DECAY = 0.998
WIDTHS, CONDITION = (32, 48, 64), 64
CHUNK = 256
DAMAGED, SHUFFLED = 0.35, 0.15  # for every right picture; there is also one near miss
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


def near_miss(scene: Scene, generator: torch.Generator) -> Scene | None:
    """A scene of the training split that is wrong in one respect.

    All respects that apply are equally likely but the relation, the hardest, which is twice so.
    """
    misses = [miss(scene, generator) for miss in (*NEAR_MISSES.values(), wrong_relation)]
    found = [miss for miss in misses if miss is not None and not held_out(caption(miss))]
    return found[int(torch.randint(len(found), (1,), generator=generator))] if found else None


def harmless_noise(images: Tensor, generator: torch.Generator) -> Tensor:
    """Noise too weak to matter, of another strength in every picture."""
    level = LARGEST_HARMLESS_NOISE * torch.rand((len(images), 1, 1, 1), generator=generator)
    noisy = images + level * torch.randn(images.shape, generator=generator)
    return noisy.round().clamp(0, 255).to(torch.uint8)


def damage(images: Tensor, generator: torch.Generator) -> Tensor:
    """Damage pictures, every kind of damage an equal share."""
    kinds = torch.randint(len(DAMAGES), (len(images),), generator=generator)
    result = images.clone()
    for kind, hurt in enumerate(DAMAGES.values()):
        if len(rows := (kinds == kind).nonzero()[:, 0]):
            result[rows] = hurt(images[rows], generator)
    return result


@dataclass(frozen=True)
class Batch:
    """Right pictures followed by damaged ones, with the captions of both and near misses."""

    images: Tensor  # (right + damaged, 3, 24, 24)
    captions: Tensor  # (right + damaged, 34)
    misses: Tensor  # (right, 34)

    def loss(self, network: JudgeNetwork) -> Tensor:
        """Cross entropy over right, near-miss, damaged and shuffled pairs.

        A picture is seen once and judged with several captions: pairs that differ in the caption
        alone teach what the caption means.
        """
        right = len(self.misses)
        features = network.feature_map(self.images)
        shuffled = int(SHUFFLED * right)
        logits = network.verdict(
            torch.cat([features, features[:right], features[:shuffled]]),
            torch.cat([self.captions, self.misses, self.captions[:right].roll(1, 0)[:shuffled]]),
        )
        labels = (torch.arange(len(logits)) < right).float()
        return functional.binary_cross_entropy_with_logits(logits, labels)


def batches(size: int, generator: torch.Generator) -> Iterator[Batch]:
    """Endless training batches of ``size`` right pictures."""
    while True:
        drawn = [sample_scene(generator) for _ in range(CHUNK)]
        pairs = [(s, near_miss(s, generator)) for s in drawn if not held_out(caption(s))]
        scenes = [scene for scene, miss in pairs if miss is not None]
        misses = encode_captions([caption(miss) for _, miss in pairs if miss is not None])
        captions = encode_captions([caption(scene) for scene in scenes])
        images = render_batch(scenes, generator)
        for start in range(0, len(scenes) - size + 1, size):
            rows = slice(start, start + size)
            some = slice(start, start + int(DAMAGED * size))
            pictures = torch.cat([images[rows], damage(images[some], generator)])
            yield Batch(
                harmless_noise(pictures, generator),
                torch.cat([captions[rows], captions[some]]),
                misses[rows],
            )


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
    for name, hurt in DAMAGES.items():
        result[f"rejected {name}"] = round(1 - accepted(hurt(right, generator), everyone), 3)
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
        loss = next(data).loss(network)
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
    parser.add_argument("--minutes", type=float, default=14)
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

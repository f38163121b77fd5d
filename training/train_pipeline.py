"""Train the shipped pipeline on rendered scenes with flow matching.

python training/train_pipeline.py --minutes 40 --seed 0 --output src/calibri/shapes/pipeline
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.multiprocessing as mp
from torch import Tensor, nn

from calibri.seeds import derive_seed
from calibri.shapes.render import render_batch
from calibri.shapes.scenes import caption, held_out, sample_scene
from components import (
    MAX_TOKENS,
    NULL_TOKENS,
    WIDTHS,
    build_pipeline,
    build_tokenizer,
    save_pipeline,
    to_latents,
)
from parallel import Log, Optimizer, join, train

LEARNING_RATE = 2e-3
WARMUP_STEPS = 200
EMA_DECAY = 0.999
CAPTION_DROPOUT = 0.1
UNIFORM_SHARE = 0.2  # of the timesteps; the others are logit-normal
CHUNK = 256  # scenes rendered at once: the fields of a chunk fit the cache
CHECKPOINT_SECONDS = 300.0


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


class SceneStream:
    """An endless stream of rendered training scenes: latents (3, 24, 24) and token ids (12)."""

    def __init__(self, seed: int, rank: int) -> None:
        self._generator = torch.Generator().manual_seed(derive_seed(seed, "data", rank))
        self._tokenizer = build_tokenizer(MAX_TOKENS)
        self._ids: dict[str, Tensor] = {}
        self._latents = torch.empty(0)
        self._tokens = torch.empty(0)

    def _token_ids(self, text: str) -> Tensor:
        if text not in self._ids:
            encoded = self._tokenizer(text, padding="max_length", max_length=MAX_TOKENS)
            self._ids[text] = torch.tensor(encoded.input_ids)
        return self._ids[text]

    def _refill(self) -> None:
        scenes = [sample_scene(self._generator) for _ in range(CHUNK)]
        scenes = [scene for scene in scenes if not held_out(caption(scene))]
        dropped = torch.rand(len(scenes), generator=self._generator) < CAPTION_DROPOUT
        texts = ["" if drop else caption(s) for s, drop in zip(scenes, dropped, strict=True)]
        self._latents = to_latents(render_batch(scenes, self._generator))
        self._tokens = torch.stack([self._token_ids(text) for text in texts])

    def take(self, count: int) -> tuple[Tensor, Tensor]:
        """The next ``count`` latents and token ids."""
        if len(self._latents) < count:
            self._refill()
        batch = self._latents[:count], self._tokens[:count]
        self._latents, self._tokens = self._latents[count:], self._tokens[count:]
        return batch


class Velocity(nn.Module):
    """Text encoders and transformer as the stock pipeline joins them."""

    def __init__(self, encoders: list[nn.Module], transformer: nn.Module) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(encoders)
        self.transformer = transformer

    def forward(self, noisy: Tensor, tokens: Tensor, sigma: Tensor) -> Tensor:
        """Predict noise minus data: (N, 3, 24, 24)."""
        encoded = [encoder(tokens, output_hidden_states=True) for encoder in self.encoders]
        text = torch.cat([out.hidden_states[-2] for out in encoded], dim=-1)
        null = text.new_zeros(len(text), NULL_TOKENS, sum(WIDTHS))
        return self.transformer(
            hidden_states=noisy,
            encoder_hidden_states=torch.cat([text, null], dim=1),
            pooled_projections=torch.cat([out.text_embeds for out in encoded], dim=-1),
            timestep=sigma * 1000,
            return_dict=False,
        )[0]


def draw_sigmas(count: int, generator: torch.Generator) -> Tensor:
    """Noise levels in (0, 1), stratified over the batch: 80 % logit-normal, 20 % uniform."""
    strata = torch.randperm(count, generator=generator)
    u = (strata + torch.rand(count, generator=generator)) / count
    u = u.clamp(1e-4, 1 - 1e-4)
    uniform = torch.rand(count, generator=generator) < UNIFORM_SHARE
    return torch.where(uniform, u, torch.sigmoid(torch.special.ndtri(u)))


class Trainer:
    """One of the processes; all hold the same weights after every step."""

    def __init__(self, job: Job, rank: int) -> None:
        self.job, self.rank = job, rank
        pipeline = build_pipeline(derive_seed(job.seed, "weights"))
        encoders = [pipeline.text_encoder, pipeline.text_encoder_2]
        model = Velocity(encoders, pipeline.transformer).train()
        self.optimizer = Optimizer(model, LEARNING_RATE, WARMUP_STEPS, EMA_DECAY)
        self.compiled = torch.compile(model)
        self.stream = SceneStream(job.seed, rank)
        self.generator = torch.Generator().manual_seed(derive_seed(job.seed, "noise", rank))
        self.last_save = 0.0

    def backward(self) -> float:
        """Gradient of one share of a batch; returns its loss."""
        latents, tokens = self.stream.take(self.job.batch_size // self.job.workers)
        sigma = draw_sigmas(len(latents), self.generator)
        noise = torch.randn(latents.shape, generator=self.generator)
        noisy = torch.lerp(latents, noise, sigma.view(-1, 1, 1, 1))
        loss = (self.compiled(noisy, tokens, sigma) - (noise - latents)).square().mean()
        loss.backward()
        return float(loss)

    def save(self, folder: Path) -> None:
        """Write a pipeline folder with the averaged weights."""
        if self.rank > 0:
            return
        pipeline = build_pipeline(derive_seed(self.job.seed, "weights"))
        trained = [pipeline.text_encoder, pipeline.text_encoder_2]
        self.optimizer.averaged_into(Velocity(trained, pipeline.transformer))
        for name in ("transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3"):
            getattr(pipeline, name).half()
        save_pipeline(pipeline, folder)

    def checkpoint(self, seconds: float) -> None:
        """Write a preliminary pipeline now and then."""
        if seconds - self.last_save > CHECKPOINT_SECONDS:
            self.save(self.job.scratch / f"minute-{round(seconds / 60):02d}")
            self.last_save = seconds


def work(rank: int, job: Job) -> None:
    """The body of one process."""
    join(rank, job.workers, job.scratch / "rendezvous")
    trainer = Trainer(job, rank)
    log = Log(job.log, every=max(2.0, job.seconds / 240))
    train(trainer.backward, trainer.optimizer, log, job.seconds, trainer.checkpoint)
    trainer.save(job.output)


def main() -> None:
    """Read the command line and start the processes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=48)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--log", type=Path, default=Path(__file__).parent / "logs/pipeline.jsonl")
    args = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="calibri-training-"))
    print(f"checkpoints: {scratch}", flush=True)
    seconds = args.minutes * 60
    job = Job(seconds, args.seed, args.batch_size, args.workers, args.output, args.log, scratch)
    mp.spawn(work, (job,), nprocs=job.workers)


if __name__ == "__main__":
    main()

"""Train the shipped pipeline on rendered scenes with flow matching.

Two processes of one thread each share a batch: for a model of this size threads inside one
process lose more in waiting than they gain.

    python training/train_pipeline.py --minutes 40 --seed 0 --output src/calibri/shapes/pipeline
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from calibri.seeds import derive_seed
from calibri.shapes import caption, held_out, render_batch, sample_scene
from components import (
    MAX_TOKENS,
    NULL_TOKENS,
    WIDTHS,
    build_pipeline,
    build_tokenizer,
    save_pipeline,
    to_latents,
)

LEARNING_RATE = 2e-3
BETAS = (0.9, 0.95)
WARMUP_STEPS = 200
CLIP_NORM = 1.0
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
    log_seconds: float
    output: Path
    log: Path
    checkpoints: Path
    rendezvous: Path


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


def learning_rate(progress: float, step: int) -> float:
    """Cosine over the wall clock after a linear warm-up."""
    warmup = min(1.0, (step + 1) / WARMUP_STEPS)
    return LEARNING_RATE * warmup * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def flatten_parameters(model: nn.Module) -> nn.Parameter:
    """One flat parameter whose slices are the model's: one reduction, one optimiser update."""
    parameters = list(model.parameters())
    flat = nn.Parameter(torch.cat([p.detach().flatten() for p in parameters]))
    flat.grad = torch.zeros_like(flat)
    start = 0
    for parameter in parameters:
        end = start + parameter.numel()
        parameter.data = flat.data[start:end].view_as(parameter)
        parameter.grad = flat.grad[start:end].view_as(parameter)
        start = end
    return flat


class Trainer:
    """One of the processes; all hold the same weights after every step."""

    def __init__(self, job: Job, rank: int) -> None:
        self.job, self.rank = job, rank
        self.pipeline = build_pipeline(derive_seed(job.seed, "weights"))
        encoders = [self.pipeline.text_encoder, self.pipeline.text_encoder_2]
        self.model = Velocity(encoders, self.pipeline.transformer).train()
        self.flat = flatten_parameters(self.model)
        self.average = self.flat.detach().clone()
        self.optimizer = torch.optim.AdamW([self.flat], lr=LEARNING_RATE, betas=BETAS, fused=True)
        self.stream = SceneStream(job.seed, rank)
        self.generator = torch.Generator().manual_seed(derive_seed(job.seed, "noise", rank))
        self.compiled = torch.compile(self.model)

    def backward(self) -> float:
        """Gradient of one share of a batch; returns its loss."""
        latents, tokens = self.stream.take(self.job.batch_size // self.job.workers)
        sigma = draw_sigmas(len(latents), self.generator)
        noise = torch.randn(latents.shape, generator=self.generator)
        noisy = torch.lerp(latents, noise, sigma.view(-1, 1, 1, 1))
        loss = (self.compiled(noisy, tokens, sigma) - (noise - latents)).square().mean()
        self.flat.grad.zero_()  # type: ignore[union-attr]  # set by flatten_parameters
        loss.backward()
        return loss.item()

    def update(self, progress: float, step: int) -> None:
        """One optimiser step on the summed gradients."""
        self.flat.grad.div_(self.job.workers)  # type: ignore[union-attr]
        nn.utils.clip_grad_norm_([self.flat], CLIP_NORM)
        self.optimizer.param_groups[0]["lr"] = learning_rate(progress, step)
        self.optimizer.step()
        decay = min(EMA_DECAY, (step + 1) / (step + 10))
        self.average.lerp_(self.flat.detach(), 1 - decay)

    def save(self, folder: Path) -> None:
        """Write a pipeline folder with the averaged weights."""
        if self.rank == 0:
            pipeline = build_pipeline(derive_seed(self.job.seed, "weights"))
            trained = [pipeline.text_encoder, pipeline.text_encoder_2]
            copy = Velocity(trained, pipeline.transformer)
            nn.utils.vector_to_parameters(self.average.clone(), copy.parameters())
            for name in ("transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3"):
                getattr(pipeline, name).half()
            save_pipeline(pipeline, folder)

    def run(self) -> None:
        """Train for the job's time, which begins when the model is compiled."""
        self.backward()
        dist.barrier()
        start = last_log = last_save = time.monotonic()
        step, losses, progress = 0, [], 0.0
        while progress < 1:
            losses.append(self.backward())
            now = time.monotonic()
            # The processes must agree on when to stop, so the clock is shared like the loss.
            status = torch.tensor([losses[-1], (now - start) / self.job.seconds])
            dist.all_reduce(status)
            dist.all_reduce(self.flat.grad)
            losses[-1], progress = (status / self.job.workers).tolist()
            self.update(progress, step)
            step += 1
            if now - last_log > self.job.log_seconds or progress >= 1:
                self.log(step, sum(losses) / len(losses), now - start)
                last_log, losses = now, []
            if now - last_save > CHECKPOINT_SECONDS:
                self.save(self.job.checkpoints / f"minute-{round((now - start) / 60):02d}")
                last_save = now
        self.save(self.job.output)

    def log(self, step: int, loss: float, seconds: float) -> None:
        """Append a line: the step, the mean loss since the last line, seconds since the start."""
        if self.rank == 0:
            record = {"step": step, "loss": round(loss, 5), "seconds": round(seconds, 1)}
            with self.job.log.open("a") as file:
                file.write(json.dumps(record) + "\n")
            print(record, flush=True)


def work(rank: int, job: Job) -> None:
    """The body of one process."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    dist.init_process_group(
        "gloo", init_method=job.rendezvous.as_uri(), rank=rank, world_size=job.workers
    )
    Trainer(job, rank).run()
    dist.destroy_process_group()


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
    args.log.parent.mkdir(parents=True, exist_ok=True)
    args.log.write_text("")
    job = Job(
        seconds=args.minutes * 60,
        seed=args.seed,
        batch_size=args.batch_size,
        workers=args.workers,
        log_seconds=max(2.0, args.minutes * 60 / 240),
        output=args.output,
        log=args.log,
        checkpoints=scratch,
        rendezvous=scratch / "rendezvous",
    )
    mp.spawn(work, (job,), nprocs=job.workers)


if __name__ == "__main__":
    main()

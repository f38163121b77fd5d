"""Align a pipeline with a reward by Flow-GRPO: a LoRA on its transformer.

python training/align_pipeline.py --pipeline shapes --reward shapes --minutes 20 --output aligned

After Liu et al. 2025, *Flow-GRPO: Training Flow Matching Models via Online RL*, arXiv 2505.05470.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from adapter import Adapter
from calibri.config import SamplingConfig
from calibri.pipelines import load_pipeline
from calibri.prompts import Prompt, prompts_from
from calibri.rewards import make_reward
from calibri.sampling import Noise, Paths, Rollouts, Sampler, Transition
from calibri.scoring import advantages, policy_loss
from calibri.seeds import derive_seed
from parallel import join

CLIP_RANGE = 1e-4
UPDATES = 2  # of each epoch, on a half of its groups
PROMPTS = 5000  # of a generator of prompts, which could give any number


@dataclass(frozen=True)
class Job:
    """What one training is asked to do; see ``parse`` for the options."""

    pipeline: str
    reward: str
    prompts: str
    device: str
    seed: int
    workers: int
    groups: int
    group_size: int
    batch_size: int
    steps: int
    guidance_scale: float
    noise_level: float
    learning_rate: float
    divergence: float
    rank: int
    alpha: int
    minutes: float
    epochs: int | None
    evaluate_every: int
    num_evaluated: int
    output: Path
    log: Path

    @property
    def state(self) -> Path:
        """What an interrupted training goes on from."""
        return self.output.with_name(f".{self.output.name}.training") / "state.safetensors"

    @property
    def digest(self) -> str:
        """Of all that decides the weights, apart from when to stop."""
        free = {"minutes", "epochs", "output", "log", "device", "workers"}
        decisive = {name: str(value) for name, value in asdict(self).items() if name not in free}
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]


@dataclass
class Batch:
    """Groups of images that were sampled together.

    Attributes:
        noises: of the images, those of a group side by side.
        paths: how they were sampled.
        rewards: of each, (groups, images of a group).
    """

    noises: list[Noise]
    paths: Paths
    rewards: Tensor


class Trainer:
    """One of the processes; all hold the same LoRA after every update."""

    def __init__(self, job: Job, rank: int) -> None:
        self.job, self.rank = job, rank
        self.pipe = load_pipeline(job.pipeline, device=job.device)
        for part in self.pipe.components.values():
            if isinstance(part, nn.Module):
                part.requires_grad_(False)
        seed = derive_seed(job.seed, "lora")
        self.adapter = Adapter(self.pipe.transformer, job.rank, job.alpha, job.learning_rate, seed)
        sampling = SamplingConfig(
            num_inference_steps=job.steps,
            guidance_scale=job.guidance_scale,
            batch_size=job.batch_size,
        )
        self.sampler = Sampler(self.pipe, sampling)
        self.rollouts = Rollouts(self.sampler, job.noise_level)
        self.reward = make_reward(job.reward)
        held_out = prompts_from(job.prompts, "held_out", job.num_evaluated, job.seed)
        self.held_out = held_out[: job.num_evaluated]
        every = prompts_from(job.prompts, "train", PROMPTS, job.seed)
        self.prompts = [prompt for prompt in every if prompt not in self.held_out]
        self.epoch, self.seconds = 0, 0.0

    def run_epoch(self) -> dict[str, float]:
        """Sample groups, then update on one part of them after the other."""
        groups = self._groups()
        found: dict[str, list[float]] = {}
        batches = [self._sampled(part) for part in self._parts(groups)]
        spread = self._spread(batches)
        size = -(-len(batches) // UPDATES)
        for first in range(0, len(batches), size):
            self.adapter.zero_grad()
            chosen = batches[first : first + size]
            count = self._total(sum(len(batch.noises) for batch in chosen))
            for batch in chosen:
                for name, value in self._backward(batch, spread, count).items():
                    found.setdefault(name, []).append(value)
            self.adapter.step()
        self.epoch += 1
        return {name: sum(values) / len(values) for name, values in found.items()}

    def _groups(self) -> list[list[Noise]]:
        """Images of this process's share of the prompts of an epoch."""
        seed = derive_seed(self.job.seed, "prompts", self.epoch)
        order = torch.randperm(len(self.prompts), generator=torch.Generator().manual_seed(seed))
        drawn = [self.prompts[i] for i in order[: self.job.groups].tolist()]
        return [self._group(prompt) for prompt in drawn[self.rank :: self.job.workers]]

    def _group(self, prompt: Prompt) -> list[Noise]:
        seeds = [
            derive_seed(self.job.seed, "image", self.epoch, prompt.id, index)
            for index in range(self.job.group_size)
        ]
        return [Noise(prompt, seed) for seed in seeds]

    def _parts(self, groups: list[list[Noise]]) -> list[list[list[Noise]]]:
        """Whole groups that fit into a batch; at least one for each update."""
        most = max(1, self.job.batch_size // self.job.group_size)
        most = min(most, max(1, len(groups) // UPDATES))
        return [groups[i : i + most] for i in range(0, len(groups), most)]

    def _sampled(self, groups: list[list[Noise]]) -> Batch:
        noises = [noise for group in groups for noise in group]
        self.sampler.prepare([noise.prompt for noise in noises])
        images, _, paths = self.rollouts.sample(noises)
        rewards = self._scores(images, [noise.prompt for noise in noises])
        return Batch(noises, paths, rewards.view(len(groups), self.job.group_size))

    def _scores(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return self.reward.score(images, [prompt.text for prompt in prompts]).float().cpu()

    def _spread(self, batches: list[Batch]) -> Tensor:
        """Standard deviation of all rewards of an epoch, of all processes."""
        own = torch.cat([batch.rewards.flatten() for batch in batches]).double()
        sums = torch.stack([torch.tensor(float(len(own))).double(), own.sum(), own.square().sum()])
        dist.all_reduce(sums)
        count, total, squares = sums
        return (squares / count - (total / count).square()).clamp(min=0).sqrt()

    def _total(self, count: int) -> int:
        value = torch.tensor(count)
        dist.all_reduce(value)
        return int(value)

    def _backward(self, batch: Batch, spread: Tensor, count: int) -> dict[str, float]:
        """Put the gradient of a batch in place, step by step of the sampler."""
        job, device = self.job, self.pipe.transformer.device
        before = self._reference(batch) if job.divergence else []
        weights = advantages(batch.rewards, spread).flatten().to(device)
        steps = len(batch.paths) - 1
        seen = {"divergence": 0.0, "clipped": 0.0}

        def told(index: int, step: Transition) -> None:
            likely, old = step.log_prob(batch.paths.reached[index]), batch.paths.log_probs[index]
            loss = policy_loss(likely, old, weights, CLIP_RANGE)
            moved = step.divergence(before[index]) if before else torch.zeros_like(loss)
            (loss + job.divergence * moved).sum().div(count * steps).backward()
            beyond = ((likely.detach() - old).exp() - 1).abs() > CLIP_RANGE
            seen["clipped"] += float(beyond.float().mean()) / steps
            seen["divergence"] += float(moved.detach().mean()) / steps

        self.rollouts.follow(batch.noises, batch.paths, told)
        return {"reward": float(batch.rewards.mean()), **seen}

    def _reference(self, batch: Batch) -> list[Transition]:
        """What the pipeline without its LoRA would do along the same paths."""
        found: list[Transition] = []
        self.adapter.transformer.disable_adapters()
        try:
            self.rollouts.follow(batch.noises, batch.paths, lambda _, step: found.append(step))
        finally:
            self.adapter.transformer.enable_adapters()
        return found

    def evaluate(self) -> float:
        """Mean reward of held-out prompts, sampled without noise in the steps."""
        own = self.held_out[self.rank :: self.job.workers]
        total = torch.zeros(2, dtype=torch.float64)
        for first in range(0, len(own), self.job.batch_size):
            part = own[first : first + self.job.batch_size]
            noises = [Noise(p, derive_seed(self.job.seed, "evaluation", p.id)) for p in part]
            scores = self._scores(self.sampler.sample(noises), part)
            total += torch.tensor([float(scores.sum()), float(len(scores))], dtype=torch.float64)
        dist.all_reduce(total)
        return float(total[0] / total[1])

    def save(self) -> None:
        """Keep what the training goes on from, then the LoRA as it is."""
        if self.rank > 0:
            return
        self.job.state.parent.mkdir(parents=True, exist_ok=True)
        facts = {
            "digest": self.job.digest,
            "epoch": self.epoch,
            "updates": self.adapter.updates,
            "seconds": self.seconds,
        }
        partial = self.job.state.with_suffix(".partial")
        save_file(self.adapter.state(), partial, {"training": json.dumps(facts)})
        os.replace(partial, self.job.state)
        self.adapter.save(self.pipe, self.job.output)

    def restore(self) -> None:
        """Go on where a training of the same settings stopped, if there was one."""
        if not self.job.state.exists():
            return
        with safe_open(self.job.state, framework="pt") as file:
            facts = json.loads(file.metadata()["training"])
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if facts["digest"] != self.job.digest:
            raise SystemExit(
                f"{self.job.state.parent} is of a training with other settings. Delete it to begin "
                "anew, or name another --output."
            )
        self.adapter.restore(state, facts["updates"])
        self.epoch, self.seconds = facts["epoch"], facts["seconds"]

    def train(self) -> None:
        """Repeat epochs until time or their number is up."""
        self.restore()
        if self.rank == 0 and self.epoch == 0:
            self.job.log.parent.mkdir(parents=True, exist_ok=True)
            self.job.log.write_text("")
        start = time.monotonic() - self.seconds
        while not self._is_done():
            is_evaluated = self.epoch % self.job.evaluate_every == 0
            held_out = {"held_out": round(self.evaluate(), 5)} if is_evaluated else {}
            figures = self.run_epoch()
            self.seconds = time.monotonic() - start
            told = {name: float(f"{value:.4g}") for name, value in figures.items()}
            self._log({"epoch": self.epoch, "seconds": round(self.seconds, 1), **told, **held_out})
            self.save()
        self._log({"epoch": self.epoch, "held_out": round(self.evaluate(), 5)})

    def _log(self, record: dict[str, object]) -> None:
        """Append one line, also to that of a training that was interrupted."""
        if self.rank == 0:
            with self.job.log.open("a") as file:
                file.write(json.dumps(record) + "\n")
            print(record, flush=True)

    def _is_done(self) -> bool:
        if self.job.epochs is not None:
            return self.epoch >= self.job.epochs
        # The processes must agree on when to stop.
        seconds = torch.tensor(self.seconds)
        dist.all_reduce(seconds, dist.ReduceOp.MAX)
        return float(seconds) >= self.job.minutes * 60


def work(rank: int, job: Job, rendezvous: Path) -> None:
    """The body of one process."""
    join(rank, job.workers, rendezvous)
    Trainer(job, rank).train()
    dist.destroy_process_group()


def parse(arguments: Sequence[str] | None = None) -> Job:
    """Read the command line; defaults are those published, but for the number of groups."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pipeline", default="shapes", help="name, folder or repository")
    parser.add_argument("--reward", default="shapes", help="name in the registry")
    parser.add_argument("--prompts", default="shapes", help="file, set or generator")
    parser.add_argument("--device", default="cpu", help="cuda with one worker")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--groups", type=int, default=16, help="prompts of an epoch; published: 48")
    parser.add_argument("--group-size", type=int, default=24, help="images of each prompt")
    parser.add_argument("--batch-size", type=int, default=48)
    parser.add_argument("--steps", type=int, default=10, help="of the sampler while training")
    parser.add_argument("--guidance-scale", type=float, default=1.0)
    parser.add_argument("--noise-level", type=float, default=0.7)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--divergence", type=float, default=0.01, help="weight of the KL term")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--alpha", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--epochs", type=int, help="in place of --minutes")
    parser.add_argument("--evaluate-every", type=int, default=10, help="epochs")
    parser.add_argument("--num-evaluated", type=int, default=64, help="held-out prompts")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--log", type=Path, default=Path(__file__).parent / "logs/aligned.jsonl")
    args = vars(parser.parse_args(arguments))
    return Job(**{field.name: args[field.name] for field in fields(Job)})


def main() -> None:
    """Read the command line and start the processes."""
    job = parse()
    scratch = Path(tempfile.mkdtemp(prefix="calibri-training-"))
    mp.spawn(work, (job, scratch / "rendezvous"), nprocs=job.workers)


if __name__ == "__main__":
    main()

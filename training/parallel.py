"""Data parallel training in processes of one thread each, with the wall clock as its length.

For models of this size, threads inside one process lose more in waiting than they gain.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn


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


class Optimizer:
    """AdamW on flat parameters with clipping, a cosine over the clock, and averaged weights."""

    def __init__(
        self, model: nn.Module, learning_rate: float, warmup_steps: int, ema_decay: float
    ) -> None:
        self.flat = flatten_parameters(model)
        self.average = self.flat.detach().clone()
        self._peak, self._warmup, self._decay = learning_rate, warmup_steps, ema_decay
        self._adam = torch.optim.AdamW([self.flat], learning_rate, betas=(0.9, 0.95), fused=True)

    def zero_grad(self) -> None:
        """Forget the gradient; the model's own gradients are views of it."""
        self.flat.grad.zero_()  # type: ignore[union-attr]  # set by flatten_parameters

    def step(self, progress: float, step: int) -> None:
        """One update with the mean of all processes' gradients."""
        dist.all_reduce(self.flat.grad)
        self.flat.grad.div_(dist.get_world_size())  # type: ignore[union-attr]
        nn.utils.clip_grad_norm_([self.flat], 1.0)
        warmup = min(1.0, (step + 1) / self._warmup)
        cosine = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
        self._adam.param_groups[0]["lr"] = self._peak * warmup * cosine
        self._adam.step()
        decay = min(self._decay, (step + 1) / (step + 10))
        self.average.lerp_(self.flat.detach(), 1 - decay)

    def averaged_into(self, model: nn.Module) -> None:
        """Give another model of the same architecture the averaged weights."""
        nn.utils.vector_to_parameters(self.average.clone(), model.parameters())


class Log:
    """JSON lines: the step, the mean loss since the last line, the seconds since the start."""

    def __init__(self, path: Path, every: float) -> None:
        self._path, self._every = path, every
        self._losses: list[float] = []
        self._last = 0.0
        if dist.get_rank() == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("")

    def add(self, step: int, loss: float, seconds: float, last: bool) -> None:
        """Take in one step; write a line now and then."""
        self._losses.append(loss)
        if seconds - self._last > self._every or last:
            mean = sum(self._losses) / len(self._losses)
            self.write({"step": step, "loss": round(mean, 5), "seconds": round(seconds, 1)})
            self._losses, self._last = [], seconds

    def write(self, record: dict[str, object]) -> None:
        """Append one line and print it."""
        if dist.get_rank() == 0:
            with self._path.open("a") as file:
                file.write(json.dumps(record) + "\n")
            print(record, flush=True)


def train(
    backward: Callable[[], float],
    optimizer: Optimizer,
    log: Log,
    seconds: float,
    after_step: Callable[[float], None] = lambda now: None,
) -> None:
    """Repeat backward passes and updates for a wall-clock time, which begins after the first.

    Args:
        backward: puts the gradient of one share of a batch in place and returns its loss.
        optimizer: updates the weights.
        log: takes in the losses.
        seconds: how long to train.
        after_step: called after every update with the seconds since the start.
    """
    backward()  # compiles
    dist.barrier()
    start, step, progress = time.monotonic(), 0, 0.0
    while progress < 1:
        optimizer.zero_grad()
        loss = backward()
        now = time.monotonic() - start
        # The processes must agree on when to stop, so the clock is shared like the loss.
        status = torch.tensor([loss, now / seconds])
        dist.all_reduce(status)
        mean_loss, progress = (status / dist.get_world_size()).tolist()
        optimizer.step(progress, step)
        step += 1
        log.add(step, mean_loss, now, last=progress >= 1)
        after_step(now)


def join(rank: int, workers: int, rendezvous: Path) -> None:
    """Make this process one of the workers."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    dist.init_process_group("gloo", init_method=rendezvous.as_uri(), rank=rank, world_size=workers)

"""Stand-ins that several test modules share: measures, rewards, back-ends, watchers."""

from __future__ import annotations

import torch

from calibri.config import validate_config
from calibri.progress import Progress
from calibri.rewards.reward import RewardInfo
from calibri.scoring.bench import Bench
from calibri.scoring.measures import Measures


class FunctionMeasures(Measures):
    """Measures that are plain functions by name."""

    def __init__(self, functions):
        super().__init__({})
        self.functions = functions

    def __getitem__(self, name):
        return self.functions[name]


def brightness(images, prompts):
    return images.float().mean(dim=(1, 2, 3))


def corner(images, prompts):
    return images.float()[:, :, 0, 0]


def bench_of(pipe, functions=None, **sections):
    """A bench on a loaded pipeline at two steps, which measures by functions."""
    sampling = {"num_inference_steps": 2} | sections.pop("sampling", {})
    config = validate_config({"device": "cpu", "sampling": sampling, **sections})
    return Bench(config, FunctionMeasures(functions or {}), pipe)


class Instant:
    """A back-end that computes nothing: every score is the same."""

    def __init__(self, score=1.0):
        self.score = score

    def run(self, units, ahead=()):
        for index, unit in units:
            yield index, {"scores": {name: [self.score] * len(unit.rows) for name in unit.measures}}

    def close(self):
        pass


class Idle:
    """A back-end that takes no unit."""

    def run(self, units, ahead=()):
        return iter(())

    def close(self):
        pass


class Foresighted:
    """A back-end on which workers that would idle finish so many of the units ahead in each call.

    Keeps the keys of units: of all that were computed, and by call those asked for and ahead.
    """

    def __init__(self, backend, spare):
        self.backend, self.spare = backend, spare
        self.computed, self.calls = [], []

    def run(self, units, ahead=()):
        units, ahead = list(units), list(ahead)
        self.calls.append(([key for key, _ in units], [key for key, _ in ahead]))
        for key, result in self.backend.run([*units, *ahead[: self.spare()]]):
            self.computed.append(key)
            yield key, result

    def close(self):
        self.backend.close()


def results_of(finished):
    """Results by the index of their unit, without how they came about."""
    how = ("worker", "busy", "attempts")
    return {i: {k: v for k, v in r.items() if k not in how} for i, r in dict(finished).items()}


class Elsewhere:
    """A worker that is there at once; what it computes is up to the test."""

    def open(self):
        pass

    def stop(self):
        pass


class Named:
    """A reward that scores every image alike, of the name and kind that are wanted."""

    def __init__(self, name, kind="pointwise", score=0.0):
        self.info = RewardInfo(name, "1", kind=kind, unit="none")
        self._score = score

    def score(self, images, prompts):
        return torch.full((len(prompts),), self._score)


class StopAfter(Progress):
    """Interrupts like Ctrl-C after some units; counts those that no journal had."""

    def __init__(self, units):
        self.left = units
        self.computed = 0

    def unit(self, images, new):
        self.computed += new
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


class Listening(Progress):
    """Keeps what it is told of a run."""

    def __init__(self):
        self.phases, self.messages, self.new = [], [], 0
        self.heard = []

    def phase(self, name, images):
        self.phases.append((name, images))

    def message(self, text):
        self.messages.append(text)

    def unit(self, images, new):
        self.new += new

    def generation(self, record):
        self.heard.append(("generation", record.generation))

    def checkpoint(self, record):
        self.heard.append(("checkpoint", record.generation))


class LittleMemory:
    """A sampler whose device holds so many images at once."""

    def __init__(self, sampler, most):
        self.sampler, self.most, self.sizes = sampler, most, []

    def __getattr__(self, name):
        return getattr(self.sampler, name)

    def sample_checked(self, noises, fidelity, shift):
        if len(noises) > self.most:
            raise torch.OutOfMemoryError("full")
        self.sizes.append(len(noises))
        return self.sampler.sample_checked(noises, fidelity, shift)

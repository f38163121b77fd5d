"""What a run decides: its prompts, the space it searches and where it starts, its objective."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from calibri.arrays import Vector
from calibri.artifact import Calibration
from calibri.coefficients import (
    Capabilities,
    Coefficients,
    SearchSpace,
    build_space,
    check_factors,
    preset_start,
    resolve,
    warm_start,
)
from calibri.config import RunConfig
from calibri.errors import ConfigError
from calibri.pipelines import Network, Site
from calibri.progress import Progress
from calibri.prompts import Prompt, PromptSets, prompt_sets
from calibri.results import FULL, Fidelity
from calibri.rewards import Mixture, Reward, resolve_files
from calibri.sampling import Noise
from calibri.scoring import (
    Bench,
    Evaluator,
    Ledger,
    Local,
    Measures,
    check_workers,
    driver_device,
    make_backend,
    sample_images,
)
from calibri.seeds import derive_seed


class Session:
    """A run before anything is sampled: everything its configuration asks for, built and checked.

    Args:
        config: a run's configuration.
        prompts: prompt sets to use instead of the configured ones.
        pipe: a loaded pipeline to use instead of the configured one.
        rewards: rewards that are there already, by the names of the configuration.
        bench: of another session with the same sampling and the same rewards, which this one uses
            instead of its own and leaves open.

    Attributes:
        config: the configuration with nothing left open; it says all that decides the result.
        prompts: three disjoint sets.
        mixture: how rewards become the objective.
        bench: computes units in this process.
        space: of the search.
        start: where the search starts, float64 (n,).

    Raises:
        CalibriError: the pipeline, a reward, the prompts, the guidance or the search space do not
            work; raised before anything is scored.
    """

    def __init__(
        self,
        config: RunConfig,
        prompts: PromptSets | None = None,
        *,
        pipe: Any = None,
        rewards: Mapping[str, Reward] | None = None,
        bench: Bench | None = None,
    ) -> None:
        config = _with_whole_paths(config)
        if pipe is not None:  # which stays where it is
            _check_no_lora(config)
            config = config.model_copy(update={"device": str(pipe.device)})
        _check_workers(config, alone=pipe is not None or bool(rewards))
        here = config.model_copy(update={"device": driver_device(config)})
        self.prompts = prompts or prompt_sets(config)
        self.mixture = Mixture.of(config.rewards)
        # Cheap checks come first: a pipeline can take minutes to load.
        measures = bench.measures if bench else Measures.of(here, rewards)
        _check_groups(config, measures, self._searched(config, measures), self.prompts)
        every = (*self.prompts.train, *self.prompts.validation, *self.prompts.test)
        measures.check_prompts(every)
        self._owns_bench = bench is None
        self.bench = bench or Bench(here, measures, pipe)
        self.bench.sampler.check_prompts(every)
        _check_branches(config, self.bench.scaler.networks)
        capabilities = Capabilities.of(self.bench.pipe, self.bench.sampler.cfg_scale)
        self.config = resolve(config, capabilities)
        self.space: SearchSpace = build_space(self.config, capabilities)
        check_factors(self.space.factors, self.bench.pipe)
        self.start: Vector = _start(self.config, self.space, self.bench.pipe, capabilities.sites)
        self.bench.sampler.check_effect()

    def _searched(self, config: RunConfig, measures: Measures) -> list[str]:
        return list(dict.fromkeys((*self.mixture.names, *_guards(config, measures))))

    def close(self) -> None:
        """Leave the pipeline as it was before."""
        if self._owns_bench:
            self.bench.close()

    def evaluator(
        self, ledger: Ledger, progress: Progress | None = None, images: int = 0
    ) -> Evaluator:
        """Make an evaluator that keeps its units in ``ledger``.

        Args:
            ledger: finished units.
            progress: is told of units, and of batches that do not fit into memory.
            images: about as many will be sampled; decides how many workers pay off.
        """
        told = progress or Progress()
        backend = make_backend(self.bench, self.config, images, told.message, told.page)
        size = self.config.sampling.batch_size
        full = self.bench.sampler.full
        return Evaluator(backend, size, full, ledger, told.unit, told.message, told.worked)

    @property
    def objective(self) -> tuple[str, ...]:
        """Names of the measures that the objective is made of."""
        return tuple(self.mixture.names)

    @property
    def guards(self) -> tuple[str, ...]:
        """Names of the held-out rewards that guard a search."""
        return tuple(_guards(self.config, self.bench.measures))

    def sample(
        self, coefficients: Coefficients, noises: Sequence[Noise], fidelity: Fidelity = FULL
    ) -> Tensor:
        """Sample images in this process: uint8 (N, 3, H, W).

        Raises:
            RunError: one image alone does not fit into memory.
        """
        full, size = self.bench.sampler.full.updated(fidelity), self.config.sampling.batch_size
        return sample_images(Local(self.bench), coefficients, noises, full, size)

    def noises(
        self, purpose: str, step: int, prompts: Sequence[Prompt], count: int = 1
    ) -> list[Noise]:
        """Pair prompts with ``count`` noise seeds each, derived from what they are for."""
        return [
            Noise(prompt, derive_seed(self.config.seed, purpose, step, prompt.id, index))
            for prompt in prompts
            for index in range(count)
        ]


def _with_whole_paths(config: RunConfig) -> RunConfig:
    """Name files so that a run goes on from any folder."""
    space, sites = config.space, config.space.sites
    if sites is not None:
        space = space.model_copy(update={"sites": str(Path(sites).absolute())})
    return config.model_copy(update={"rewards": resolve_files(config.rewards), "space": space})


def _check_no_lora(config: RunConfig) -> None:
    if config.lora is not None:
        raise ConfigError(
            f"A pipeline was given as an object and the LoRA '{config.lora}' by its name. Load it "
            "onto the pipeline yourself (pipe.load_lora_weights), or name the pipeline, too."
        )


def _guards(config: RunConfig, measures: Measures) -> list[str]:
    names = config.rewards.held_out if config.rewards.guard != "off" else ()
    # One image of a prompt cannot be compared with others.
    alone = config.search.images_per_prompt == 1
    return [name for name in names if not (alone and measures.is_grouped(name))]


def _check_workers(config: RunConfig, *, alone: bool) -> None:
    count = config.sampling.workers or 1
    check_workers(config)
    if alone and count != 1:
        raise ConfigError(
            f"sampling.workers is {count}, but a pipeline or a reward was given as an object, "
            "which other processes cannot have. Give its name, or set sampling.workers to 1."
        )


def _check_groups(
    config: RunConfig, measures: Measures, searched: Sequence[str], prompts: PromptSets
) -> None:
    """Refuse settings under which a measure that compares images is given only one."""
    counts = {"evaluation": config.evaluation.images_per_prompt}
    if prompts.train:
        counts["search"] = config.search.images_per_prompt
    for section, count in counts.items():
        names = list(measures.rewards) if section == "evaluation" else searched
        grouped = [name for name in names if measures.is_grouped(name)]
        if grouped and not 2 <= count <= config.sampling.batch_size:
            raise ConfigError(
                f"'{grouped[0]}' compares the images of a prompt, and "
                f"{section}.images_per_prompt is {count}. Set it to 2 or more, at most "
                f"sampling.batch_size ({config.sampling.batch_size})."
            )


def _check_branches(config: RunConfig, networks: Sequence[Network]) -> None:
    apart = all(network.branch is not None for network in networks)
    if apart and config.space.branches == "separate" and config.space.members == 1:
        raise ConfigError(
            "Each branch of guidance has a transformer of its own in this pipeline, so half of "
            "separate scales would have no effect. Set space.branches to 'shared'."
        )


def _start(config: RunConfig, space: SearchSpace, pipe: Any, sites: Sequence[Site]) -> Vector:
    """Where the search starts: the original model, a preset, or another calibration."""
    source = config.space.start
    if source is None:
        return space.start
    known = preset_start(source, space, pipe)
    if known is not None:
        return known
    return warm_start(space, sites, Calibration.from_pretrained(source).coefficients)

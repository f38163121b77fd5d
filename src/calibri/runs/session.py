"""Everything a configuration needs to score candidates, checked before any work starts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from calibri.arrays import Vector
from calibri.artifact import Calibration
from calibri.coefficients import (
    PRESETS,
    Coefficients,
    SearchSpace,
    lay_out,
    preset,
    settle,
    warm_start,
)
from calibri.config import COMPOSITIONAL, SHIPPED, PromptConfig, RunConfig
from calibri.errors import ConfigError, PromptError
from calibri.pipelines import (
    Networks,
    compile_transformers,
    load_pipeline,
    networks_of,
    pipeline_bytes,
    resolve_device,
)
from calibri.prompts import (
    Prompt,
    check_disjoint,
    compositional_prompts,
    is_prompt_set,
    load_prompt_set,
    load_prompts,
    make_prompts,
    wording,
)
from calibri.results import FULL, Fidelity
from calibri.rewards import (
    DIVERSITY,
    FEATURES,
    FeatureReward,
    ModelReward,
    Reward,
    check_measures,
    diversity,
    make_reward,
    parse_mixture,
    resolve_files,
)
from calibri.sampling import BranchResolver, Noise, Sampler, Scaler, mean_over_frames
from calibri.scoring import (
    PIPELINE,
    Backend,
    Evaluator,
    Grouped,
    InProcess,
    Ledger,
    Measure,
    OnUnit,
    Workers,
    cores,
    default_workers,
    ignore,
    make_unit,
    share_device,
    worker_devices,
)
from calibri.seeds import derive_seed

_GENERATED_TRAIN_PROMPTS = 4096
_GENERATED = (SHIPPED, COMPOSITIONAL)


@dataclass(frozen=True)
class PromptSets:
    """Three disjoint sets of prompts.

    Attributes:
        train: buckets of the search.
        validation: choose among checkpoints.
        test: final figures only.
    """

    train: tuple[Prompt, ...]
    validation: tuple[Prompt, ...]
    test: tuple[Prompt, ...]


class Engine:
    """A pipeline with hooks, its rewards and its prompts.

    Args:
        config: a run's configuration.
        prompts: prompt sets to use instead of the configured ones.

    Raises:
        CalibriError: the pipeline, a reward, the prompts or the search space do not work; raised
            before anything is sampled.
    """

    def __init__(self, config: RunConfig, prompts: PromptSets | None = None) -> None:
        config = config.model_copy(update={"rewards": resolve_files(config.rewards)})
        self.config = config
        worker_devices(str(resolve_device(config.device)), config.sampling.workers or 1)
        self.prompts = prompts or prompt_sets(config)
        rewards = config.rewards
        self.mixture = parse_mixture(rewards.objective, rewards.mixing, rewards.constraints)
        names = tuple(dict.fromkeys((*self.mixture.names, *rewards.held_out)))
        _check_options(config, names)
        check_measures(names)
        self.rewards: dict[str, Reward] = {
            name: _make_reward(name, config) for name in names if name != DIVERSITY
        }
        self._check_groups()
        self.pipe: Any = load_pipeline(
            config.pipeline, revision=config.revision, dtype=config.dtype, device=config.device
        )
        self.residence = (
            share_device(self.pipe, self.rewards.values(), resolve_device(config.device))
            if rewards.offload
            else None
        )
        self.sampler = Sampler(self.pipe, config.sampling)
        if self.residence is not None:
            self.sampler.offload_encoders()
        self.resolver = BranchResolver(self.pipe) if self.sampler.guided else None
        if self.resolver is not None:
            self.sampler.before_call = self.resolver.expect
        self.scaler = Scaler(networks_of(self.pipe), self.resolver)
        if config.sampling.compile:
            compile_transformers(self.pipe)
        _check_branches(config, self.scaler.networks)
        # What a run keeps of its configuration says all that decides its result.
        self.config = settle(config, self.pipe, self.sampler.cfg_scale)
        self.space: SearchSpace = lay_out(self.config, self.pipe, self.sampler.cfg_scale)
        self.start: Vector = self._start()

    def _start(self) -> Vector:
        """Where the search starts: the original model, a preset, or another calibration."""
        source = self.config.space.start
        if source is None:
            return self.space.start
        if source in PRESETS:
            return self._preset(source)
        found = Calibration.from_pretrained(source)
        return warm_start(self.space, self.scaler.sites, found.coefficients)

    def _preset(self, name: str) -> Vector:
        """Find the vector of a preset, which must lie in the space."""
        found = preset(
            name,
            self.pipe,
            guidance_scale=self.space.start_weights[0],  # 1 without guidance
            granularity=self.space.granularity,
        )
        original = self.space.coefficients(self.space.start)
        if (self.space.knots, self.space.output_knots) != (1, 1):
            raise ConfigError(
                f"The preset '{name}' has scales that do not change over the sampling steps. Set "
                "space.knots to 1 and space.output_knots to 1."
            )
        alike = (found.branches, len(found.scales)) == (original.branches, len(original.scales))
        if not alike or not self.space.search_output:
            count = found.member_branches.count(0)
            raise ConfigError(
                f"The preset '{name}' has members with scales of their own, {count} of them for "
                f"the prompt. Set space.members to {count}, space.output_weights to true and, "
                "under guidance, space.branches to 'separate'."
            )
        return self.space.vector(found)

    def evaluator(self, ledger: Ledger, on_unit: OnUnit = ignore, images: int = 0) -> Evaluator:
        """Make an evaluator that keeps its units in ``ledger``.

        Args:
            ledger: finished units.
            on_unit: see ``Evaluator``.
            images: about as many will be sampled; decides how many workers pay off.
        """
        size = self.config.sampling.batch_size
        return Evaluator(self._backend(images), size, self.sampler.full, ledger, on_unit)

    def in_process(self) -> InProcess:
        """Compute units in this process."""
        overlap = resolve_device(self.config.device).type == "cuda"
        on_failure = self.config.rewards.on_failure
        return InProcess(self.sampler, self.scaler, on_failure, overlap, self.residence)

    def _backend(self, images: int) -> Backend:
        device = str(resolve_device(self.config.device))
        best = default_workers(device, pipeline_bytes(self.pipe), images)
        count = self.config.sampling.workers or best
        if count == best == 1:
            return self.in_process()
        threads = torch.get_num_threads() if best == 1 else max(1, cores() // best)
        return Workers(self.in_process(), self.config, worker_devices(device, count), threads)

    def measures(self, *, held_out: bool) -> dict[str, Measure]:
        """What the objective is made of, or all rewards."""
        names = self.rewards if held_out else self.mixture.names
        return {name: self.measure(name) for name in names}

    def guard_measures(self) -> dict[str, Measure]:
        """The held-out rewards that guard a search."""
        names = self.config.rewards.held_out if self.config.rewards.guard != "off" else ()
        # One image of a prompt cannot be compared with others.
        alone = self.config.search.images_per_prompt == 1
        return {
            name: self.measure(name) for name in names if not (alone and self._is_grouped(name))
        }

    @property
    def _searched_names(self) -> Iterable[str]:
        return dict.fromkeys((*self.mixture.names, *self.guard_measures()))

    def measure(self, name: str) -> Measure:
        """Find a measure by name: a reward, ``DIVERSITY`` or ``FEATURES``."""
        if name == DIVERSITY:
            return Grouped(mean_over_frames(diversity))
        if name == FEATURES and self.feature_reward is not None:
            return mean_over_frames(_features_of(self.feature_reward))
        score = mean_over_frames(self.rewards[name].score)
        return Grouped(score) if self._is_grouped(name) else score

    @property
    def feature_reward(self) -> FeatureReward | None:
        """The first reward that gives features for a Frechet distance."""
        return next((r for r in self.rewards.values() if isinstance(r, FeatureReward)), None)

    def _is_grouped(self, name: str) -> bool:
        return name == DIVERSITY or self.rewards[name].info.kind == "groupwise"

    def _check_groups(self) -> None:
        """Refuse settings that give a measure which compares images only one of them."""
        counts = {"evaluation": self.config.evaluation.images_per_prompt}
        if self.prompts.train:
            counts["search"] = self.config.search.images_per_prompt
        for section, count in counts.items():
            names = self.rewards if section == "evaluation" else self._searched_names
            grouped = [name for name in names if self._is_grouped(name)]
            if grouped and not 2 <= count <= self.config.sampling.batch_size:
                raise ConfigError(
                    f"'{grouped[0]}' compares the images of a prompt, and "
                    f"{section}.images_per_prompt is {count}. Set it to 2 or more, at most "
                    f"sampling.batch_size ({self.config.sampling.batch_size})."
                )

    def sample(
        self, coefficients: Coefficients, noises: Sequence[Noise], fidelity: Fidelity = FULL
    ) -> torch.Tensor:
        """Sample images with one set of coefficients: uint8 (N, 3, H, W).

        Raises:
            RunError: one image alone does not fit into memory.
        """
        if self.residence is not None:
            self.residence.use(PIPELINE)
        size = self.config.sampling.batch_size
        rows = [(0, noise) for noise in noises]
        unit = make_unit([coefficients], rows, (), self.sampler.full.updated(fidelity))
        backend = InProcess(self.sampler, self.scaler, self.config.rewards.on_failure)
        parts = (unit.rows[first : first + size] for first in range(0, len(noises), size))
        return torch.cat([backend.sample(unit, part) for part in parts])

    def noises(
        self, purpose: str, step: int, prompts: Sequence[Prompt], count: int = 1
    ) -> list[Noise]:
        """Pair prompts with ``count`` noise seeds each, derived from what they are for."""
        return [
            Noise(prompt, derive_seed(self.config.seed, purpose, step, prompt.id, index))
            for prompt in prompts
            for index in range(count)
        ]


def _features_of(reward: FeatureReward) -> Measure:
    def features(images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        return reward.features(images)

    return features


def _check_branches(config: RunConfig, networks: Networks) -> None:
    apart = all(network.branch is not None for network in networks)
    if apart and config.space.branches == "separate" and config.space.members == 1:
        raise ConfigError(
            "Each branch of guidance has a transformer of its own in this pipeline, so half of "
            "separate scales would have no effect. Set space.branches to 'shared'."
        )


def _check_options(config: RunConfig, names: Iterable[str]) -> None:
    if unused := sorted(config.rewards.options.keys() - set(names)):
        raise ConfigError(
            f"rewards.options holds options for {', '.join(unused)}, which this run does not use. "
            f"It uses {', '.join(names)}."
        )


def _make_reward(name: str, config: RunConfig) -> Reward:
    options = config.rewards.options.get(name, {})
    reward = make_reward(name, **options)
    # A network scores where images are sampled, unless it was given a place of its own.
    if isinstance(reward, ModelReward) and "device" not in options:
        reward.to(resolve_device(config.device))
    return reward


def prompt_sets(config: RunConfig) -> PromptSets:
    """Load the three prompt sets of a configuration.

    Raises:
        PromptError: a file cannot be used, sets overlap, or there are too few prompts.
    """
    num_validation = config.search.num_validation_prompts
    num_test = config.evaluation.num_prompts
    train, held_out = _train_and_held_out(config.prompts, config.seed, num_validation + num_test)
    check_disjoint(train, held_out)
    largest = config.search.final_bucket_size
    if len(train) < largest:
        raise PromptError(
            f"{len(train)} training prompts cannot fill a bucket of {largest}. Add prompts or "
            "lower search.bucket_size or search.bucket_growth."
        )
    if len(held_out) < num_validation + num_test:
        raise PromptError(
            f"{len(held_out)} held-out prompts are too few: {num_validation} choose among "
            f"checkpoints (search.num_validation_prompts) and {num_test} give the final figures "
            "(evaluation.num_prompts). Add prompts or lower these numbers."
        )
    held_out = _shuffled(held_out, config.seed)
    return PromptSets(
        train, held_out[:num_validation], held_out[num_validation : num_validation + num_test]
    )


def _train_and_held_out(
    config: PromptConfig, seed: int, num_held_out: int
) -> tuple[tuple[Prompt, ...], tuple[Prompt, ...]]:
    train = prompts_from(config.train, "train", _GENERATED_TRAIN_PROMPTS, seed)
    held_out = config.held_out
    if held_out is None and config.train in _GENERATED:
        held_out = config.train
    if held_out is not None:
        judges = prompts_from(held_out, "held_out", num_held_out, seed)
        if is_prompt_set(held_out):
            # Official sets overlap (T2I-CompBench's train and val share 6 prompts): the set that
            # figures are reported on stays whole.
            seen = {wording(prompt.text) for prompt in judges}
            train = tuple(prompt for prompt in train if wording(prompt.text) not in seen)
        return train, judges
    shuffled = _shuffled(train, seed)
    fifth = len(shuffled) // 5
    return shuffled[fifth:], shuffled[:fifth]


def prompts_from(
    source: str, split: Literal["train", "held_out"], count: int, seed: int
) -> tuple[Prompt, ...]:
    """Find prompts by what ``PromptConfig`` may hold.

    Args:
        source: ``"shapes"``, ``"compositional"``, the name of a set, or a file.
        split: of a generator.
        count: prompts to generate; sets and files give all they have.
        seed: of a generator.

    Raises:
        PromptError: the set or file cannot be had.
    """
    if source == SHIPPED:
        return shipped_prompts(split, count, seed)
    if source == COMPOSITIONAL:
        return make_prompts(p.text for p in compositional_prompts(count, seed, split))
    if is_prompt_set(source):
        return load_prompt_set(source)
    return load_prompts(Path(source))


def shipped_prompts(
    split: Literal["train", "held_out"], count: int, seed: int
) -> tuple[Prompt, ...]:
    """Captions of the shipped world: trained on, or never trained on."""
    from calibri.shapes import sample_prompts

    return make_prompts(sample_prompts(count, derive_seed(seed, "prompts", split), split))


def _shuffled(prompts: Sequence[Prompt], seed: int) -> tuple[Prompt, ...]:
    return tuple(sorted(prompts, key=lambda prompt: derive_seed(seed, "split", prompt.id)))

"""The prompts of a run: where a configuration says they come from, cut into three sets."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from calibri.config import COMPOSITIONAL, SHIPPED, PromptConfig, RunConfig
from calibri.errors import PromptError
from calibri.prompts.compositional import compositional_prompts
from calibri.prompts.files import Prompt, check_disjoint, load_prompts, make_prompts, wording
from calibri.prompts.sets import is_prompt_set, load_prompt_set
from calibri.seeds import derive_seed
from calibri.shapes import sample_prompts

_GENERATED_TRAIN_PROMPTS = 4096
_GENERATED = (SHIPPED, COMPOSITIONAL)
_PARTS = 5  # of a file of prompts; one of them is held out


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


def prompt_sets(config: RunConfig) -> PromptSets:
    """Load the three prompt sets of a configuration.

    Raises:
        PromptError: a file cannot be used, sets overlap, or there are too few prompts.
    """
    num_validation = config.search.num_validation_prompts
    num_test = config.evaluation.num_prompts
    train, held_out = _train_and_held_out(config.prompts, config.seed, num_validation + num_test)
    check_disjoint(train, held_out)
    _check_counts(config, len(train), len(held_out))
    held_out = _shuffled(held_out, config.seed)
    return PromptSets(
        train, held_out[:num_validation], held_out[num_validation : num_validation + num_test]
    )


def _check_counts(config: RunConfig, num_train: int, num_held_out: int) -> None:
    largest = config.search.final_bucket_size
    num_validation = config.search.num_validation_prompts
    num_test = config.evaluation.num_prompts
    judges = (
        f"{num_validation} choose among checkpoints (search.num_validation_prompts) and "
        f"{num_test} give the final figures (evaluation.num_prompts)"
    )
    enough = num_train >= largest, num_held_out >= num_validation + num_test
    if not all(enough) and _is_cut(config.prompts):
        needed = _prompts_to_cut(largest, num_validation + num_test)
        raise PromptError(
            f"'{config.prompts.train}' has {num_train + num_held_out:,} prompts, and this run "
            f"needs {needed:,}: a fifth of them is held out, of which {judges}, and the others "
            f"fill buckets of {largest} (search.bucket_size, search.bucket_growth). Add prompts, "
            f"name {num_validation + num_test} others to judge on (--held-out-prompts FILE), or "
            "lower these numbers."
        )
    if not enough[0]:
        raise PromptError(
            f"{num_train} training prompts cannot fill a bucket of {largest}. Add prompts or "
            "lower search.bucket_size or search.bucket_growth."
        )
    if not enough[1]:
        raise PromptError(
            f"{num_held_out} held-out prompts are too few: {judges}. Add prompts or lower these "
            "numbers."
        )


def _is_cut(config: PromptConfig) -> bool:
    """Whether prompts to judge on are cut from those to search on."""
    return config.held_out is None and config.train not in _GENERATED


def _prompts_to_cut(num_train: int, num_held_out: int) -> int:
    """Count the prompts of which a fifth, rounded down, and the rest are enough."""
    total = _PARTS * num_held_out
    return next(n for n in itertools.count(total) if n - n // _PARTS >= num_train)


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
    fifth = len(shuffled) // _PARTS
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


@lru_cache(maxsize=4)  # the two splits of two seeds: drawing them takes longer than loading a model
def shipped_prompts(
    split: Literal["train", "held_out"], count: int, seed: int
) -> tuple[Prompt, ...]:
    """Captions of the shipped world: trained on, or never trained on."""
    return make_prompts(sample_prompts(count, derive_seed(seed, "prompts", split), split))


def _shuffled(prompts: Sequence[Prompt], seed: int) -> tuple[Prompt, ...]:
    return tuple(sorted(prompts, key=lambda prompt: derive_seed(seed, "split", prompt.id)))

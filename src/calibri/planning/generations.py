"""What a generation samples, by any method of searching: counted here for plan and run alike."""

from __future__ import annotations

from calibri.config import RunConfig, SearchConfig
from calibri.search import IMAGES_PER_GRADIENT, MethodInfo, bucket_size, images_of_generation


def bucket_sizes(search: SearchConfig) -> list[int]:
    """Prompts of each generation."""
    first, last, count = search.bucket_size, search.final_bucket_size, search.generations
    return [bucket_size(first, last, generation, count) for generation in range(count)]


def images_beside(config: RunConfig) -> int:
    """Count what an update by gradients samples without gradient for each image with one.

    Both sides of every factor, and the original where a constraint compares with it.

    Args:
        config: of a run, with nothing left open.
    """
    factors = int(config.space.guidance) + int(bool(config.space.shift))
    return 2 * factors + bool(config.rewards.constraints)


def updates_per_generation(
    search: SearchConfig, size: int, method: MethodInfo | None = None, beside: int = 0
) -> int:
    """How often a method is told in a generation.

    Args:
        search: decides what a generation may cost.
        size: numbers that are searched.
        method: None for the configured one.
        beside: see ``images_beside``.
    """
    info = method or search.method_info
    prompts, popsize = search.final_bucket_size, search.popsize or info.popsize(size)
    images = images_of_generation(popsize, prompts, search.race_first, search.race_keep) - prompts
    return info.updates(images, prompts, beside)


def gradient_updates(config: RunConfig, size: int) -> int:
    """Count the updates of a generation by gradients of rewards; 0 where there are none.

    Args:
        config: of a run, with nothing left open.
        size: numbers that are searched.
    """
    info = config.search.method_info
    if not info.uses_gradients or info.by_policy:
        return 0
    return updates_per_generation(config.search, size, beside=images_beside(config))


def images_of_generations(config: RunConfig, size: int) -> list[int]:
    """Count the images of each generation; one with its gradient is counted as three.

    Args:
        config: of a run, with nothing left open.
        size: numbers that are searched.
    """
    search = config.search
    popsize, race = search.population(size), (search.race_first, search.race_keep)
    updates, beside = gradient_updates(config, size), images_beside(config)
    # The original is scored on the last bucket of a generation, or on each for a constraint.
    by_gradients = updates * (IMAGES_PER_GRADIENT + beside) + (not config.rewards.constraints)
    return [
        (prompts * by_gradients if updates else images_of_generation(popsize, prompts, *race))
        * search.images_per_prompt
        for prompts in bucket_sizes(search)
    ]

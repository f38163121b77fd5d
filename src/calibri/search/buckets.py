"""How many prompts a generation is worth."""

from __future__ import annotations


def bucket_size(first: int, last: int, generation: int, generations: int) -> int:
    """Prompts of a generation, growing by the same factor from generation to generation.

    The first steps are large against the noise; the last ones are not. Most images of a run belong
    to its large buckets, so small first ones make it fast at little cost to where it ends.

    Args:
        first: prompts of generation 0, at least 1.
        last: prompts of the last generation; not less than ``first``.
        generation: from 0.
        generations: budget; later generations stay at ``last``.
    """
    done = min(1.0, generation / max(1, generations - 1))
    # A hair more, so that first = last and the last generation are not rounded down.
    return int(first * (last / first) ** done + 1e-9)

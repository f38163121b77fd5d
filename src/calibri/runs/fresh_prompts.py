"""Captions of the shipped world that a calibration was neither chosen nor judged by."""

from __future__ import annotations

from calibri.artifact import Calibration
from calibri.config import SHIPPED, RunConfig
from calibri.prompts import Prompt, prompts_from

USED = "shipped_prompts"  # in a provenance: how many a run drew, by its seed


def used_shipped_prompts(config: RunConfig) -> int:
    """Count the held-out captions of the shipped world that a run draws, by its seed."""
    source = config.prompts.held_out
    if source is None and config.prompts.train == SHIPPED:
        source = SHIPPED
    return _held_out(config) if source == SHIPPED else 0


def _held_out(config: RunConfig) -> int:
    return config.search.num_validation_prompts + config.evaluation.num_prompts


def unseen_prompts(calibration: Calibration, count: int, seed: int) -> tuple[Prompt, ...]:
    """Draw held-out captions, but for those that chose the checkpoint or gave the run's figures.

    Calibrations that do not say how many there were are taken to have the default ones. Those of no
    run, which have no seed, used none.

    Raises:
        PromptError: there are too few captions.
    """
    made = calibration.provenance
    run_seed, used = made.get("seed"), made.get(USED, _held_out(RunConfig()))
    if not isinstance(run_seed, int) or not isinstance(used, int) or used < 1:
        return prompts_from(SHIPPED, "held_out", count, seed)
    seen = {prompt.id for prompt in prompts_from(SHIPPED, "held_out", used, run_seed)}
    drawn = prompts_from(SHIPPED, "held_out", count + len(seen), seed)
    return tuple(prompt for prompt in drawn if prompt.id not in seen)[:count]

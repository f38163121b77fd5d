"""What a page says of an experiment beside its figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from calibri.experiments.measured import Scored
from calibri.experiments.searching import Plan
from calibri.experiments.trials import Trials
from calibri.results import RunSummary
from calibri.runs import Session, machine


def facts_of(session: Session, found: Scored) -> dict[str, str]:
    """What was sampled for the figures, and where."""
    config, here = session.config, machine()
    return {
        "Pipeline": config.pipeline,
        "Sampled": f"{config.sampling.num_inference_steps} steps, guidance "
        f"{max(config.sampling.guidance_scale, config.sampling.true_cfg_scale):g}",
        "Prompts": str(len(session.prompts.test)),
        "Noise seeds of each": str(config.evaluation.images_per_prompt),
        "Conditions": str(len(found.measured.labels)),
        "Images": f"{found.images:,}",
        "Time of sampling": f"{found.seconds:,.0f} seconds",
        "Computed on": f"{here['device']}, {here['cores']} cores",
        "Seed": str(config.seed),
    }


def facts_of_searches(plans: Sequence[Plan], trials: Trials) -> dict[str, str]:
    """What the searches cost."""
    seeds, searches = trials.seeds, [found.search for found in trials.found]
    span = str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    seconds = sum(search.seconds for search in searches)
    return {
        "Searches": f"{len(searches)}, seeds {span}",
        "Cost of each search": f"{plans[0].costs[-1]:,.0f} images, checkpoints not counted",
        "Images of all searches": f"{sum(search.images for search in searches):,}",
        "Time of all searches": f"{seconds:,.0f} seconds",
    }


def facts_of_several(facts: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """What pipelines have in common once, and the rest for each.

    Args:
        facts: of each pipeline, by its name.
    """
    first = next(iter(facts.values()))
    common = {k: v for k, v in first.items() if all(own[k] == v for own in facts.values())}
    own = {
        f"{name}: {key}": value
        for name, found in facts.items()
        for key, value in found.items()
        if key not in common and key != "Pipeline"
    }
    return {"Pipelines": ", ".join(facts)} | common | own


def facts_of_run(summary: RunSummary) -> dict[str, str]:
    """Which run was looked at."""
    return {
        "Run": summary.name,
        "Pipeline": summary.pipeline,
        "Coefficients": f"{len(summary.coefficients)} at {summary.granularity} granularity",
        "Finished": summary.created,
    }

"""Evaluate a calibration: from what a caller gives to a comparison with the original model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from calibri.artifact import Calibration
from calibri.coefficients import Coefficients
from calibri.config import RunConfig, Workers, validate_config
from calibri.configure import check_own_prompts
from calibri.planning import images_by_phase
from calibri.progress import Progress
from calibri.prompts import Prompt, PromptSets, prompts_from
from calibri.results import Evaluation
from calibri.rewards import (
    Reward,
    check_stored_names,
    join_stored_options,
    name_rewards,
    parse_mixture,
    resolve_files,
)
from calibri.runs.comparison import Comparer
from calibri.runs.fresh_prompts import unseen_prompts
from calibri.runs.objects import split_pipeline
from calibri.runs.session import Session
from calibri.scoring import Ledger, MemoryRecords
from calibri.signatures import typed


@typed
def evaluate(
    calibration: Calibration | str | Path,
    *,
    pipeline: Any = None,
    lora: str | None = None,
    prompts: Path | str | None = None,
    rewards: Sequence[Any] | None = None,
    reward_options: Mapping[str, Mapping[str, Any]] | None = None,
    num_prompts: int = 256,
    images_per_prompt: int = 2,
    step_multiples: Sequence[int] = (1, 2, 3),
    batch_size: int = 32,
    workers: Workers | None = None,
    seed: int = 1,
    device: str = "auto",
    progress: Progress | None = None,
) -> Evaluation:
    """Compare a pipeline with and without a calibration, on the same prompts and noise.

    Args:
        calibration: a folder, a finished run, a repository id, or a ``Calibration``.
        pipeline: a name (see ``load_pipeline``) or a loaded pipeline; None for the calibration's
            base model.
        lora: a LoRA that a named pipeline gets (see ``load_pipeline``); None for the calibration's.
        prompts: prompts that the search did not use: a file, a set's name, ``"compositional"``, or
            ``"shapes"`` for the held-out captions of the shipped world; None for these without the
            ones that chose the calibration or gave its figures, when it is the shipped pipeline.
        rewards: names of rewards, rewards or their classes, the first is the objective; None for
            those of the calibration. An objective that is a mixture is followed by the rewards
            that it names, where they are given as objects.
        reward_options: reward name to the arguments it is made with. They win over those that the
            calibration remembers, and None forgets one of those.
        num_prompts: prompts to use.
        images_per_prompt: noise seeds per prompt.
        step_multiples: the original model is also sampled at these multiples of the steps.
        batch_size: images per forward of the transformer.
        workers: processes that sample; None for as many as pay off, ``"ray"`` for a Ray cluster.
        seed: of the noise; take another than the search's.
        device: where to run.
        progress: is told what happens.

    Raises:
        ConfigError: another pipeline than the shipped one comes without prompts.
        CalibriError: something cannot be loaded or does not fit.
    """
    calibration = _loaded(calibration, rewards)
    name, pipe = split_pipeline(pipeline)
    check_own_prompts(name or calibration.base_model, prompts)
    counts = {"num_prompts": num_prompts, "images_per_prompt": images_per_prompt}
    sections: dict[str, dict[str, Any]] = {
        "sampling": {"batch_size": batch_size, "workers": workers},
        "evaluation": {**counts, "step_multiples": tuple(step_multiples)},
    }
    run = {**_model(calibration, name), "device": device, "seed": seed}
    run["lora"] = lora or (calibration.lora if pipe is None else None)
    config, objects = _config(calibration, rewards, reward_options or {}, run, sections)
    sets = PromptSets((), (), _test_prompts(calibration, prompts, num_prompts, seed))
    with closing(Session(config, sets, pipe=pipe, rewards=objects)) as session:
        return _compared(session, calibration, progress or Progress())


def _loaded(calibration: Calibration | str | Path, rewards: Sequence[Any] | None) -> Calibration:
    if not isinstance(calibration, Calibration):
        calibration = Calibration.from_pretrained(calibration)
    if not rewards:
        check_stored_names(calibration.rewards)
    return calibration


def _model(calibration: Calibration, name: str | None) -> dict[str, Any]:
    """The model to evaluate: the calibration's own unless another is named."""
    if name:
        return {"pipeline": name, "revision": None}
    return {"pipeline": calibration.base_model, "revision": calibration.base_revision}


def _compared(session: Session, calibration: Calibration, progress: Progress) -> Evaluation:
    images = images_by_phase(session.config, session.space.size)["evaluation"]
    with session.evaluator(Ledger(MemoryRecords()), progress, images) as evaluator:
        comparer = Comparer(session, evaluator, session.prompts.test)
        return comparer.run(calibration.coefficients, progress)


def _resolved(
    names: Sequence[str], options: Mapping[str, Mapping[str, Any]]
) -> tuple[list[str], Mapping[str, Mapping[str, Any]]]:
    """Rewards that the user named, those in files by their labels."""
    given = {"objective": names[0], "held_out": names[1:], "options": options}
    found = resolve_files(validate_config({"rewards": given}).rewards)
    return [found.objective, *found.held_out], found.options


def _config(
    calibration: Calibration,
    rewards: Sequence[Any] | None,
    reward_options: Mapping[str, Mapping[str, Any]],
    run: Mapping[str, Any],
    sections: Mapping[str, Mapping[str, Any]],
) -> tuple[RunConfig, Mapping[str, Reward]]:
    """A configuration of the space, sampling and rewards of a calibration, and given rewards."""
    given, objects = name_rewards(rewards or list(calibration.rewards))
    names, options = _resolved(given, reward_options)
    config = validate_config(
        {
            **run,
            "dtype": calibration.sampling.dtype,
            "sampling": {
                **calibration.sampling.model_dump(exclude={"dtype"}),
                "negative_prompt": calibration.sampling.negative_prompt,
                **sections["sampling"],
            },
            "space": {
                "granularity": calibration.coefficients.granularity,
                **_members(calibration.coefficients),
            },
            "rewards": {
                "objective": names[0],
                "held_out": _held_out(names),
                "options": join_stored_options(calibration.reward_options, options, _used(names)),
            },
            "evaluation": sections["evaluation"],
        }
    )
    return config, objects


def _members(coefficients: Coefficients) -> dict[str, Any]:
    separate = coefficients.num_branches > 1 and len(coefficients.scales) > coefficients.knots
    return {
        "branches": "separate" if separate else "shared",
        "members": coefficients.member_branches.count(0),
        "knots": coefficients.knots,
        "output_knots": coefficients.output_knots,
    }


def _held_out(names: Sequence[str]) -> list[str]:
    """Names after the first that are no part of it: a calibration lists the parts of a mixture."""
    parts = parse_mixture(names[0]).weights
    return [name for name in names[1:] if name not in parts]


def _used(names: Sequence[str]) -> list[str]:
    return [*parse_mixture(names[0]).weights, *_held_out(names)]


def _test_prompts(
    calibration: Calibration, source: Path | str | None, count: int, seed: int
) -> tuple[Prompt, ...]:
    if source is None:
        return unseen_prompts(calibration, count, seed)
    return prompts_from(str(source), "held_out", count, seed)[:count]

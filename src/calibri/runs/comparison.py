"""Original against calibrated, on prompts and noise that the search never used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from calibri.arrays import Scores
from calibri.artifact import Calibration
from calibri.coefficients import Coefficients
from calibri.config import RunConfig, validate_config
from calibri.configure import check_own_prompts
from calibri.planning import images_by_phase
from calibri.progress import Progress
from calibri.prompts import Prompt, PromptSets, prompts_from
from calibri.results import Comparison, Evaluation, Fidelity, SettingResult
from calibri.rewards import (
    DIVERSITY,
    FEATURES,
    Mixture,
    Scale,
    check_stored_names,
    frechet_distance,
    join_stored_options,
    name_rewards,
    parse_mixture,
    resolve_files,
)
from calibri.runs.fresh_prompts import fresh_prompts
from calibri.runs.objects import split_pipeline
from calibri.runs.session import Session
from calibri.sampling import Noise, film_strip
from calibri.scoring import Evaluator, Ledger, MemoryRecords, complete
from calibri.seeds import derive_seed
from calibri.statistics import bootstrap_mean, paired_difference


def evaluate(
    calibration: Calibration | str | Path,
    *,
    pipeline: Any = None,
    prompts: Path | str | None = None,
    rewards: Sequence[Any] | None = None,
    reward_options: Mapping[str, Mapping[str, Any]] | None = None,
    num_prompts: int = 256,
    images_per_prompt: int = 2,
    step_multiples: Sequence[int] = (1, 2, 3),
    batch_size: int = 32,
    workers: int | None = None,
    seed: int = 1,
    device: str = "auto",
    progress: Progress | None = None,
) -> Evaluation:
    """Compare a pipeline with and without a calibration, on the same prompts and noise.

    Args:
        calibration: a folder, a finished run, a repository id, or a ``Calibration``.
        pipeline: a name (see ``load_pipeline``) or a loaded pipeline; None for the calibration's
            base model.
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
        workers: processes that sample; None for as many as pay off.
        seed: of the noise; take another than the search's.
        device: where to run.
        progress: is told what happens.

    Raises:
        ConfigError: another pipeline than the shipped one comes without prompts.
        CalibriError: something cannot be loaded or does not fit.
    """
    if not isinstance(calibration, Calibration):
        calibration = Calibration.from_pretrained(calibration)
    if not rewards:
        check_stored_names(calibration.rewards)
    name, pipe = split_pipeline(pipeline)
    check_own_prompts(name or calibration.base_model, prompts)
    given, objects = name_rewards(rewards or list(calibration.rewards))
    names, options = _resolved(given, reward_options or {})
    config = _config(
        calibration,
        names,
        options,
        {
            "pipeline": name or calibration.base_model,
            "revision": None if name else calibration.base_revision,
            "device": device,
            "seed": seed,
        },
        {"batch_size": batch_size, "workers": workers},
        {
            "num_prompts": num_prompts,
            "images_per_prompt": images_per_prompt,
            "step_multiples": tuple(step_multiples),
        },
    )
    sets = PromptSets((), (), _test_prompts(calibration, prompts, num_prompts, seed))
    session = Session(config, sets, pipe=pipe, rewards=objects)
    try:
        return _compared(session, calibration, progress or Progress())
    finally:
        session.close()


def _compared(session: Session, calibration: Calibration, progress: Progress) -> Evaluation:
    images = images_by_phase(session.config, session.space.size)["evaluation"]
    with session.evaluator(Ledger(MemoryRecords()), progress.unit, images) as evaluator:
        comparer = Comparer(session, evaluator, calibration.coefficients, session.prompts.test)
        return comparer.run(progress)


def _resolved(
    names: Sequence[str], options: Mapping[str, Mapping[str, Any]]
) -> tuple[list[str], Mapping[str, Mapping[str, Any]]]:
    """Rewards that the user named, those in files by their labels."""
    given = {"objective": names[0], "held_out": names[1:], "options": options}
    found = resolve_files(validate_config({"rewards": given}).rewards)
    return [found.objective, *found.held_out], found.options


def _config(
    calibration: Calibration,
    names: Sequence[str],
    reward_options: Mapping[str, Mapping[str, Any]],
    run: Mapping[str, Any],
    sampling: Mapping[str, Any],
    evaluation: Mapping[str, Any],
) -> RunConfig:
    """A configuration of the space, sampling and rewards of a calibration."""
    return validate_config(
        {
            **run,
            "dtype": calibration.sampling.dtype,
            "sampling": {**calibration.sampling.model_dump(exclude={"dtype"}), **sampling},
            "space": {
                "granularity": calibration.coefficients.granularity,
                **_members(calibration.coefficients),
            },
            "rewards": {
                "objective": names[0],
                "held_out": _held_out(names),
                "options": join_stored_options(
                    calibration.reward_options, reward_options, _used(names)
                ),
            },
            "evaluation": evaluation,
        }
    )


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
        return fresh_prompts(calibration, count, seed)
    return prompts_from(str(source), "held_out", count, seed)[:count]


@dataclass(frozen=True)
class _Setting:
    calibrated: bool
    num_inference_steps: int

    @property
    def fidelity(self) -> Fidelity:
        return Fidelity(num_inference_steps=self.num_inference_steps)

    @property
    def label(self) -> str:
        who = "calibrated" if self.calibrated else "original"
        return f"{who}, {self.num_inference_steps} steps"


class Comparer:
    """Scores the settings of one evaluation.

    Args:
        session: the model, its rewards and its held-out prompts.
        evaluator: samples and keeps scores.
        coefficients: the calibration.
        prompts: held-out prompts.
    """

    def __init__(
        self,
        session: Session,
        evaluator: Evaluator,
        coefficients: Coefficients,
        prompts: Sequence[Prompt],
    ) -> None:
        self._session = session
        self._evaluator = evaluator
        self._coefficients = coefficients
        self._original = session.space.coefficients(session.space.start)
        self._prompts = prompts
        self._count = session.config.evaluation.images_per_prompt
        self._noises = session.noises("evaluation", 0, prompts, self._count)
        self._feature_reward = session.bench.measures.feature_reward

    def run(self, progress: Progress) -> Evaluation:
        """Score every setting and compare them pairwise."""
        settings = self._settings()
        dropped = self._evaluator.dropped
        progress.phase("evaluation", len(settings) * len(self._noises))
        scores = {setting: self._score(step, setting) for step, setting in enumerate(settings)}
        self._add_mixture(scores)
        session = self._session
        return Evaluation(
            objective=session.config.rewards.objective,
            held_out_rewards=list(session.config.rewards.held_out),
            variants={name: self._variant(name) for name in self._names},
            num_prompts=len(self._prompts),
            images_per_prompt=self._count,
            seed=session.config.seed,
            dropped=self._evaluator.dropped - dropped,
            settings=[self._result(setting, scores[setting]) for setting in settings],
            comparisons=[
                self._compare(name, scores[settings[0]], setting, scores[setting])
                for setting in settings
                if not setting.calibrated
                for name in self._names
            ],
        )

    @property
    def _names(self) -> tuple[str, ...]:
        """The objective first, which is no reward when it is a mixture, then every reward."""
        return tuple(
            dict.fromkeys(
                (self._session.config.rewards.objective, *self._session.bench.measures.rewards)
            )
        )

    def _variant(self, name: str) -> str:
        if name in self._session.bench.measures.rewards:
            return self._session.bench.measures.rewards[name].info.variant
        return "weighted z-scores, in spreads of the original model on these prompts"

    def _add_mixture(self, scores: Mapping[_Setting, dict[str, Scores]]) -> None:
        """Report a mixture in spreads of the original at the fewest steps, whatever the search's.

        A calibration can so be evaluated without the scales of the run that made it.
        """
        objective = self._session.config.rewards.objective
        if objective in self._session.bench.measures.rewards:
            return
        mixture = Mixture(self._session.mixture.weights)
        original = scores[_Setting(False, self._session.config.sampling.num_inference_steps)]
        scales = {
            name: Scale(float(np.nanmean(original[name])), float(np.nanstd(original[name])) or 1.0)
            for name in mixture.names
        }
        for found in scores.values():
            tables = {name: found[name][None] for name in mixture.names}
            found[objective] = mixture.combine(tables, scales)[0]

    def _settings(self) -> list[_Setting]:
        steps = self._session.config.sampling.num_inference_steps
        evaluation = self._session.config.evaluation
        return [
            *(_Setting(True, steps * multiple) for multiple in evaluation.calibrated_multiples),
            *(_Setting(False, steps * multiple) for multiple in evaluation.original_multiples),
        ]

    def _score(self, step: int, setting: _Setting) -> dict[str, Scores]:
        measures = list(self._session.bench.measures.rewards)
        # Images of a prompt that are not scored together cannot be compared.
        if 1 < self._count <= self._session.config.sampling.batch_size:
            measures.append(DIVERSITY)
        if self._feature_reward is not None:
            measures.append(FEATURES)
        before = self._evaluator.seconds
        candidate = self._coefficients if setting.calibrated else self._original
        scores = self._evaluator.score(
            "evaluation", step, [candidate], self._noises, measures, setting.fidelity
        )
        seconds = (self._evaluator.seconds - before) / len(self._noises)
        return {name: values[0] for name, values in scores.items()} | {
            "seconds": np.array([seconds])
        }

    def _result(self, setting: _Setting, scores: dict[str, Scores]) -> SettingResult:
        steps = setting.num_inference_steps
        return SettingResult(
            label=setting.label,
            calibrated=setting.calibrated,
            num_inference_steps=steps,
            guidance_scale=self._session.config.sampling.guidance_scale,
            nfe=steps * len(self._coefficients.start_weights)
            if setting.calibrated
            else self._session.bench.sampler.nfe(steps),
            scores={
                name: bootstrap_mean(complete(self._by_prompt(scores[name]))[0], self._seed(name))
                for name in self._names
            },
            diversity=float(np.nanmean(scores[DIVERSITY])) if DIVERSITY in scores else None,
            frechet=self._frechet(scores),
            seconds_per_image=float(scores["seconds"][0]),
        )

    def _frechet(self, scores: dict[str, Scores]) -> float | None:
        if FEATURES not in scores or self._feature_reward is None:
            return None
        texts = [noise.prompt.text for noise in self._noises]
        seed = derive_seed(self._session.config.seed, "reference images")
        reference = self._feature_reward.reference_features(texts, seed)
        if reference is None:
            return None
        features = scores[FEATURES]
        features = features[np.isfinite(features).all(axis=1)]
        return frechet_distance(features, reference.double().numpy())

    def _compare(
        self, name: str, ours: dict[str, Scores], setting: _Setting, theirs: dict[str, Scores]
    ) -> Comparison:
        a, b = complete(self._by_prompt(ours[name]), self._by_prompt(theirs[name]))
        return Comparison(
            reward=name,
            against=setting.label,
            num_inference_steps=setting.num_inference_steps,
            difference=paired_difference(a, b, self._seed(name)),
        )

    def _by_prompt(self, scores: Scores) -> Scores:
        return scores.reshape(len(self._prompts), self._count)

    def _seed(self, name: str) -> int:
        return derive_seed(self._session.config.seed, "bootstrap", name)


def sample_settings(
    session: Session,
    evaluator: Evaluator,
    coefficients: Coefficients,
    noises: Sequence[Noise],
    progress: Progress,
) -> dict[str, torch.Tensor]:
    """Sample the same noise with every setting of an evaluation, to look at.

    Returns:
        Label of each setting to uint8 (N, 3, H, W), the frames of videos side by side.
    """
    config = session.config
    steps = config.sampling.num_inference_steps
    settings = [_Setting(False, steps), _Setting(True, steps)]
    settings += [_Setting(False, steps * m) for m in config.evaluation.original_multiples if m > 1]
    original = session.space.coefficients(session.space.start)
    progress.phase("samples", len(settings) * len(noises))
    images = {}
    for setting in settings:
        candidate = coefficients if setting.calibrated else original
        sampled = evaluator.sample(candidate, noises, setting.fidelity)
        images[setting.label] = film_strip(sampled)
        progress.unit(len(noises), True)
    return images


def verdict(evaluation: Evaluation) -> str:
    """Say in words what an evaluation shows, no more than its intervals allow."""
    first = min(c.num_inference_steps for c in evaluation.comparisons)
    same = [c.difference for c in evaluation.comparisons if c.num_inference_steps == first]
    if all(d.mean == d.low == d.high == 0 for d in same):
        return "The search found nothing better than the original model, which is what it returns."
    held_out = evaluation.held_out_rewards or [evaluation.objective]
    parts = [_at_same_steps(evaluation, first)]
    for name in held_out:
        parts.append(_against_more_steps(evaluation, name, first))
    return " ".join(part for part in parts if part)


def _at_same_steps(evaluation: Evaluation, steps: int) -> str:
    same = [c for c in evaluation.comparisons if c.num_inference_steps == steps]
    pieces = [
        f"{c.reward} {c.difference.mean:+.3f} [{c.difference.low:+.3f}, {c.difference.high:+.3f}]"
        for c in same
    ]
    if all(c.difference.low > 0 for c in same):
        head = f"At {steps} steps the calibrated model is better on every reward"
    elif all(c.difference.high < 0 for c in same):
        head = f"At {steps} steps the calibrated model is worse on every reward"
    else:
        head = f"At {steps} steps not every reward changed for the better"
    return (
        f"{head}: {', '.join(pieces)} (95% intervals, {evaluation.num_prompts} held-out prompts)."
    )


def _against_more_steps(evaluation: Evaluation, reward: str, first: int) -> str:
    more = [
        c for c in evaluation.comparisons if c.reward == reward and c.num_inference_steps > first
    ]
    reached = [c for c in more if c.difference.high > 0]
    if not more:
        return ""
    if not reached:
        return f"On {reward} it does not reach the original at {more[0].num_inference_steps} steps."
    last = max(reached, key=lambda c: c.num_inference_steps)
    relation = "is above" if last.difference.low > 0 else "is not distinguishable from"
    return (
        f"On {reward} it {relation} the original at {last.num_inference_steps} steps, "
        f"{last.num_inference_steps / first:.3g} times as many."
    )

"""Original against calibrated, on prompts and noise that the search never used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from calibri.arrays import Scores
from calibri.coefficients import Coefficients
from calibri.progress import Progress
from calibri.prompts import Prompt
from calibri.results import (
    DIVERSITY,
    FEATURES,
    Checkpoint,
    Comparison,
    Evaluation,
    Fidelity,
    ImageSets,
    SettingResult,
)
from calibri.rewards import Mixture, Scale
from calibri.runs.image_sets import ImageSetComparer
from calibri.runs.session import Session
from calibri.sampling import Noise
from calibri.scoring import Asked, Evaluator, complete, frechet_distance
from calibri.seeds import derive_seed
from calibri.statistics import bootstrap_mean, paired_difference


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
        prompts: held-out prompts.
    """

    def __init__(self, session: Session, evaluator: Evaluator, prompts: Sequence[Prompt]) -> None:
        self._session = session
        self._evaluator = evaluator
        self._original = session.space.coefficients(session.space.start)
        self._prompts = prompts
        self._count = session.config.evaluation.images_per_prompt
        self._noises = session.noises("evaluation", 0, prompts, self._count)
        self._sets = ImageSetComparer(session, prompts, self._count)

    def expect(self) -> None:
        """Say that the original model will be scored, whatever a search finds."""
        for step, setting in reversed(list(enumerate(self._settings()))):
            if not setting.calibrated:
                self._evaluator.expect(self._asked(step, setting, self._original))

    def run(self, coefficients: Coefficients, progress: Progress) -> Evaluation:
        """Score every setting and compare them pairwise.

        Args:
            coefficients: the calibration.
            progress: is told of it.
        """
        settings = self._settings()
        dropped = self._evaluator.dropped
        progress.phase("evaluation", len(settings) * len(self._noises))
        asked = {
            setting: self._asked(
                step, setting, coefficients if setting.calibrated else self._original
            )
            for step, setting in enumerate(settings)
        }
        for each in reversed(asked.values()):
            self._evaluator.expect(each)
        scores = {setting: self._score(each) for setting, each in asked.items()}
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
            settings=[self._result(setting, scores[setting], coefficients) for setting in settings],
            comparisons=[
                self._compare(name, scores[settings[0]], setting, scores[setting])
                for setting in settings
                if not setting.calibrated
                for name in self._names
            ],
            image_sets=self._image_sets(scores),
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

    def _asked(self, step: int, setting: _Setting, candidate: Coefficients) -> Asked:
        measures = list(self._session.bench.measures.rewards)
        if self._sets.are_together:
            measures.append(DIVERSITY)
        measures += [name for name in self._sets.measures if name not in measures]
        return Asked("evaluation", step, [candidate], self._noises, measures, setting.fidelity)

    def _score(self, asked: Asked) -> dict[str, Scores]:
        return {name: values[0] for name, values in self._evaluator.score(*asked).items()}

    def _result(
        self, setting: _Setting, scores: dict[str, Scores], coefficients: Coefficients
    ) -> SettingResult:
        steps = setting.num_inference_steps
        return SettingResult(
            label=setting.label,
            calibrated=setting.calibrated,
            num_inference_steps=steps,
            guidance_scale=self._session.config.sampling.guidance_scale,
            nfe=steps * len(coefficients.start_weights)
            if setting.calibrated
            else self._session.bench.sampler.nfe(steps),
            scores={
                name: bootstrap_mean(complete(self._by_prompt(scores[name]))[0], self._seed(name))
                for name in self._names
            },
            diversity=float(np.nanmean(scores[DIVERSITY])) if DIVERSITY in scores else None,
            frechet=self._frechet(scores),
        )

    def _image_sets(self, scores: Mapping[_Setting, dict[str, Scores]]) -> ImageSets:
        """Compare sets of images at the fewest steps, where both models are sampled."""
        steps = self._session.config.sampling.num_inference_steps
        ours, theirs = (scores[_Setting(calibrated, steps)] for calibrated in (True, False))
        return ImageSets(
            diversity=self._sets.diversity(ours, theirs), frechet=self._sets.frechet(ours, theirs)
        )

    def _frechet(self, scores: dict[str, Scores]) -> float | None:
        reference = self._sets.reference()
        if FEATURES not in scores or reference is None:
            return None
        features = scores[FEATURES]
        return frechet_distance(features[np.isfinite(features).all(axis=1)], reference)

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
) -> dict[str, Tensor]:
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


def film_strip(images: Tensor) -> Tensor:
    """Put the frames of each video side by side, to look at.

    Args:
        images: (N, frames, 3, H, W), or images (N, 3, H, W), which stay as they are.

    Returns:
        (N, 3, H, frames * W).
    """
    return images if images.ndim == 4 else images.permute(0, 2, 3, 1, 4).flatten(3)


def verdict(evaluation: Evaluation, checkpoints: Sequence[Checkpoint] = ()) -> str:
    """Say in words what an evaluation shows, no more than its intervals allow.

    Args:
        evaluation: what to speak of.
        checkpoints: of the search before it, which tell why nothing was chosen.
    """
    first = min(c.num_inference_steps for c in evaluation.comparisons)
    same = [c.difference for c in evaluation.comparisons if c.num_inference_steps == first]
    if all(d.mean == d.low == d.high == 0 for d in same):
        return _nothing_chosen(checkpoints)
    held_out = evaluation.held_out_rewards or [evaluation.objective]
    parts = [_at_same_steps(evaluation, first), _of_image_sets(evaluation.image_sets)]
    for name in held_out:
        parts.append(_against_more_steps(evaluation, name, first))
    return " ".join(part for part in parts if part)


def _nothing_chosen(checkpoints: Sequence[Checkpoint]) -> str:
    vetoes = [c.vetoed_by for c in checkpoints if c.vetoed_by and c.difference.low > 0]
    if not vetoes:
        return "The search found nothing better than the original model, which is what it returns."
    names = ", ".join(dict.fromkeys(name for vetoed_by in vetoes for name in vetoed_by))
    return (
        f"The search returns the original model: what raised the objective was worse in {names}, "
        "which vetoed it. A longer search may find what is better in all; rewards.guard decides "
        "whether they have a veto."
    )


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


def _of_image_sets(found: ImageSets | None) -> str:
    """Say what no score of a single image shows, where it is surely worse."""
    diversity, frechet = (found.diversity, found.frechet) if found else (None, None)
    parts = []
    if diversity is not None and diversity.high < 0:
        mean, low, high = (f"{x:+.0%}" for x in (diversity.mean, diversity.low, diversity.high))
        parts.append(f"the images of one prompt are more alike: diversity {mean} [{low}, {high}]")
    if frechet is not None and frechet.low > 0:
        mean, low, high = (f"{x:+.3g}" for x in (frechet.mean, frechet.low, frechet.high))
        parts.append(
            f"its images as a whole are farther from real ones: Frechet distance {mean} "
            f"[{low}, {high}]"
        )
    return f"But {', and '.join(parts)}." if parts else ""


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

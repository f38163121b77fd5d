"""What a calibration does to sets of images, beside what rewards say of single ones.

A model that paints one picture for every seed of a prompt can please every reward. So each
checkpoint of a search, and its last evaluation, compare with the original model how much the
images of a prompt differ, and how far all images are from real ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from calibri.arrays import Scores
from calibri.coefficients import Coefficients
from calibri.planning import diversity_prompts
from calibri.prompts import Prompt
from calibri.results import DIVERSITY, FEATURES, Figure, ImageSets
from calibri.runs.feedback import scale_prompts
from calibri.runs.session import Session
from calibri.scoring import Asked, Evaluator, feature_diversity, frechet_influence
from calibri.seeds import derive_seed
from calibri.statistics import bootstrap_mean, paired_difference

FRECHET = "Frechet distance"


class ImageSetComparer:
    """Compares sets of images of two vectors, on the same prompts and noise.

    Args:
        session: its rewards may have features and real images.
        prompts: of the images.
        count: images of each.
    """

    def __init__(self, session: Session, prompts: Sequence[Prompt], count: int) -> None:
        self._session = session
        self._texts = [prompt.text for prompt in prompts for _ in range(count)]
        self._count = count
        self._reference: Scores | None = None

    @property
    def measures(self) -> tuple[str, ...]:
        """What to measure of the images; distances of features where a reward has them."""
        if self._session.bench.measures.feature_reward is not None:
            return (FEATURES,)
        return (DIVERSITY,) if self.are_together else ()

    @property
    def are_together(self) -> bool:
        """Whether the images of a prompt are scored together; others cannot be compared."""
        return 1 < self._count <= self._session.config.sampling.batch_size

    def diversity(self, ours: Mapping[str, Scores], theirs: Mapping[str, Scores]) -> Figure | None:
        """Change of the diversity, in units of the original's.

        Args:
            ours: measures of the calibrated images, (images,) or (images, D); NaN where dropped.
            theirs: of the original's, in the same order.

        Returns:
            None where it was not measured, or the original has none to lose.
        """
        a, b = self._spread(ours), self._spread(theirs)
        if a is None or b is None:
            return None
        kept = np.isfinite(a) & np.isfinite(b)
        original = float(b[kept].mean()) if kept.sum() > 1 else 0.0
        if original <= 0.0:
            return None
        return paired_difference(a[kept] / original, b[kept] / original, self._seed("diversity"))

    def _spread(self, found: Mapping[str, Scores]) -> Scores | None:
        """Distance between the images of each prompt, (prompts,)."""
        if self._count < 2:
            return None
        if FEATURES in found:
            features = found[FEATURES]
            return feature_diversity(features.reshape(-1, self._count, features.shape[-1]))
        if DIVERSITY in found:
            return np.asarray(found[DIVERSITY].reshape(-1, self._count).mean(axis=1))
        return None

    def frechet(self, ours: Mapping[str, Scores], theirs: Mapping[str, Scores]) -> Figure | None:
        """Change of the Frechet distance to real images; None where there are none."""
        if FEATURES not in ours or FEATURES not in theirs:
            return None
        a, b = ours[FEATURES], theirs[FEATURES]
        kept = np.asarray(np.isfinite(a).all(axis=1) & np.isfinite(b).all(axis=1))
        real = self.reference()
        if real is None or kept.sum() < 2:
            return None
        (mine, influence), (original, other) = (frechet_influence(x[kept], real) for x in (a, b))
        # Prompts are what is resampled, and all images have the same weight.
        changes = np.full(len(kept), np.nan)
        changes[kept] = mine - original + influence - other
        by_prompt = changes.reshape(-1, self._count)
        whole = by_prompt[np.isfinite(by_prompt).all(axis=1)]
        return bootstrap_mean(whole, self._seed(FRECHET)) if len(whole) > 1 else None

    def reference(self) -> Scores | None:
        """Features of real images of the prompts, (images, D); None where there are none."""
        reward = self._session.bench.measures.feature_reward
        if self._reference is None and reward is not None:
            seed = derive_seed(self._session.config.seed, "reference images")
            found = reward.reference_features(self._texts, seed)
            self._reference = None if found is None else found.double().numpy()
        return self._reference

    def _seed(self, name: str) -> int:
        return derive_seed(self._session.config.seed, "bootstrap", name)


class ImageSetWatch:
    """Compares the images of checkpoints with the original's.

    The validation's images are used as they are, but for the diversity: where there is one image of
    a prompt, some prompts are given two more, at most a twentieth of the images of the run.

    Args:
        session: scores them.
        evaluator: keeps their scores.
    """

    def __init__(self, session: Session, evaluator: Evaluator) -> None:
        self._session, self._evaluator = session, evaluator
        config, prompts = session.config, session.prompts.validation
        self._validation = ImageSetComparer(session, prompts, config.search.images_per_prompt)
        pairs = diversity_prompts(config, session.space.size, scale_prompts(session))
        self._pairs = ImageSetComparer(session, prompts[:pairs], 2)
        self._noises = session.noises("diversity", 0, prompts[:pairs], 2)

    @property
    def measures(self) -> tuple[str, ...]:
        """What to measure of the validation's images."""
        if self._session.config.rewards.guard == "off":
            return ()
        if self._noises and self._validation.reference() is None:
            return ()
        return self._validation.measures

    def expect(self, step: int, candidate: Coefficients) -> None:
        """Say what ``more`` will be asked."""
        if self._noises:
            self._evaluator.expect(self._asked(step, candidate))

    def more(self, step: int, candidate: Coefficients) -> dict[str, Scores]:
        """Measure the images that are sampled beside the validation's."""
        if not self._noises:
            return {}
        tables = self._evaluator.score(*self._asked(step, candidate))
        return {name: table[0] for name, table in tables.items()}

    def _asked(self, step: int, candidate: Coefficients) -> Asked:
        return Asked("diversity", step, [candidate], self._noises, self._pairs.measures)

    def compare(
        self,
        ours: tuple[Mapping[str, Scores], Mapping[str, Scores]],
        theirs: tuple[Mapping[str, Scores], Mapping[str, Scores]],
    ) -> ImageSets:
        """Compare what was measured of the validation's images, and beside them."""
        of_pairs = bool(self._noises)
        comparer = self._pairs if of_pairs else self._validation
        return ImageSets(
            diversity=comparer.diversity(ours[of_pairs], theirs[of_pairs]),
            frechet=self._validation.frechet(ours[0], theirs[0]),
        )

    def vetoes(self, found: ImageSets) -> list[str]:
        """Name what is surely worse than the guard allows."""
        least = self._session.config.rewards.least_diversity
        return [
            *([DIVERSITY] if lost_diversity(found, least) else []),
            *([FRECHET] if found.frechet is not None and found.frechet.low > 0 else []),
        ]


def lost_diversity(found: ImageSets, least: float) -> bool:
    """Whether images surely have less than a share ``least`` of the original's diversity."""
    return found.diversity is not None and found.diversity.high < least - 1

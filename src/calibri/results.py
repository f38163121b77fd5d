"""Typed results: what commands return, reports draw and artifacts keep.

Everything here is plain data that survives a round trip through JSON. No torch.
"""

from __future__ import annotations

import math

from pydantic import BaseModel, ConfigDict, Field


class Record(BaseModel):
    """Base of all results: immutable, and unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Figure(Record):
    """A mean with its 95% bootstrap interval over ``n`` prompts."""

    mean: float
    low: float
    high: float
    n: int


DIVERSITY, FEATURES = "diversity", "features"
"""Measures that are no rewards: of the pixels of a prompt's images, and for a Frechet distance."""


class SettingResult(Record):
    """One way of sampling, scored on the held-out prompts.

    Attributes:
        label: for people, for example ``"original, 12 steps"``.
        calibrated: whether the calibration was applied.
        num_inference_steps: steps of the sampler.
        nfe: transformer evaluations per image.
        scores: reward name to mean score.
        diversity: mean pairwise RMS distance of images of one prompt, or None when not measured.
        frechet: Frechet distance to reference images, or None when there are none.
        seconds_per_image: no longer measured: a calibration changes no cost, and one noisy
            measurement could only seem to say otherwise. Older results have it.
    """

    label: str
    calibrated: bool
    num_inference_steps: int
    guidance_scale: float
    nfe: int
    scores: dict[str, Figure]
    diversity: float | None = None
    frechet: float | None = None
    seconds_per_image: float | None = None


class ImageSets(Record):
    """What a calibration does to sets of images, which no score of a single one shows.

    Attributes:
        diversity: change of the distance between images of one prompt, paired, in units of the
            original's; -1 when they are all the same. None when it was not measured.
        frechet: change of the Frechet distance to real images, paired; above 0 is worse. None where
            no reward has features and real images.
    """

    diversity: Figure | None = None
    frechet: Figure | None = None


class Comparison(Record):
    """Calibrated minus one uncalibrated setting, paired by (prompt, seed)."""

    reward: str
    against: str
    num_inference_steps: int
    difference: Figure


class Evaluation(Record):
    """Baseline against calibrated on prompts and seeds that the search never used.

    Attributes:
        dropped: (prompt, seed) pairs left out because an image could not be scored, summed over
            the settings; an interval's ``n`` counts the prompts that it still covers.
        image_sets: what no single image shows, at the fewest steps.
    """

    objective: str
    held_out_rewards: list[str]
    variants: dict[str, str]
    num_prompts: int
    images_per_prompt: int
    seed: int
    dropped: int = 0
    settings: list[SettingResult]
    comparisons: list[Comparison]
    image_sets: ImageSets | None = None

    def setting(self, *, calibrated: bool, num_inference_steps: int) -> SettingResult | None:
        """Find one setting, or None when it was not evaluated."""
        for setting in self.settings:
            if (setting.calibrated, setting.num_inference_steps) == (
                calibrated,
                num_inference_steps,
            ):
                return setting
        return None


class Generation(Record):
    """One generation of the search, as the reward curve shows it.

    Attributes:
        mean: mean objective of the candidates on the bucket; after a race, of those that stayed, on
            the prompts that they were not chosen on.
        best: highest mean objective of a single candidate; noisy, shown and never returned.
        baseline: objective of the uncalibrated model on the same prompts and noise.
        sigma: step size of the search after the generation.
        images: images scored so far, all candidates and the baseline.
        seconds: time spent so far, interruptions excluded.
    """

    generation: int
    mean: float
    best: float
    baseline: float
    sigma: float
    images: int
    seconds: float


class Checkpoint(Record):
    """A result of the search so far, scored against the baseline on the validation prompts.

    Attributes:
        difference: of the objective, paired.
        held_out: difference of each held-out reward that guards the search.
        image_sets: what no single image shows.
        vetoed_by: held-out rewards whose whole interval is below 0, ``"diversity"`` and ``"Frechet
            distance"`` (``calibri.runs.image_sets``); such a checkpoint is never chosen.
    """

    generation: int
    difference: Figure
    chosen: bool = False
    held_out: dict[str, Figure] = {}
    image_sets: ImageSets = ImageSets()
    vetoed_by: list[str] = []


class VarianceComponents(Record):
    """Variances of the effects that a score is the sum of (``calibri.runs.probe.variance``).

    Attributes:
        candidate: of the candidates' true means: what a search can use.
        prompt: of the prompts' difficulty, common to all candidates.
        noise: of the seeds of a prompt, common to all candidates.
        candidate_prompt: of what suits a candidate and a prompt.
        residual: of single images beyond all that.
    """

    candidate: float
    prompt: float
    noise: float
    candidate_prompt: float
    residual: float


class Fidelity(Record):
    """How images are sampled where that differs from ``sampling``: cheaper, or at more steps.

    Attributes:
        num_inference_steps: None for those of ``sampling``, like all that follows.
        height: pixels.
        width: pixels.
        max_sequence_length: tokens of a prompt; None for the pipeline's own number.
        cache_interval: the transformer runs at the first and every so many-th step
            (``calibri.sampling.step_cache``); None for all.
    """

    num_inference_steps: int | None = Field(None, ge=1)
    height: int | None = Field(None, ge=1)
    width: int | None = Field(None, ge=1)
    max_sequence_length: int | None = Field(None, ge=1)
    cache_interval: int | None = Field(None, ge=2, le=100)

    def updated(self, other: Fidelity) -> Fidelity:
        """Copy with the values that ``other`` gives in place of these."""
        return self.model_copy(update=other.model_dump(exclude_none=True))

    def evaluations(self, num_inference_steps: int) -> int:
        """Count the evaluations of an image that has so many steps, unless this gives others."""
        steps = self.num_inference_steps or num_inference_steps
        return math.ceil(steps / (self.cache_interval or 1))

    @property
    def label(self) -> str:
        """The values it gives, for people."""
        parts = {
            "{} steps": self.num_inference_steps,
            "height {}": self.height,
            "width {}": self.width,
            "{} text tokens": self.max_sequence_length,
            "cache interval {}": self.cache_interval,
        }
        said = [text.format(value) for text, value in parts.items() if value is not None]
        return ", ".join(said) or "full fidelity"


# As ``sampling`` says, throughout.
FULL = Fidelity()


class FidelityResult(Record):
    """How well cheaper images rank candidates.

    Attributes:
        label: what is cheaper, for people.
        cost: of an image in units of one at full fidelity, counted (``calibri.runs.probe``).
        tau: Kendall's tau with the full fidelity.
        bias: change of the error from the original model to a candidate one step size away.
        refused: why it cannot serve the search; empty when it can.
    """

    fidelity: Fidelity
    label: str
    cost: float
    tau: Figure
    bias: Figure
    refused: str


class FirstMeasurement(Record):
    """What was measured before a search, and what it is run with.

    Attributes:
        candidates: drawn at the first step size, beside the original model.
        images: sampled for it.
        reliability: share of the variance of candidates' means on a bucket that is true.
        expected_tau: of the ranking by a bucket with the true one, with what was chosen.
        self_tau: tau of the full fidelity with itself on other noise; a cheaper one can hardly
            have more.
        popsize: chosen.
        bucket_size: chosen.
        fidelity: of the generations.
        reasons: what was decided and why, in words.
    """

    candidates: int
    num_prompts: int
    images_per_prompt: int
    images: int
    components: VarianceComponents
    reliability: float
    expected_tau: float
    self_tau: Figure
    fidelities: list[FidelityResult]
    popsize: int
    bucket_size: int
    fidelity: Fidelity
    reasons: list[str]


class SearchResult(Record):
    """What the search did and which coefficients it returns.

    Attributes:
        coefficients: parameter name to value, in the order of the flat vector.
        stopped: why the search ended, in words.
        images: images sampled by the search and its validation.
        dropped: (prompt, seed) pairs left out because an image could not be scored.
        batch_size: images that were computed at once; None in older results.
        measured: what was measured before, and how the search was run because of it.
    """

    coefficients: dict[str, float]
    generations: list[Generation]
    checkpoints: list[Checkpoint]
    stopped: str
    images: int
    seconds: float
    dropped: int = 0
    batch_size: int | None = None
    measured: FirstMeasurement | None = None


class RunPlan(Record):
    """What a run sets out to do.

    Attributes:
        device: kind of device, such as ``"cuda"``.
        parameters: numbers that are searched.
        generations: budget.
        images: phase to images, at most.
        teraflop: phase to what one image of it costs on average, counted
            (``calibri.planning.image_teraflop``); empty where it cannot be counted.
    """

    device: str
    parameters: int
    generations: int
    images: dict[str, int]
    teraflop: dict[str, float] = {}


class Computed(Record):
    """One unit that was computed, not read from a journal.

    Attributes:
        worker: who computed it; empty where there is only one.
        images: of the unit.
        failed: images that could not be scored and are left out.
        retries: workers that were lost over it, and images that were sampled again because a score
            failed.
    """

    worker: str
    images: int
    failed: int = 0
    retries: int = 0


class SiteRecord(Record):
    """One site, as ``calibri inspect`` lists it and the report draws it."""

    name: str
    block: str
    layer: str
    stream: str
    parameter: str


class SampleRow(Record):
    """Images of one prompt and one noise seed: setting label to file name under ``images/``."""

    prompt: str
    seed: int
    files: dict[str, str]


class RunSummary(Record):
    """Everything a report needs to know about a finished run; kept as ``results.json``.

    Attributes:
        verdict: the outcome in one or two sentences, for people.
        coefficients: label of each entry of the flat vector (``transformer_blocks.0.attn[0]``,
            ``conditional/...``, ``output``) to its value.
        start: label to the value of the uncalibrated model (1, or the guidance weights).
        machine: what the run ran on: ``cpu``, ``threads``, ``torch`` and so on.
    """

    name: str
    pipeline: str
    transformer_class: str
    calibri_version: str
    created: str
    verdict: str
    config: dict[str, object]
    granularity: str
    sites: list[SiteRecord]
    coefficients: dict[str, float]
    start: dict[str, float]
    search: SearchResult
    evaluation: Evaluation | None
    samples: list[SampleRow]
    machine: dict[str, str]

    def __repr__(self) -> str:
        """The outcome in words; fields have the figures."""
        return f"<run {self.name} of {self.pipeline}: {self.verdict}>"

    __str__ = __repr__

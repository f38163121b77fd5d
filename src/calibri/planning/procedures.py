"""What one way of searching costs: images by phase, FLOPs by part, hours by machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from calibri.config import RunConfig, SearchConfig
from calibri.pipelines import Geometry
from calibri.planning.flops import ImageFlops
from calibri.planning.generations import bucket_sizes, gradient_updates, images_of_generations
from calibri.planning.throughput import Speed
from calibri.results import Record
from calibri.rewards import Mixture, reward_cost, used_rewards
from calibri.search import fewest_prompts

TERA, PETA = 1e12, 1e15
# The authors' loop: 496 prompts, 16 a bucket, are scored before the first and every 10th iteration.
_PAPER_VALIDATION = 496
# What the images of a prompt have in common is seen on at most this share of a run's images.
_DIVERSITY_SHARE = 0.05
# Runs of fewer images are not worth measuring first, unless asked for.
WORTHWHILE_IMAGES = 20_000
# Beside what is counted, the host, the reward's preparation and waiting: at most this much more.
OVERHEAD = 1.25


class Hours(Record):
    """Time on one machine, all of it busy with one run.

    Attributes:
        low: at the highest throughput, nothing else costing time.
        high: at the lowest, with ``OVERHEAD``.
    """

    speed: Speed
    low: float
    high: float


class Procedure(Record):
    """What one way of searching costs.

    Attributes:
        parameters: numbers that are searched.
        bucket_size: prompts of the first generation.
        final_bucket_size: prompts of the last.
        updates: of a generation by gradients, each on a bucket of its own; 0 of any other.
        with_original: the original model is scored beside the candidates of each generation.
        images: phase to images.
        petaflop: transformer, text encoders, VAE and rewards.
        published_hours: of an H100, as the paper reports them.
    """

    title: str
    parameters: int
    generations: int
    popsize: int
    updates: int = 0
    bucket_size: int
    final_bucket_size: int
    with_original: bool
    images: dict[str, int]
    petaflop: dict[str, float]
    hours: list[Hours]
    published_hours: float | None = None


def images_by_phase(config: RunConfig, size: int, scale_prompts: int = 0) -> dict[str, int]:
    """Count the images that a run will sample at most, by phase.

    An image with its gradient is counted as three, as everywhere.

    Args:
        config: of the run, with nothing left open.
        size: numbers that are searched.
        scale_prompts: prompts on which the rewards of a mixture are scaled first.
    """
    images = _images_of_scores(config, size, scale_prompts)
    pairs = diversity_prompts(config, size, scale_prompts)
    images["validation"] += _checkpoints(config.search) * 2 * pairs
    return images


def diversity_prompts(config: RunConfig, size: int, scale_prompts: int = 0) -> int:
    """Count the validation prompts of which each checkpoint samples two more images.

    They show whether the images of a prompt grow alike. There are none where the validation has
    several images of each prompt anyway, or where they would be too few to say anything.

    Args:
        config: of the run.
        size: numbers that are searched.
        scale_prompts: as for ``images_by_phase``.
    """
    search = config.search
    alone = search.images_per_prompt == 1 < config.sampling.batch_size
    if config.rewards.guard == "off" or not alone:
        return 0
    images = sum(_images_of_scores(config, size, scale_prompts).values())
    prompts = int(_DIVERSITY_SHARE * images / (2 * _checkpoints(search)))
    return min(prompts, search.num_validation_prompts) if prompts >= fewest_prompts() else 0


def _images_of_scores(config: RunConfig, size: int, scale_prompts: int = 0) -> dict[str, int]:
    search, evaluation = config.search, config.evaluation
    settings = len(evaluation.original_multiples) + len(evaluation.calibrated_multiples)
    count = search.images_per_prompt
    return {
        "search": sum(images_of_generations(config, size)) + scale_prompts * count,
        "validation": _checkpoints(search) * search.num_validation_prompts * count,
        "evaluation": settings * evaluation.num_prompts * evaluation.images_per_prompt,
    }


def _checkpoints(search: SearchConfig) -> int:
    """Vectors that a search validates, the original among them."""
    return -(-search.generations // search.validate_every) + 1


def measures_first(search: SearchConfig, planned_images: int) -> bool:
    """Say whether a run of so many images is to be measured first (``calibri.runs.probe``)."""
    wanted = planned_images >= WORTHWHILE_IMAGES if search.probe is None else search.probe
    return wanted and search.method_info.measures_first


class Counted:
    """FLOPs of the phases of a run.

    Args:
        config: of the run.
        flops: of an image at full fidelity.
        searched: of an image of the generations.
        per_step: transformer evaluations per step.
        branches: of guidance.

    Attributes:
        flops: of an image at full fidelity.
        nfe: transformer evaluations of an image at full fidelity.
    """

    def __init__(
        self,
        config: RunConfig,
        flops: ImageFlops,
        searched: ImageFlops,
        per_step: int,
        branches: int,
    ) -> None:
        self._config = config
        self.flops = flops
        self._searched = searched
        steps = config.sampling.num_inference_steps
        self.nfe = per_step * steps
        self._searched_nfe = per_step * config.search.fidelity.evaluations(steps)
        self._branches = branches  # the negative prompt is encoded beside each prompt
        self._objective, self._all = Mixture.of(config.rewards).names, used_rewards(config)

    def image(self) -> dict[str, float]:
        """One image at full fidelity, scored for the search, by part, in TFLOP."""
        return {
            "transformer": self.nfe * self.flops.forward / TERA,
            "text encoders": self._branches * self.flops.text / TERA,
            "VAE": self.flops.decode / TERA,
            "reward": self._reward(self._objective),
        }

    def _reward(self, names: Sequence[str]) -> float:
        return sum(cost.teraflop for cost in map(reward_cost, names) if cost)

    def paper(self, geometry: Geometry, size: int, speeds: list[Speed]) -> Procedure:
        """The paper's loop as its authors run it: every image encodes its prompt again."""
        search = SearchConfig(method="reference")
        generations, popsize = geometry.generations, search.population(size)
        images = {
            "search": generations * popsize * search.bucket_size,
            "validation": (generations // search.validate_every + 1) * _PAPER_VALIDATION,
        }
        total = sum(images.values())
        petaflop = {part: total * tera / 1e3 for part, tera in self.image().items()}
        granularity = self._config.space.granularity
        return Procedure(
            title="the paper's procedure",
            parameters=size,
            generations=generations,
            popsize=popsize,
            bucket_size=search.bucket_size,
            final_bucket_size=search.final_bucket_size,
            with_original=False,
            images=images,
            petaflop=petaflop,
            hours=_hours(petaflop, speeds),
            published_hours=geometry.published_hours.get(granularity),
        )

    def ours(self, size: int, speeds: list[Speed]) -> Procedure:
        """This configuration: every prompt is encoded once, and the original runs beside."""
        search = self._config.search
        images = images_by_phase(self._config, size)
        petaflop = self._petaflop(images, _images_of_scores(self._config, size)["validation"])
        return Procedure(
            title="Calibri, as configured",
            updates=gradient_updates(self._config, size),
            parameters=size,
            generations=search.generations,
            popsize=search.population(size),
            bucket_size=search.bucket_size,
            final_bucket_size=search.final_bucket_size,
            with_original=True,
            images=images,
            petaflop=petaflop,
            hours=_hours(petaflop, speeds),
        )

    def _petaflop(self, images: Mapping[str, int], validated: int) -> dict[str, float]:
        """Count phases; of the validation's images so many are scored by rewards."""
        full, searched, generations = self.flops, self._searched, images["search"]
        search, evaluation = self._config.search, self._config.evaluation
        transformer = sum(images[phase] * self._evaluated(phase) for phase in images)
        held_out = search.num_validation_prompts + evaluation.num_prompts
        text = sum(bucket_sizes(search)) * searched.text + held_out * full.text
        decoded = (sum(images.values()) - generations) * full.decode
        decoded += generations * searched.decode
        scored = {**images, "validation": validated}
        reward = sum(scored[phase] * self._reward(self._rewards_of(phase)) for phase in images)
        return {
            "transformer": transformer / PETA,
            "text encoders": self._branches * text / PETA,
            "VAE": decoded / PETA,
            "reward": reward / 1e3,
        }

    def by_phase(self, phases: Sequence[str]) -> dict[str, float]:
        """One image of each phase on average, its prompt not encoded, in TFLOP."""
        return {
            phase: (self._evaluated(phase) + self._decoded(phase)) / TERA
            + self._reward(self._rewards_of(phase))
            for phase in phases
        }

    def _evaluated(self, phase: str) -> float:
        """Evaluations of the transformer for one image of a phase, in FLOPs."""
        if phase == "search":
            return self._searched_nfe * self._searched.forward
        steps = self._config.evaluation.step_multiples_sampled if phase == "evaluation" else (1,)
        return self.nfe * self.flops.forward * sum(steps) / len(steps)

    def _decoded(self, phase: str) -> float:
        return (self._searched if phase == "search" else self.flops).decode

    def _rewards_of(self, phase: str) -> Sequence[str]:
        guarded = phase == "validation" and self._config.rewards.guard != "off"
        return self._all if guarded or phase == "evaluation" else self._objective


def _hours(petaflop: Mapping[str, float], speeds: Sequence[Speed]) -> list[Hours]:
    total = sum(petaflop.values()) * 1e3 / 3600
    return [
        Hours(speed=speed, low=total / speed.high, high=total / speed.low * OVERHEAD)
        for speed in speeds
    ]

"""One validated configuration for a run: defaults, a YAML file, then ``key=value`` overrides."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from calibri.errors import ConfigError, suggestion
from calibri.results import FULL, Fidelity
from calibri.search import METHODS, MethodInfo, fewest_prompts, method_info
from calibri.signatures import typed

SHIPPED = "shapes"
COMPOSITIONAL = "compositional"

Granularity = Literal["block", "layer", "gate"]
GRANULARITIES: tuple[Granularity, ...] = get_args(Granularity)
Branches = Literal["shared", "separate"]
OnFailure = Literal["retry", "drop", "fail"]
Guard = Literal["off", "veto", "stop"]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


Workers = int | Literal["ray"]
_MOST_WORKERS = 256


class RayConfig(_Section):
    """What workers ask of a Ray cluster (``sampling.workers: ray``).

    Attributes:
        workers: workers at most, which a cluster that scales itself is asked for; None for as many
            as its nodes have room for at any time, also those that join later.
        gpus_per_worker: of each worker, less than 1 to share one; None for 1 where the cluster has
            any and ``device`` is not ``"cpu"``, and 0 elsewhere.
        reward_workers: workers that hold the rewards alone, on GPUs of their own, and score what
            the others sample; 0 for rewards beside every pipeline.
        gpus_per_reward_worker: of each of these; None for as many as a worker has.
    """

    workers: int | None = Field(None, ge=1, le=10_000)
    gpus_per_worker: float | None = Field(None, ge=0.0, le=64.0)
    reward_workers: int = Field(0, ge=0, le=10_000)
    gpus_per_reward_worker: float | None = Field(None, ge=0.0, le=64.0)


class SamplingConfig(_Section):
    """How images are sampled, in diffusers' own words.

    Attributes:
        num_inference_steps: steps the calibration is searched for; use the number you will serve.
        guidance_scale: above 1 a pipeline with classifier-free guidance runs two branches; a
            guidance-distilled model (FLUX.1-dev) embeds it.
        true_cfg_scale: classifier-free guidance of the pipelines that call it so (FLUX,
            Qwen-Image), above 1; others have ``guidance_scale`` alone.
        negative_prompt: prompt of the unconditional branch, or None for the pipeline's own, which
            is empty nearly everywhere.
        height: pixels, or None for the pipeline's default.
        width: pixels, or None for the pipeline's default.
        num_frames: of a video, or None for the pipeline's default.
        frames_scored: evenly spaced frames of a video that rewards see; its score is their mean.
        batch_size: images per forward of the transformer, over all candidates; halved by itself
            when they do not fit into memory.
        workers: processes that sample, each with a model of its own: GPUs from the first one on,
            or groups of CPU cores. None for one on a GPU, and on a CPU as many as pay off;
            ``"ray"`` for those of a Ray cluster, which this process then only directs.
        ray: what these ask of the cluster.
        compile: compile the blocks of the transformer, once for all candidates; takes a minute or
            so, and once more for batches of other sizes, such as the last one of a phase and, where
            a shift is searched, those of candidates that share one.
    """

    num_inference_steps: int = Field(8, ge=1, le=1000)
    guidance_scale: float = Field(1.0, ge=0.0, le=100.0)
    true_cfg_scale: float = Field(1.0, ge=0.0, le=100.0)
    negative_prompt: str | None = None
    height: int | None = Field(None, ge=1)
    width: int | None = Field(None, ge=1)
    num_frames: int | None = Field(None, ge=1)
    frames_scored: int = Field(4, ge=1)
    batch_size: int = Field(32, ge=1)
    workers: Workers | None = None
    ray: RayConfig = RayConfig()
    compile: bool = False

    @field_validator("workers", mode="before")
    @classmethod
    def _number_or_ray(cls, workers: Any) -> Any:
        is_number = isinstance(workers, int) and not isinstance(workers, bool)
        if workers in (None, "ray") or (is_number and 1 <= workers <= _MOST_WORKERS):
            return workers
        raise PydanticCustomError(
            "workers", f"Input should be a whole number from 1 to {_MOST_WORKERS}, or 'ray'"
        )


class SpaceConfig(_Section):
    """Which scalars are searched (spec section 1).

    Attributes:
        granularity: one scalar per block, layer or gate.
        branches: under guidance, one set of scalars for both branches or one for each (N = 2).
        output_weights: search the output weights omega too.
        members: members of the ensemble that see the prompt; each costs a transformer evaluation.
        knots: points of the sampling trajectory with scales of their own, linear in the timestep
            between them; 1 is the paper's, constant scales.
        output_knots: the same for the output weights; with 2, the scale of the prediction and the
            guidance change from the first step to the last. None for 2 where it pays
            and 1 elsewhere.
        guidance: search a factor on the guidance too, on models that embed it (FLUX.1-dev).
        shift: search a factor on the shift of the scheduler's noise schedule too; None where it
            pays.
        sites: file of the sites of a model that is not known (``calibri inspect --discover
            --save``); None for those of the known families.
        start: where the search starts: name of a known guidance (``calibri.preset``), or
            a calibration of the same model, a folder or a repository id, as fine as the search or
            coarser; None for the original model.
    """

    granularity: Granularity = "gate"
    branches: Branches = "shared"
    output_weights: bool = True
    members: int = Field(1, ge=1, le=16)
    knots: int = Field(1, ge=1, le=16)
    output_knots: int | None = Field(None, ge=1, le=16)
    guidance: bool = False
    shift: bool | None = None
    sites: str | None = None
    start: str | None = None


class RewardConfig(_Section):
    """Which reward is maximised, and which only watch.

    Attributes:
        objective: name of the reward the search maximises, or a mixture of several such as
            ``"hpsv3:0.7,pickscore:0.3"`` (``calibri.rewards.mixing``).
        mixing: how a mixture becomes one number: ``"zscore"``, ``"rank"`` or ``"min"``.
        constraints: rewards that must not fall, such as ``"diversity >= 0.95 of baseline"``, where
            ``diversity`` is the distance between images of a prompt, or names a reward.
        held_out: names of rewards that are reported and never optimised.
        guard: held-out rewards are scored at every checkpoint too. A checkpoint at which one is
            below the original, its whole interval under 0, is never returned (``"veto"``); two of
            them in a row end the search as well (``"stop"``).
        least_diversity: share of the original's diversity that the guard asks of a checkpoint; it
            is vetoed when it surely has less. The paper's calibrations keep 0.8 of it at equal
            steps, its reinforcement learning 0.6 (spec section 4, Supp Tab 1). 0 asks nothing.
        options: reward name to the arguments it is made with (``calibri.rewards.make_reward``).
        on_failure: what a score that is not finite leads to: ``"retry"`` samples and scores the
            image once more and then stops the run, ``"drop"`` leaves its prompt and seed out for
            all candidates alike, ``"fail"`` stops the run at once.
        offload: the pipeline and the rewards alternate on the device, for cards that cannot hold
            both; the one that is not used waits on the CPU.
    """

    objective: str = "shapes"
    mixing: Literal["zscore", "rank", "min"] = "zscore"
    constraints: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ("shapes-judge",)
    guard: Guard = "veto"
    least_diversity: float = Field(0.75, ge=0.0, le=1.0)
    options: dict[str, dict[str, Any]] = {}
    on_failure: OnFailure = "retry"
    offload: bool = False


class PromptConfig(_Section):
    """Where prompts come from.

    Attributes:
        train: prompts for the buckets: a file, ``"shapes"`` for the shipped world,
            ``"compositional"`` for generated ones (``calibri.prompts.compositional``), or the name
            of a set such as ``"t2i-compbench:train"`` (``calibri.prompts.sets``).
        held_out: prompts for selection and for the final figures, given in the same ways; None
            holds out a fifth of ``train`` by content, or takes the held-out ones of a generator.
    """

    train: str = SHIPPED
    held_out: str | None = None


class SearchConfig(_Section):
    """The search (spec section 3).

    Attributes:
        method: ``"calibri"`` returns the tail-averaged mean; ``"reference"`` is the paper's loop,
            which keeps the best sampled candidate, with the paper's values of what is not given;
            ``"gradient"`` follows the gradient of a differentiable reward through the sampler;
            ``"grpo"`` the policy gradient of any reward (Flow-GRPO);
            ``"random"`` learns nothing and keeps the best candidate around the start, and
            ``"one_plus_one"`` keeps the better of a parent and a child: baselines.
        generations: budget.
        popsize: candidates per generation; None for 8 sqrt(n), or the paper's 4 + 3 ln n.
        bucket_size: prompts of the first generation, the same for all candidates; of
            ``"gradient"`` 4 where it is not given.
        bucket_growth: prompts of the last generation in units of ``bucket_size``; the bucket grows
            by the same factor from generation to generation; of ``"gradient"`` 4 likewise.
        race_first: share of a bucket that scores all candidates.
        race_keep: share of the candidates, the better ones there, that are scored on the rest of
            the bucket too; 1 scores all on all of it.
        images_per_prompt: noise seeds per prompt of a bucket and of the validation; a constraint on
            diversity needs two.
        fidelity: how the images of the generations are sampled where it is not as in ``sampling``,
            as checkpoints and final figures are in any case.
        probe: measure first how noisy scores are and whether cheaper images would do, and choose
            ``bucket_size``, ``popsize`` (both unless that is given) and ``fidelity`` by it
            (``calibri.runs.probe.measure``); None for runs of 20,000 images and more.
        sigma0: first step size, in units of a gate; under guidance w a w-th of it.
        learning_rate: of ``"gradient"`` and ``"grpo"``: size of a step of Adam, in units of a gate.
        last_steps: of ``"gradient"``: steps of the sampler that carry the gradient, which bounds
            memory; None for all.
        noise_level: of ``"grpo"``: of the noise in each step, see ``calibri.sampling.sde``.
        scale_bounds: allowed range of scalars.
        output_bounds: allowed range of output weights.
        tail: fraction of the generations so far whose means are averaged.
        validate_every: generations between checkpoints.
        num_validation_prompts: held-out prompts that choose among checkpoints; at least 5, since
            fewer could never show that one is better than the original.
        plateau: fewest checkpoints over which a rise of the reward is looked for; after twice as
            many a search may end before its budget (``calibri.search.reached_plateau``).
    """

    method: str = "calibri"
    generations: int = Field(20, ge=1, le=100_000)
    popsize: int | None = Field(None, ge=4)
    bucket_size: int = Field(8, ge=1)
    bucket_growth: float = Field(2.0, ge=1.0, le=64.0)
    race_first: float = Field(0.25, gt=0.0, le=1.0)
    race_keep: float = Field(0.5, gt=0.0, le=1.0)
    images_per_prompt: int = Field(1, ge=1)
    fidelity: Fidelity = FULL
    probe: bool | None = None
    sigma0: float = Field(0.15, gt=0.0, le=2.0)
    learning_rate: float = Field(0.02, gt=0.0, le=1.0)
    last_steps: int | None = Field(None, ge=1)
    noise_level: float = Field(0.7, gt=0.0, le=2.0)
    scale_bounds: tuple[float, float] = (-1.0, 2.0)
    output_bounds: tuple[float, float] = (-10.0, 10.0)
    tail: float = Field(0.25, gt=0.0, le=1.0)
    validate_every: int = Field(5, ge=1)
    num_validation_prompts: int = 192
    plateau: int = Field(8, ge=4)

    @property
    def final_bucket_size(self) -> int:
        """Prompts of the last generation."""
        return round(self.bucket_size * self.bucket_growth)

    @property
    def method_info(self) -> MethodInfo:
        """The registered method."""
        return method_info(self.method)

    def population(self, dimension: int) -> int:
        """Candidates per generation of a search of this many numbers."""
        return self.popsize or self.method_info.popsize(dimension)

    @field_validator("method")
    @classmethod
    def _known(cls, method: str) -> str:
        if method not in METHODS:
            known = ", ".join(f"'{name}'" for name in METHODS)
            raise PydanticCustomError("search_method", f"Input should be one of {known}")
        return method

    @field_validator("num_validation_prompts")
    @classmethod
    def _can_choose(cls, count: int) -> int:
        if count < fewest_prompts():
            raise PydanticCustomError(
                "validation_prompts",
                f"Input should be at least {fewest_prompts()}: fewer prompts can never show that a "
                "checkpoint is better than the original",
            )
        return count

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_method(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("method") in METHODS:
            return {**method_info(values["method"]).defaults, **values}
        return values


class EvaluationConfig(_Section):
    """The final figures, on prompts and seeds the search never used.

    Attributes:
        num_prompts: held-out prompts.
        images_per_prompt: noise seeds per prompt; two or more give a diversity, if they fit into
            ``sampling.batch_size``.
        step_multiples: the original model is also sampled at these multiples of the steps.
        num_samples: prompts shown in the report's image grid.
    """

    num_prompts: int = Field(256, ge=2)
    images_per_prompt: int = Field(2, ge=1)
    step_multiples: tuple[int, ...] = (1, 2, 3)
    num_samples: int = Field(8, ge=0)

    @property
    def original_multiples(self) -> tuple[int, ...]:
        """Multiples of the steps at which the original model is sampled, ascending."""
        return tuple(sorted({1, *self.step_multiples}))

    @property
    def calibrated_multiples(self) -> tuple[int, ...]:
        """Multiples at which the calibrated model is sampled: the first two of the original's."""
        return self.original_multiples[:2]

    @property
    def step_multiples_sampled(self) -> tuple[int, ...]:
        """Multiples of the steps of all settings, the calibrated ones first."""
        return (*self.calibrated_multiples, *self.original_multiples)


class RunConfig(_Section):
    """Everything that decides the result of a run.

    Attributes:
        pipeline: ``"shapes"`` (shipped), a local folder, or a Hugging Face repository id.
        revision: branch, tag or commit of the repository.
        lora: a LoRA to calibrate on top of: a folder or file of PEFT or diffusers, or a repository
            id; None for the pipeline as it is.
        dtype: of the weights.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``.
        seed: every random draw is derived from it.
    """

    pipeline: str = SHIPPED
    revision: str | None = None
    lora: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = "auto"
    seed: int = Field(0, ge=0)
    sampling: SamplingConfig = SamplingConfig()
    space: SpaceConfig = SpaceConfig()
    rewards: RewardConfig = RewardConfig()
    prompts: PromptConfig = PromptConfig()
    search: SearchConfig = SearchConfig()
    evaluation: EvaluationConfig = EvaluationConfig()


@typed
def load_config(
    path: Path | str | None = None,
    overrides: Iterable[str] = (),
    values: Mapping[str, Any] | None = None,
) -> RunConfig:
    """Build a configuration; later sources win.

    Args:
        path: a YAML file with any part of ``RunConfig``.
        overrides: ``section.key=value`` strings; values are read as YAML.
        values: dotted keys with values, from command line flags; None values are ignored.

    Raises:
        ConfigError: a file, key or value is wrong; the message names every wrong key.
    """
    data = _read_yaml(path) if path is not None else {}
    for key, value in (values or {}).items():
        if value is not None:
            _assign(data, key, value)
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise ConfigError(f"'{override}' is not of the form key=value, e.g. search.sigma0=0.1.")
        _assign(data, key.strip(), _parse_yaml(text, f"--set {override}"))
    return validate_config(data)


def validate_config(data: Mapping[str, Any]) -> RunConfig:
    """Check a nested mapping against ``RunConfig``.

    Raises:
        ConfigError: names every wrong key with what was seen.
    """
    try:
        return RunConfig.model_validate(data)
    except ValidationError as error:
        lines = [
            f"  {'.'.join(map(str, item['loc']))}: {_said(item['type'], item['loc'], item['msg'])} "
            f"(got {item['input']!r})"
            for item in error.errors()
        ]
        raise ConfigError("The configuration is not valid:\n" + "\n".join(lines)) from error


def _said(problem: str, place: Sequence[str | int], message: str) -> str:
    if problem != "extra_forbidden":
        return message
    *sections, name = map(str, place)
    kind: Any = RunConfig
    for section in sections:
        kind = kind.model_fields[section].annotation
    known = suggestion(name, kind.model_fields)
    return f"There is no such setting. {known} `calibri calibrate --dry-run` shows all"


def _read_yaml(path: Path | str) -> dict[str, Any]:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"Cannot read the configuration '{path}': {error}.") from error
    data = _parse_yaml(text, str(path))
    if not isinstance(data, dict | None):
        raise ConfigError(f"'{path}' must hold keys and values, not a {type(data).__name__}.")
    return data or {}


def _parse_yaml(text: str, source: str) -> Any:
    import yaml  # a loaded calibration reads none

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"Cannot read {source} as YAML: {error}") from error


def _assign(data: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        data = data.setdefault(section, {})
        if not isinstance(data, dict):
            raise ConfigError(f"'{key}': '{section}' is not a section of the configuration.")
    data[last] = value

"""Calibrate a pipeline: the whole way from prompts to an artifact, and resume where it stopped."""

from __future__ import annotations

import contextlib
import datetime
import io
import os
import platform
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from PIL import Image

from calibri.arrays import Vector
from calibri.artifact import Calibration, Sampling
from calibri.coefficients import Coefficients
from calibri.config import RunConfig, validate_config
from calibri.errors import Interrupted
from calibri.files import write_atomically
from calibri.pipelines import parameter_name, transformer_of
from calibri.planning import images_by_phase, measures_first
from calibri.progress import Progress
from calibri.results import Evaluation, RunSummary, SampleRow, SearchResult, SiteRecord
from calibri.rewards import storable_options
from calibri.runs.comparison import Comparer, sample_settings, verdict
from calibri.runs.folder import RunFolder, check_run_name, check_unused
from calibri.runs.gradients import GradientOptimiser, check_gradient
from calibri.runs.journal import Journal
from calibri.runs.loop import Optimiser, check_start, scale_prompts
from calibri.runs.probe.cheaper import cheaper_fidelities, check_fidelity
from calibri.runs.probe.measure import (
    PHASE,
    Design,
    check_probe,
    choose_design,
    measure_first,
    search_update,
)
from calibri.runs.session import Engine
from calibri.scoring import Evaluator, Ledger
from calibri.version import __version__

RUNS = Path("runs")


def calibrate(
    config: RunConfig | None = None,
    *,
    name: str | None = None,
    runs: Path = RUNS,
    progress: Progress | None = None,
    **values: Any,
) -> RunSummary:
    """Search the coefficients of a pipeline, evaluate them on held-out prompts and save them.

    Args:
        config: the whole configuration; None for the defaults.
        name: folder of the run under ``runs``; None for one made from the time.
        runs: where runs are kept.
        progress: is told what happens.
        values: when ``config`` is None, sections of a configuration, for example
            ``search={"generations": 10}``.

    Returns:
        The summary that is also kept as ``results.json`` in the run's folder.

    Raises:
        CalibriError: something does not work; what was computed is kept.
        Interrupted: the user stopped the run; ``resume`` continues it.
    """
    config = config or validate_config(values)
    path = runs / check_run_name(name or default_run_name())
    check_unused(path)  # before a model is loaded, which can take minutes
    engine = Engine(config)
    check_search(engine)
    folder = RunFolder.create(path, engine.config.model_dump(mode="json"))
    return _run(folder, engine, progress or Progress())


def resume(path: Path | str, *, progress: Progress | None = None) -> RunSummary:
    """Continue a run: finished units are read from its journal, only missing ones are computed.

    Args:
        path: folder of the run.
        progress: is told what happens.

    Returns:
        The same summary that an undisturbed run gives.

    Raises:
        CalibriError: there is no such run, it is in use, or its journal is damaged.
    """
    folder = RunFolder.open(Path(path))
    engine = Engine(validate_config(folder.config))
    return _run(folder, engine, progress or Progress())


def default_run_name() -> str:
    """Name a run by the time it starts."""
    return datetime.datetime.now().strftime("%Y%m%d-%H%M%S")


def check_search(engine: Engine) -> None:
    """Refuse a search that cannot be done with this engine, before anything is written or sampled.

    Raises:
        CalibriError: the start lies outside the bounds, or the method, the fidelity or measuring
            first does not fit the rest.
    """
    config = engine.config.search
    check_start(engine)
    check_probe(engine.config, len(engine.prompts.train))
    if config.method == "gradient":
        check_gradient(engine, config.last_steps)
    check_fidelity(engine)


def planned_images(engine: Engine) -> dict[str, int]:
    """Count the images that a run will sample at most, by phase."""
    images = images_by_phase(engine.config, engine.space.size, scale_prompts(engine))
    design = _design(engine, images)
    return images | ({PHASE: design.images} if design else {})


def _design(engine: Engine, images: Mapping[str, int]) -> Design | None:
    planned = sum(images.values())
    if not measures_first(engine.config.search, planned):
        return None
    fidelities = cheaper_fidelities(engine)
    return choose_design(engine.config, planned, len(engine.prompts.train), fidelities)


def _run(folder: RunFolder, engine: Engine, progress: Progress) -> RunSummary:
    with folder.lock(), Journal.open(folder.journal_path) as journal, _stop_politely(folder):
        planned = planned_images(engine)
        ledger = Ledger(journal)
        with engine.evaluator(ledger, progress.unit, sum(planned.values())) as evaluator:
            vector, search = _search(engine, evaluator, progress)
            coefficients = engine.space.coefficients(vector)
            comparer = Comparer(engine, evaluator, coefficients, engine.prompts.test)
            evaluation = comparer.run(progress)
        samples = _save_samples(folder, engine, coefficients, progress)
        summary = _summary(folder, engine, search, evaluation, samples)
        _calibration(summary, engine, coefficients).save_pretrained(folder.calibration_path)
        folder.write_results(summary)
        return summary


def _search(
    engine: Engine, evaluator: Evaluator, progress: Progress
) -> tuple[Vector, SearchResult]:
    config, size, extra = engine.config, engine.space.size, scale_prompts(engine)
    design = _design(engine, images_by_phase(config, size, extra))
    measured = None
    if design is not None:
        measured = measure_first(engine, evaluator, progress, design)
        config = config.model_copy(update={"search": search_update(config.search, measured)})
    planned = images_by_phase(config, size, extra)
    progress.phase("search", planned["search"] + planned["validation"])
    if config.search.method == "gradient":
        return GradientOptimiser(engine, evaluator, progress).run()
    vector, result = Optimiser(engine, evaluator, progress, config.search).run()
    return vector, result.model_copy(update={"measured": measured})


@contextlib.contextmanager
def _stop_politely(folder: RunFolder) -> Iterator[None]:
    def stop(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    previous = None
    with contextlib.suppress(ValueError):  # only the main thread may handle signals
        previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt as error:
        raise Interrupted(
            f"Stopped. Everything finished so far is kept; continue with: "
            f"calibri resume {folder.path}"
        ) from error
    finally:
        if previous is not None:
            signal.signal(signal.SIGTERM, previous)


def _save_samples(
    folder: RunFolder, engine: Engine, coefficients: Coefficients, progress: Progress
) -> list[SampleRow]:
    prompts = engine.prompts.test[: engine.config.evaluation.num_samples]
    if not prompts:
        return []
    noises = engine.noises("evaluation", 0, prompts)
    folder.images_path.mkdir(exist_ok=True)
    images = sample_settings(engine, coefficients, noises, progress)
    rows = []
    for row, noise in enumerate(noises):
        files = {}
        for column, (label, batch) in enumerate(images.items()):
            files[label] = f"sample-{row:02d}-{column}.png"
            write_atomically(folder.images_path / files[label], _png(batch[row]))
        rows.append(SampleRow(prompt=noise.prompt.text, seed=noise.seed, files=files))
    return rows


def _png(pixels: torch.Tensor) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()).save(buffer, format="PNG")
    return buffer.getvalue()


def _summary(
    folder: RunFolder,
    engine: Engine,
    search: SearchResult,
    evaluation: Evaluation,
    samples: list[SampleRow],
) -> RunSummary:
    config = engine.config
    granularity = config.space.granularity
    return RunSummary(
        name=folder.path.name,
        pipeline=config.pipeline,
        transformer_class=type(transformer_of(engine.pipe)).__name__,
        calibri_version=__version__,
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        verdict=verdict(evaluation),
        config=_shareable(config),
        granularity=granularity,
        sites=[
            SiteRecord(
                name=site.name,
                block=site.block,
                layer=site.layer,
                stream=site.stream,
                parameter=parameter_name(site, granularity),
            )
            for site in engine.scaler.sites
        ],
        coefficients=search.coefficients,
        start=dict(engine.space.named(engine.space.start)),
        search=search,
        evaluation=evaluation,
        samples=samples,
        machine=_machine(),
    )


def _shareable(config: RunConfig) -> dict[str, Any]:
    """Write out a configuration without secrets: results and report are passed on."""
    options = storable_options(config.rewards.options)
    rewards = config.rewards.model_copy(update={"options": options})
    return config.model_copy(update={"rewards": rewards}).model_dump(mode="json")


def _machine() -> dict[str, str]:
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
    }


def _calibration(summary: RunSummary, engine: Engine, coefficients: Coefficients) -> Calibration:
    config = engine.config
    return Calibration(
        calibri_version=__version__,
        transformer_class=summary.transformer_class,
        base_model=config.pipeline,
        base_revision=config.revision,
        coefficients=coefficients,
        sampling=Sampling(
            num_inference_steps=config.sampling.num_inference_steps,
            guidance_scale=config.sampling.guidance_scale,
            true_cfg_scale=config.sampling.true_cfg_scale,
            height=config.sampling.height,
            width=config.sampling.width,
            num_frames=config.sampling.num_frames,
            dtype=config.dtype,
        ),
        objective=config.rewards.objective,
        rewards=summary.evaluation.variants if summary.evaluation else {},
        reward_options=storable_options(config.rewards.options),
        provenance={
            "run": summary.name,
            "seed": config.seed,
            "method": config.search.method,
            "generations": len(summary.search.generations),
            "images": summary.search.images,
            "created": summary.created,
        },
        evaluation=summary.evaluation,
    )

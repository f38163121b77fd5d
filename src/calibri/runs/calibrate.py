"""Calibrate a pipeline: the whole way from prompts to an artifact, and resume where it stopped."""

from __future__ import annotations

import contextlib
import datetime
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image

from calibri.arrays import Vector
from calibri.artifact import Calibration, Sampling
from calibri.coefficients import Coefficients
from calibri.config import RunConfig, Workers
from calibri.configure import ConfigLike, merge_config
from calibri.files import write_atomically
from calibri.pipelines import lora_of, networks_of
from calibri.planning import images_by_phase, measures_first
from calibri.progress import Progress, Together
from calibri.results import Evaluation, RunSummary, SampleRow, SearchResult
from calibri.rewards import has_secrets, name_rewards, storable_options
from calibri.runs.basis import check_start
from calibri.runs.callbacks import Callbacks, make_callbacks
from calibri.runs.comparison import Comparer, sample_settings, verdict
from calibri.runs.feedback import scale_prompts
from calibri.runs.folder import RunFolder, check_run_name, check_unused, reserved_run
from calibri.runs.fresh_prompts import USED, used_shipped_prompts
from calibri.runs.gradients import check_gradient
from calibri.runs.header import open_journal
from calibri.runs.inspect import site_records
from calibri.runs.interruption import stopping_politely
from calibri.runs.journal import Journal
from calibri.runs.loop import ValidatedSearch
from calibri.runs.machines import machine
from calibri.runs.notes import JournalNotes, plan_of
from calibri.runs.objects import Given, configured
from calibri.runs.policy import check_policy_search
from calibri.runs.probe.cheaper import cheaper_fidelities, check_fidelity, size_notes
from calibri.runs.probe.measure import (
    PHASE,
    Design,
    check_probe,
    choose_design,
    measure_first,
    search_update,
)
from calibri.runs.session import Session
from calibri.scoring import Evaluator, Ledger
from calibri.signatures import typed
from calibri.version import __version__

RUNS = Path("runs")


@typed
def calibrate(
    config: ConfigLike | None = None,
    *,
    pipeline: Any = None,
    rewards: Mapping[str, Any] | Sequence[Any] | None = None,
    name: str | None = None,
    runs: Path | str = RUNS,
    progress: Progress | None = None,
    callbacks: Sequence[Any] | None = None,
    **values: Any,
) -> RunSummary:
    """Search the coefficients of a pipeline, evaluate them on held-out prompts and save them.

    Args:
        config: a configuration, a mapping like it, the path of a YAML file, or None for the
            defaults.
        pipeline: a name (see ``load_pipeline``), or a loaded pipeline, which is used where it is;
            None for the configured one.
        rewards: the objective, then rewards that only watch, each a name, a reward or its class;
            or the section ``rewards`` of a configuration. None for the configured ones.
        name: folder of the run under ``runs``; None for one made from the time.
        runs: where runs are kept.
        progress: is told what happens.
        callbacks: others that are told: objects whose class inherits from ``calibri.Progress``, or
            ``"tensorboard"``, ``"wandb"`` or ``"trackio"``. One that raises is named in a warning,
            and the run goes on without it.
        values: keys of the configuration, which win over ``config``: ``pipeline="..."``, or a
            mapping for a section, such as ``search={"generations": 10}``.

    Returns:
        The summary that is also kept as ``results.json`` in the run's folder.

    Raises:
        ConfigError: a keyword or value is wrong, or another pipeline than the shipped one comes
            without prompts or reward.
        CalibriError: something does not work; what was computed is kept.
        Interrupted: the user stopped the run; ``resume`` continues it.
    """
    config, given = configured(config, values, pipeline, rewards)
    watchers = _Watchers(progress or Progress(), make_callbacks(callbacks))
    if name is None:
        with reserved_run(Path(runs)) as path:
            return _start(path, config, given, watchers)
    path = Path(runs) / check_run_name(name)
    check_unused(path)  # before a model is loaded, which can take minutes
    return _start(path, config, given, watchers)


class _Watchers(NamedTuple):
    """Who is told: the caller's own watcher, which may end the run, and callbacks, which cannot."""

    progress: Progress
    callbacks: list[Progress]


def _start(path: Path, config: RunConfig, given: Given, watchers: _Watchers) -> RunSummary:
    session = Session(config, pipe=given.pipe, rewards=given.rewards)
    check_search(session)
    settings = session.config.model_dump(mode="json")
    private = has_secrets(session.config.rewards.options)
    folder = RunFolder.create(path, settings, given.needed, private=private)
    return _finished(folder, session, watchers)


@typed
def resume(
    run: Path | str,
    *,
    pipeline: Any = None,
    rewards: Sequence[Any] = (),
    workers: Workers | None = None,
    device: str | None = None,
    progress: Progress | None = None,
    callbacks: Sequence[Any] | None = None,
) -> RunSummary:
    """Continue a run: finished units are read from its journal, only missing ones are computed.

    Args:
        run: its folder.
        pipeline: the loaded pipeline that the run was started with, if it was.
        rewards: the rewards that it was given as objects or classes, if it was.
        workers: processes that sample from here on, or ``"ray"`` for a Ray cluster; None for
            those that it was started with.
        device: where they sample from here on; None for where it was started.
        progress: is told what happens.
        callbacks: as for ``calibrate``; they are told everything from the start.

    Returns:
        The same summary that an undisturbed run gives; that of a finished run as it stands.

    Raises:
        CalibriError: there is no such run, it is in use, or its journal is damaged.
    """
    folder = RunFolder.open(Path(run))
    finished = folder.read_results()
    if finished is not None and folder.calibration_path.is_dir():
        return finished
    watchers = _Watchers(progress or Progress(), make_callbacks(callbacks))
    given = Given(pipeline, name_rewards(rewards)[1])
    given.check(folder.given)
    machine = {"sampling": {"workers": workers}} if workers is not None else {}
    config = merge_config(folder.config, machine | ({"device": device} if device else {}))
    session = Session(config, pipe=given.pipe, rewards=given.rewards)
    return _finished(folder, session, watchers)


def _finished(folder: RunFolder, session: Session, watchers: _Watchers) -> RunSummary:
    try:
        return _run(folder, session, watchers)
    finally:
        session.close()


def check_search(session: Session) -> None:
    """Refuse a search that cannot be done with this session, before anything is written or sampled.

    Raises:
        CalibriError: the start lies outside the bounds, or the method, the fidelity or measuring
            first does not fit the rest.
    """
    config = session.config.search
    check_start(session)
    check_probe(session.config, len(session.prompts.train))
    if config.method_info.by_policy:
        check_policy_search(session)
    elif config.method_info.uses_gradients:
        check_gradient(session, config.last_steps)
    check_fidelity(session)


def planned_images(session: Session) -> dict[str, int]:
    """Count the images that a run will sample at most, by phase."""
    images = images_by_phase(session.config, session.space.size, scale_prompts(session))
    design = _design(session, images)
    return images | ({PHASE: design.images} if design else {})


def _design(session: Session, images: Mapping[str, int]) -> Design | None:
    planned = sum(images.values())
    if not measures_first(session.config.search, planned):
        return None
    fidelities = cheaper_fidelities(session)
    return choose_design(session.config, planned, len(session.prompts.train), fidelities)


def _run(folder: RunFolder, session: Session, watchers: _Watchers) -> RunSummary:
    with (
        folder.lock(),
        Journal.open(folder.journal_path) as journal,
        stopping_politely(f"calibri resume {folder.path}"),
        _watched(folder, session, journal, watchers) as progress,
    ):
        for note in size_notes(session):
            progress.message(note)
        planned = planned_images(session)
        progress.planned(plan_of(session, planned, session.config))
        ledger = Ledger(journal)
        with session.evaluator(ledger, progress, sum(planned.values())) as evaluator:
            comparer = Comparer(session, evaluator, session.prompts.test)
            comparer.expect()
            vector, search = _search(session, evaluator, progress)
            coefficients = session.space.coefficients(vector)
            evaluation = comparer.run(coefficients, progress)
            samples = _save_samples(folder, session, evaluator, coefficients, progress)
        summary = _summary(folder, session, search, evaluation, samples)
        _calibration(summary, session, coefficients).save_pretrained(folder.calibration_path)
        folder.write_results(summary)
        progress.finish(summary)
        return summary


@contextlib.contextmanager
def _watched(
    folder: RunFolder, session: Session, journal: Journal, watchers: _Watchers
) -> Iterator[Progress]:
    """Compare the head of the journal, then tell everybody of the run's beginning and its end."""
    own, callbacks = watchers
    open_journal(journal, session.config, own)
    together = Together([JournalNotes(journal), own, Callbacks(callbacks, own)])
    try:
        together.begin(folder.path, _shareable(session.config))
        yield together
    finally:
        together.end()


def _search(
    session: Session, evaluator: Evaluator, progress: Progress
) -> tuple[Vector, SearchResult]:
    config, size, extra = session.config, session.space.size, scale_prompts(session)
    design = _design(session, images_by_phase(config, size, extra))
    measured = None
    if design is not None:
        measured = measure_first(session, evaluator, progress, design)
        config = config.model_copy(update={"search": search_update(config.search, measured)})
    planned = images_by_phase(config, size, extra)
    if measured is not None:
        progress.planned(plan_of(session, {PHASE: measured.images} | planned, config))
    progress.phase("search", planned["search"] + planned["validation"])
    vector, result = ValidatedSearch(session, evaluator, progress, config.search).run()
    return vector, result.model_copy(update={"measured": measured})


def _save_samples(
    folder: RunFolder,
    session: Session,
    evaluator: Evaluator,
    coefficients: Coefficients,
    progress: Progress,
) -> list[SampleRow]:
    prompts = session.prompts.test[: session.config.evaluation.num_samples]
    if not prompts:
        return []
    noises = session.noises("evaluation", 0, prompts)
    folder.make_images_folder()
    images = sample_settings(session, evaluator, coefficients, noises, progress)
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
    session: Session,
    search: SearchResult,
    evaluation: Evaluation,
    samples: list[SampleRow],
) -> RunSummary:
    config = session.config
    granularity = config.space.granularity
    return RunSummary(
        name=folder.path.name,
        pipeline=config.pipeline,
        transformer_class=type(networks_of(session.bench.pipe)[0].transformer).__name__,
        calibri_version=__version__,
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        verdict=verdict(evaluation, search.checkpoints),
        config=_shareable(config),
        granularity=granularity,
        sites=site_records(session.bench.scaler.sites, granularity),
        coefficients=search.coefficients,
        start=dict(session.space.named(session.space.start)),
        search=search,
        evaluation=evaluation,
        samples=samples,
        machine=machine(),
    )


def _shareable(config: RunConfig) -> dict[str, Any]:
    """Write out a configuration without secrets: results and report are passed on."""
    options = storable_options(config.rewards.options)
    rewards = config.rewards.model_copy(update={"options": options})
    return config.model_copy(update={"rewards": rewards}).model_dump(mode="json")


def _calibration(summary: RunSummary, session: Session, coefficients: Coefficients) -> Calibration:
    config, lora = session.config, lora_of(session.bench.pipe)
    return Calibration(
        calibri_version=__version__,
        transformer_class=summary.transformer_class,
        base_model=config.pipeline,
        base_revision=config.revision,
        lora=config.lora,
        coefficients=coefficients,
        sampling=Sampling(
            num_inference_steps=config.sampling.num_inference_steps,
            guidance_scale=config.sampling.guidance_scale,
            true_cfg_scale=config.sampling.true_cfg_scale,
            negative_prompt=session.bench.sampler.negative_prompt or "",
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
            USED: used_shipped_prompts(config),
            **({} if lora is None else {"lora_digest": lora.digest}),
            "created": summary.created,
        },
        evaluation=summary.evaluation,
    )

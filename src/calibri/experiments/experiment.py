"""Run an experiment: from what a caller gives to figures, a page and a folder."""

from __future__ import annotations

import datetime
import hashlib
import importlib
import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from calibri.config import RunConfig
from calibri.configure import ConfigLike
from calibri.errors import ConfigError, PromptError, RunError
from calibri.experiments.kinds import Grid, Heading, OfRun, Outcome
from calibri.experiments.measured import Condition, measure
from calibri.experiments.registry import check_experiment
from calibri.files import write_atomically
from calibri.progress import Progress
from calibri.prompts import Prompt, PromptSets, prompts_from
from calibri.reporting import Findings, render_findings, standalone
from calibri.results import RunSummary
from calibri.rewards import Mixture
from calibri.runs import (
    Journal,
    RunFolder,
    Session,
    configured,
    machine,
    open_journal,
    settings_of,
    stopping_politely,
)
from calibri.scoring import Ledger
from calibri.signatures import typed
from calibri.version import __version__

EXPERIMENTS_FOLDER = Path("experiments")


@typed
def experiment(
    name: str,
    config: ConfigLike | None = None,
    *,
    pipeline: Any = None,
    rewards: Mapping[str, Any] | Sequence[Any] | None = None,
    run: Path | str | None = None,
    output: Path | str | None = None,
    progress: Progress | None = None,
    **values: Any,
) -> Findings:
    """Repeat an experiment of the paper on a pipeline, with intervals.

    Called again with the same arguments it goes on where it stopped, or gives what was found.

    Args:
        name: ``"ablation"``, ``"sweep"``, ``"convergence"`` or ``"cost"``.
        config: as for ``calibrate``. What it leaves open is as the experiment needs it.
        pipeline: a name or a loaded pipeline, as for ``calibrate``.
        rewards: the one that decides, then others that are reported; as for ``calibrate``.
        run: folder of a finished run, for the experiments that look at one.
        output: folder of the experiment; None for one under ``experiments`` that is named by the
            experiment and a digest of all settings.
        progress: is told what happens.
        values: keys of the configuration, as for ``calibrate``.

    Returns:
        What was found; also kept in the folder as ``results.json``, ``report.html`` and
        ``figure.svg``, beside the journal of all scores.

    Raises:
        ConfigError: the experiment or a setting does not exist, or does not fit the experiment.
        RunError: the folder belongs to other settings.
        CalibriError: something does not work; what was computed is kept.
        Interrupted: the user stopped it; the same call continues it.
    """
    check_experiment(name, with_run=run is not None)
    made = importlib.import_module(f"calibri.experiments.{name}").EXPERIMENT
    to = None if output is None else Path(output)
    if isinstance(made, OfRun):
        return _of_run(name, made, Path(run or ""), to)
    given_config, given = configured(config, values, pipeline, rewards)
    resolved = with_defaults(given_config, made.defaults)
    _check(resolved)
    sets = PromptSets((), (), _prompts(resolved))
    with closing(Session(resolved, sets, pipe=given.pipe, rewards=given.rewards)) as session:
        return _measured(name, made, session, to, progress or Progress())


def with_defaults(config: RunConfig, defaults: Mapping[str, Mapping[str, Any]]) -> RunConfig:
    """Give settings that were not given the values that an experiment wants."""
    sections = {}
    for name, wanted in defaults.items():
        section = getattr(config, name)
        missing = {k: v for k, v in wanted.items() if k not in section.model_fields_set}
        sections[name] = section.model_copy(update=missing)
    return config.model_copy(update=sections)


def _prompts(config: RunConfig) -> tuple[Prompt, ...]:
    """Nothing is searched, so that all prompts may be used; the shipped world's are held out."""
    source, count = config.prompts.held_out or config.prompts.train, config.evaluation.num_prompts
    prompts = prompts_from(source, "held_out", count, config.seed)[:count]
    if len(prompts) < 2:
        raise PromptError(f"'{source}' has {len(prompts)} prompts; intervals need at least 2.")
    return prompts


def _check(config: RunConfig) -> None:
    """Refuse what an experiment cannot do with, before a model is loaded."""
    if len(Mixture.of(config.rewards).names) > 1:
        raise ConfigError(
            f"An experiment needs one reward that decides, and '{config.rewards.objective}' is a "
            "mixture. Name a reward first, and others after it."
        )
    if config.space.start is not None:
        raise ConfigError(
            "An experiment starts from the original model, and space.start names another. Leave it "
            "out."
        )


def _measured(
    name: str, made: Grid, session: Session, output: Path | None, progress: Progress
) -> Findings:
    conditions = made.conditions(session)
    settings = _settings(session)
    folder = _folder(name, settings, output)
    with (
        folder.lock(),
        Journal.open(folder.journal_path) as journal,
        stopping_politely("the same command"),
    ):
        open_journal(journal, session.config, progress)
        progress.begin(folder.path, settings)
        images = len(conditions) * len(session.noises("", 0, session.prompts.test, _count(session)))
        with session.evaluator(Ledger(journal), progress, images) as evaluator:
            measured = measure(session, evaluator, conditions, progress)
            facts = _facts(session, conditions, evaluator.images, evaluator.seconds)
        outcome = made.outcome(session, measured)
        return _kept(folder, _findings(folder, made.heading, outcome, settings, facts), outcome)


def _count(session: Session) -> int:
    return session.config.evaluation.images_per_prompt


def _of_run(name: str, made: OfRun, run: Path, output: Path | None) -> Findings:
    source = RunFolder.open(run)
    summary = source.read_results()
    if summary is None:
        raise RunError(
            f"{run} has no results yet. Finish the run with `calibri resume {run}`, then repeat."
        )
    settings = {"run": summary.name, "created": summary.created, **summary.config}
    outcome = made.outcome(summary, run)
    folder = _folder(name, settings, output)
    with folder.lock():
        findings = _findings(folder, made.heading, outcome, settings, _facts_of_run(summary))
        return _kept(folder, findings, outcome)


def _settings(session: Session) -> dict[str, object]:
    """Everything that decides the figures: the configuration, and the very prompts."""
    ids = "\n".join(prompt.id for prompt in session.prompts.test)
    return {**settings_of(session.config), "prompts.digest": _digest(ids)}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _folder(name: str, settings: Mapping[str, object], output: Path | None) -> RunFolder:
    """Make the folder of an experiment, or open that of the same one."""
    content = json.loads(json.dumps({"experiment": name, "settings": settings}, sort_keys=True))
    path = output or EXPERIMENTS_FOLDER / f"{name}-{_digest(json.dumps(content, sort_keys=True))}"
    if not (path / "config.json").exists():
        return RunFolder.create(path, content)
    folder = RunFolder.open(path, of_experiment=True)
    if folder.config.get("experiment") != name:
        raise RunError(f"{path} does not belong to the experiment '{name}'. Name another --output.")
    before, now = dict(folder.config["settings"]), content["settings"]  # type: ignore[call-overload]
    changed = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
    if changed:
        raise RunError(
            f"{path} was made with other settings: {', '.join(changed[:3])}"
            f"{f' and {len(changed) - 3} more' if len(changed) > 3 else ''} differ. Name another "
            "--output, or none: each setting has a folder of its own."
        )
    return folder


def _facts(
    session: Session, conditions: Sequence[Condition], images: int, seconds: float
) -> dict[str, str]:
    config, here = session.config, machine()
    return {
        "Pipeline": config.pipeline,
        "Sampled": f"{config.sampling.num_inference_steps} steps, guidance "
        f"{max(config.sampling.guidance_scale, config.sampling.true_cfg_scale):g}",
        "Prompts": str(len(session.prompts.test)),
        "Noise seeds of each": str(_count(session)),
        "Conditions": str(len(conditions)),
        "Images": f"{images:,}",
        "Time of sampling": f"{seconds:,.0f} seconds",
        "Computed on": f"{here['device']}, {here['cores']} cores",
        "Seed": str(config.seed),
    }


def _facts_of_run(summary: RunSummary) -> dict[str, str]:
    return {
        "Run": summary.name,
        "Pipeline": summary.pipeline,
        "Coefficients": f"{len(summary.coefficients)} at {summary.granularity} granularity",
        "Finished": summary.created,
    }


def _findings(
    folder: RunFolder,
    heading: Heading,
    outcome: Outcome,
    settings: Mapping[str, object],
    facts: Mapping[str, str],
) -> Findings:
    return Findings(
        experiment=str(folder.config["experiment"]),
        title=heading.title,
        paper=heading.paper,
        claim=heading.claim,
        answer=outcome.answer,
        verdict=outcome.verdict,
        method=outcome.method,
        tables=list(outcome.tables),
        facts=dict(facts),
        settings=dict(settings),
        folder=str(folder.path),
        calibri_version=__version__,
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    )


def _kept(folder: RunFolder, findings: Findings, outcome: Outcome) -> Findings:
    """Write what was found into the folder: for tools, for people, and the figure alone."""
    write_atomically(folder.results_path, findings.model_dump_json(indent=1).encode())
    page = render_findings(findings, outcome.drawings)
    write_atomically(folder.report_path, page.encode())
    if outcome.drawings:
        figure = standalone(outcome.drawings[0])
        write_atomically(folder.path / "figure.svg", figure.encode())
    return findings

"""Run an experiment: from what a caller gives to figures, a page and a folder."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from calibri.configure import ConfigLike
from calibri.errors import ConfigError, RunError
from calibri.experiments.facts import (
    facts_of,
    facts_of_run,
    facts_of_searches,
    facts_of_several,
)
from calibri.experiments.kept import keep, open_folder
from calibri.experiments.kinds import Backbones, Grid, OfRun, Searches
from calibri.experiments.measured import Place, scored
from calibri.experiments.names import slug
from calibri.experiments.registry import check_experiment
from calibri.experiments.searching import Plan, planned, search_all, seeds_of, settings_of_plans
from calibri.experiments.setup import Setup, settings_of_session
from calibri.experiments.trials import Trials
from calibri.progress import Progress
from calibri.reporting import Findings
from calibri.runs import RunFolder, Session, configured, stopping_politely
from calibri.signatures import typed

_SEARCHES = 3
_AGAIN = "the same command"


@typed
def experiment(
    name: str,
    config: ConfigLike | None = None,
    *,
    pipeline: Any = None,
    rewards: Mapping[str, Any] | Sequence[Any] | None = None,
    run: Path | str | None = None,
    searches: int | None = None,
    output: Path | str | None = None,
    progress: Progress | None = None,
    **values: Any,
) -> Findings:
    """Repeat an experiment of the paper on a pipeline, with intervals.

    Called again with the same arguments it goes on where it stopped, or gives what was found.

    Args:
        name: see ``calibri experiment --help``, such as ``"ablation"``.
        config: as for ``calibrate``. What it leaves open is as the experiment needs it.
        pipeline: a name or a loaded pipeline, as for ``calibrate``; for ``"backbones"`` a list of
            them.
        rewards: the one that decides, then others that are reported; as for ``calibrate``.
        run: folder of a finished run, for the experiments that look at one.
        searches: of each kind, with the seed and those after it, for experiments that search; None
            for 3.
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
    check_experiment(name, with_run=run is not None, searches=searches)
    made = importlib.import_module(f"calibri.experiments.{name}").EXPERIMENT
    to, told = None if output is None else Path(output), progress or Progress()
    if isinstance(made, OfRun):
        return _of_run(name, made, Path(run or ""), to)
    several = list(pipeline) if isinstance(pipeline, list | tuple) else [pipeline]
    if not several or (len(several) > 1 and not isinstance(made, Backbones)):
        raise ConfigError(f"'{name}' is of one pipeline, and {len(several)} are given.")
    setups = [Setup.of(*configured(config, values, one, rewards), made) for one in several]
    if isinstance(made, Grid):
        return _grid(name, made, setups[0], to, told)
    seeds = seeds_of(setups[0].config, _SEARCHES if searches is None else searches)
    if isinstance(made, Backbones):
        return _backbones(name, made, setups, seeds, to, told)
    return _searches(name, made, setups[0], seeds, to, told)


def _of_run(name: str, made: OfRun, run: Path, output: Path | None) -> Findings:
    source = RunFolder.open(run)
    summary = source.read_results()
    if summary is None:
        raise RunError(
            f"{run} has no results yet. Finish the run with `calibri resume {run}`, then repeat."
        )
    settings = {"run": summary.name, "created": summary.created, **summary.config}
    outcome = made.outcome(summary, run)
    folder = open_folder(name, settings, output)
    with folder.lock():
        return keep(folder, made.heading, outcome, settings, facts_of_run(summary))


def _grid(name: str, made: Grid, setup: Setup, output: Path | None, progress: Progress) -> Findings:
    with closing(setup.session()) as session:
        conditions, settings = made.conditions(session), settings_of_session(session)
        folder = open_folder(name, settings, output)
        with folder.lock(), stopping_politely(_AGAIN):
            progress.begin(folder.path, settings)
            place = Place(folder.path, folder.again, progress)
            found = scored(session, conditions, place)
            outcome = made.outcome(session, found.measured)
            return keep(folder, made.heading, outcome, settings, facts_of(session, found))


def _searches(
    name: str,
    made: Searches,
    setup: Setup,
    seeds: Sequence[int],
    output: Path | None,
    progress: Progress,
) -> Findings:
    with closing(setup.session()) as session:
        plans, left_out = planned(session, made.cells(setup.config, session))
        settings = {**settings_of_session(session), **settings_of_plans(plans, seeds)}
        folder = open_folder(name, settings, output)
        with folder.lock(), stopping_politely(_AGAIN):
            progress.begin(folder.path, settings)
            place = Place(folder.path, folder.again, progress)
            trials, facts = _tried(made, session, plans, left_out, seeds, place)
            return keep(folder, made.heading, made.outcome(session, trials), settings, facts)


def _tried(
    made: Searches | Backbones,
    session: Session,
    plans: Sequence[Plan],
    left_out: Mapping[str, str],
    seeds: Sequence[int],
    place: Place,
) -> tuple[Trials, dict[str, str]]:
    """Search, and score what was found; with facts for people."""
    found = search_all(session, plans, seeds, place)
    conditions = made.conditions(session, found)
    in_the_end = scored(session, conditions, place, with_diversity=made.with_diversity)
    trials = Trials(in_the_end.measured, tuple(found), left_out, tuple(seeds))
    return trials, facts_of(session, in_the_end) | facts_of_searches(plans, trials)


def _backbones(
    name: str,
    made: Backbones,
    setups: Sequence[Setup],
    seeds: Sequence[int],
    output: Path | None,
    progress: Progress,
) -> Findings:
    models = [
        (label, replace(setup, config=config))
        for setup in setups
        for label, config in made.models(setup.config).items()
    ]
    names = [label for label, _ in models]
    settings: dict[str, object] = {}
    if len(set(names)) < len(names):
        raise ConfigError("A pipeline is given twice. Name each once.")
    for label, setup in models:  # all are loaded and checked before anything is sampled
        with closing(setup.session()) as session:
            plans, _ = planned(session, made.cells(setup.config, session))
            own = {**settings_of_session(session), **settings_of_plans(plans, seeds)}
            settings |= {f"{label}: {key}": value for key, value in own.items()}
    folder = open_folder(name, settings, output)
    with folder.lock(), stopping_politely(_AGAIN):
        progress.begin(folder.path, settings)
        looks, of_each = [], {}
        for number, (label, setup) in enumerate(models, start=1):
            own_place = folder.path / f"{number}-{slug(label)}"
            own_place.mkdir(exist_ok=True)
            place = Place(own_place, folder.again, progress)
            with closing(setup.session()) as session:
                plans, left_out = planned(session, made.cells(setup.config, session))
                trials, own_facts = _tried(made, session, plans, left_out, seeds, place)
                looks.append(made.look(session, trials))
            of_each[label] = own_facts
        facts = facts_of_several(of_each)
        return keep(folder, made.heading, made.outcome(looks), settings, facts)

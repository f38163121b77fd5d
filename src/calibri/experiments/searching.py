"""Searches of an experiment: planned at equal cost, checked before work, each kept in two files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

from pydantic import ValidationError

from calibri.coefficients import Coefficients
from calibri.config import RunConfig
from calibri.configure import merge_config
from calibri.errors import CalibriError, ConfigError, RunError
from calibri.experiments.measured import Place
from calibri.experiments.names import digest, slug
from calibri.files import plain_words, write_atomically
from calibri.planning import images_of_generations
from calibri.progress import Progress
from calibri.results import Computed, Record, SearchResult
from calibri.runs import (
    Journal,
    Session,
    ValidatedSearch,
    check_search,
    open_journal,
    planned_images,
    settings_of,
)
from calibri.scoring import Ledger


@dataclass(frozen=True)
class Cell:
    """One way of searching.

    Attributes:
        label: names it, unlike all others.
        config: of its searches, apart from their seed and their budget.
        optional: a pipeline or reward that cannot have it does without, which the page says.
    """

    label: str
    config: RunConfig
    optional: bool = False


@dataclass(frozen=True)
class Plan:
    """A cell with its budget.

    Attributes:
        label: of the cell.
        config: with the budget.
        size: numbers that are searched.
        evaluations: of the transformer for an image, in units of the original's.
    """

    label: str
    config: RunConfig
    size: int
    evaluations: float

    @property
    def costs(self) -> list[float]:
        """Images of the generations so far after each, in images of the original model.

        An image of an ensemble counts once for each member, one with its gradient three times;
        those of checkpoints do not count.
        """
        images = images_of_generations(self.config, self.size)
        return [self.evaluations * total for total in accumulate(images)]

    def at_cost(self, images: float) -> Plan:
        """Change the budget to about this cost, with as many checkpoints."""
        search = self.config.search
        count = max(1, round(search.generations * images / self.costs[-1]))
        every = max(1, round(search.validate_every * count / search.generations))
        budget = {"generations": count, "validate_every": every}
        changed = search.model_copy(update=budget)
        return replace(self, config=self.config.model_copy(update={"search": changed}))

    def with_seed(self, seed: int) -> RunConfig:
        """Configuration of one search."""
        return self.config.model_copy(update={"seed": seed})


class Found(Record):
    """What one search found.

    Attributes:
        label: of the cell.
        seed: of the search.
        size: numbers that were searched.
        coefficients: what it returned.
        search: how it went.
        costs: images after each generation, see ``Plan.costs``.
    """

    label: str
    seed: int
    size: int
    coefficients: Coefficients
    search: SearchResult
    costs: list[float]

    @property
    def name(self) -> str:
        """Label of what it returned among conditions."""
        return condition_name(self.label, self.seed)


def condition_name(label: str, seed: int) -> str:
    """Name what the search of a cell with a seed returned."""
    return f"{label}, seed {seed}"


def with_search(config: RunConfig, method: str) -> RunConfig:
    """Search by another method: with its own values of what is not given."""
    given = {name: getattr(config.search, name) for name in config.search.model_fields_set}
    search = type(config.search).model_validate(given | {"method": method})
    return config.model_copy(update={"search": search})


def with_space(config: RunConfig, **values: object) -> RunConfig:
    """Search another space."""
    return merge_config(config, {"space": values})


def planned(session: Session, cells: Sequence[Cell]) -> tuple[list[Plan], dict[str, str]]:
    """Check cells and give all of them the budget of the dearest, before anything is sampled.

    Args:
        session: its bench and prompts serve all of them.
        cells: ways of searching.

    Returns:
        The plans, and why cells are left out, by label.

    Raises:
        CalibriError: a cell that is not optional cannot be searched.
    """
    plans, left_out = [], {}
    for cell in cells:
        try:
            plans.append(_plan(session, cell))
        except CalibriError as error:
            if not cell.optional:
                raise
            # What to do about it is for who asked for that.
            left_out[cell.label] = f"{str(error).partition('. ')[0].rstrip('.')}."
    dearest = max(plan.costs[-1] for plan in plans)
    return [plan.at_cost(dearest) for plan in plans], left_out


def _plan(session: Session, cell: Cell) -> Plan:
    own = Session(cell.config, session.prompts, bench=session.bench)
    check_search(own)
    evaluations = len(own.space.start_weights) / len(session.space.start_weights)
    return Plan(cell.label, own.config, own.space.size, evaluations)


def search_all(
    session: Session,
    plans: Sequence[Plan],
    seeds: Sequence[int],
    place: Place,
) -> list[Found]:
    """Run the search of every plan with every seed; what is finished is read from the folder.

    Args:
        session: its bench and prompts serve all of them.
        plans: what to search.
        seeds: of the searches; the same ones for every plan, which so share prompts and noise.
        place: where they are kept, under ``searches``.

    Raises:
        RunError: a file of a finished search is damaged.
    """
    folder = place.path / "searches"
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise RunError(f"Could not create {folder}: {plain_words(error)}.") from error
    return [
        _found(session, plan, seed, folder / f"{number}-{slug(plan.label)}-{seed}", place)
        for number, plan in enumerate(plans, start=1)
        for seed in seeds
    ]


def _found(session: Session, plan: Plan, seed: int, path: Path, place: Place) -> Found:
    finished = path.with_name(f"{path.name}.json")
    if finished.exists():
        return _read(finished, place.again)
    own = Session(plan.with_seed(seed), session.prompts, bench=session.bench)
    progress = _OneSearch(place.progress, condition_name(plan.label, seed))
    with Journal.open(path.with_name(f"{path.name}.jsonl"), place.again) as journal:
        open_journal(journal, own.config, progress)
        images = planned_images(own)
        total = images["search"] + images["validation"]
        progress.phase("", total)
        with own.evaluator(Ledger(journal), progress, total) as evaluator:
            vector, result = ValidatedSearch(own, evaluator, progress).run()
    found = Found(
        label=plan.label,
        seed=seed,
        size=plan.size,
        coefficients=own.space.coefficients(vector),
        search=result,
        costs=plan.costs[: len(result.generations)],
    )
    write_atomically(finished, found.model_dump_json(indent=1).encode())
    return found


def _read(path: Path, again: str) -> Found:
    try:
        return Found.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise RunError(
            f"{path} is damaged or cannot be read. Delete it and say `{again}` again, which writes "
            "it from the journal beside it."
        ) from error


class _OneSearch(Progress):
    """Passes on what one of many searches samples, under its own name."""

    def __init__(self, other: Progress, name: str) -> None:
        self._other = other
        self._name = name

    def phase(self, name: str, images: int) -> None:
        """Pass on that it begins."""
        self._other.phase(self._name, images)

    def unit(self, images: int, new: bool) -> None:
        """Pass it on."""
        self._other.unit(images, new)

    def worked(self, unit: Computed) -> None:
        """Pass it on."""
        self._other.worked(unit)

    def message(self, text: str) -> None:
        """Pass it on."""
        self._other.message(text)


def seeds_of(config: RunConfig, count: int) -> list[int]:
    """Seeds of the searches: that of the experiment and the next ones.

    Raises:
        ConfigError: there is none.
    """
    if count < 1:
        raise ConfigError(f"An experiment needs at least one search of each kind, not {count}.")
    return list(range(config.seed, config.seed + count))


def by_cell(found: Sequence[Found]) -> Iterator[tuple[str, list[Found]]]:
    """Group what was found by cells, in their order."""
    groups: dict[str, list[Found]] = {}
    for one in found:
        groups.setdefault(one.label, []).append(one)
    yield from groups.items()


def settings_of_plans(plans: Sequence[Plan], seeds: Sequence[int]) -> Mapping[str, object]:
    """What decides the figures beside the session's settings."""
    settings = {plan.label: settings_of(plan.config) for plan in plans}
    budgets = {f"{plan.label}: generations": plan.config.search.generations for plan in plans}
    cells = digest(json.dumps(settings, sort_keys=True))
    return {"searches: seeds": list(seeds), **budgets, "searches: digest": cells}

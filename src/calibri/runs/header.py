"""The head of a journal: what made its scores, so that a run is never continued as another one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from calibri.config import RunConfig
from calibri.errors import RunError
from calibri.progress import Progress
from calibri.rewards import storable_options
from calibri.scoring import Records
from calibri.version import versions_here

# Where and by how many processes scores are computed decides none of them.
_HARMLESS = ("device", "sampling.workers", "sampling.ray.", "rewards.offload")


def settings_of(config: RunConfig) -> dict[str, Any]:
    """List the settings that decide the scores of a run, by key; without secrets."""
    data = config.model_dump(mode="json")
    data["rewards"]["options"] = storable_options(config.rewards.options)
    return {key: value for key, value in _flat(data) if not key.startswith(_HARMLESS)}


def _flat(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in data.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def open_journal(
    journal: Records,
    config: RunConfig,
    progress: Progress,
    versions: Mapping[str, str] | None = None,
) -> None:
    """Write the head of a new journal, or compare that of an old one.

    Args:
        journal: of the run.
        config: with which it goes on.
        progress: is told when libraries have other versions, which the journal records too.
        versions: of what computes scores; None for those installed here.

    Raises:
        RunError: the journal was made with other settings.
    """
    versions = versions or versions_here()
    heads = [record for record in journal.records if record.get("kind") == "run"]
    if not heads:
        # A journal that has units but no head is older than heads are.
        if not journal.records:
            settings = settings_of(config)
            journal.append({"kind": "run", "settings": settings, "versions": dict(versions)})
        return
    _check_settings(heads[0].get("settings"), settings_of(config))
    before = heads[-1].get("versions")
    if before != versions:
        _tell(before, versions, progress)
        journal.append({"kind": "run", "settings": None, "versions": dict(versions)})


def _check_settings(before: Any, now: Mapping[str, Any]) -> None:
    if not isinstance(before, Mapping):
        raise RunError("The journal does not say with which settings it was made. Start a new run.")
    changed = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise RunError(
            f"The journal was made with other settings: its configuration was edited in "
            f"{', '.join(changed[:3])}{more}. Undo that, or start a new run with the new settings."
        )


def _tell(before: Any, now: Mapping[str, str], progress: Progress) -> None:
    old = before if isinstance(before, Mapping) else {}
    changes = [
        f"{name} {old.get(name, 'unknown')} -> {version}"
        for name, version in now.items()
        if old.get(name) != version
    ]
    progress.message(
        f"This run goes on with other versions than before ({', '.join(changes)}): new scores may "
        "differ from earlier ones in their last digits. The journal records it."
    )

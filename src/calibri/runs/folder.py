"""The folder of one run, ``runs/<name>/``: configuration, lock, journal, images and results."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import json
import os
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from filelock import FileLock, Timeout
from pydantic import ValidationError

from calibri.errors import ConfigError, RunError
from calibri.files import fsync_folder, plain_words, remove_temporaries, write_atomically
from calibri.results import RunSummary

FORMAT_VERSION = 1

Kind = Literal["run", "experiment"]

_RUN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_CONFIG, _RESULTS = "config.json", "results.json"
_LOCK, _HOLDER = ".lock", ".lock.json"


class Holder(NamedTuple):
    """Who writes a run, or was killed doing so."""

    pid: int
    host: str


def check_run_name(name: str) -> str:
    """Return the name if it is a plain folder name on every system.

    Raises:
        ConfigError: it has other characters than letters, digits, ``.``, ``_`` and ``-``, starts
            with ``.`` or ``-``, is empty or longer than 100 characters.
    """
    if _RUN_NAME.fullmatch(name) is None:
        raise ConfigError(
            f"{name[:100]!r} cannot name a run. Use 1 to 100 letters (a-z), digits, '.', '_' or "
            "'-', not starting with '.' or '-'."
        )
    return name


@contextlib.contextmanager
def reserved_run(runs: Path) -> Iterator[Path]:
    """Give a run without a name a folder named by the time, which no other run gets.

    Args:
        runs: where runs are kept.

    Yields:
        The empty folder. Where nothing was written into it, it is gone again at the end.

    Raises:
        RunError: it cannot be made.
    """
    is_new = not runs.exists()
    path = _free_folder(runs)
    try:
        yield path
    finally:
        with contextlib.suppress(OSError):  # there is something in it
            path.rmdir()
            if is_new:
                runs.rmdir()


def _free_folder(runs: Path) -> Path:
    name = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    try:
        runs.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            path = runs / (name if number == 1 else f"{name}-{number}")
            with contextlib.suppress(FileExistsError):
                path.mkdir()  # of several in one second, one succeeds
                return path
    except OSError as error:
        raise RunError(f"Could not create a run in {runs}: {plain_words(error)}.") from error
    raise AssertionError("numbers do not end")


class RunFolder:
    """One run on disk. Paths are properties; nothing but the lock stays open.

    Attributes:
        path: the folder.
        config: the configuration, as it was kept.
        given: what the run was given as objects, in words; resuming needs them again.
    """

    def __init__(self, path: Path, config: dict[str, object], given: Sequence[str] = ()) -> None:
        self.path = path
        self.config = config
        self.given = tuple(given)

    @property
    def _kind(self) -> Kind:
        return "experiment" if "experiment" in self.config else "run"

    @property
    def again(self) -> str:
        """The command that goes on with it."""
        if self._kind == "experiment":
            return f"calibri experiment {self.config['experiment']}"
        return f"calibri resume {self.path}"

    @property
    def config_path(self) -> Path:
        """The resolved configuration, written once."""
        return self.path / _CONFIG

    @property
    def journal_path(self) -> Path:
        """The append-only journal."""
        return self.path / "journal.jsonl"

    @property
    def images_path(self) -> Path:
        """Folder of the images that the report shows."""
        return self.path / "images"

    @property
    def results_path(self) -> Path:
        """The ``RunSummary`` of a finished run."""
        return self.path / _RESULTS

    @property
    def calibration_path(self) -> Path:
        """Folder of the artifact."""
        return self.path / "calibration"

    @property
    def report_path(self) -> Path:
        """The HTML report."""
        return self.path / "report.html"

    @classmethod
    def create(
        cls,
        path: Path,
        config: Mapping[str, object],
        given: Sequence[str] = (),
        *,
        private: bool = False,
    ) -> RunFolder:
        """Start a run: make its folder and keep its configuration there.

        Args:
            path: the folder; missing, or empty but for hidden files (of an interrupted start).
            config: the resolved configuration, JSON-able.
            given: what the run was given as objects, in words.
            private: nobody but the owner may read the configuration, which holds secrets.

        Raises:
            ConfigError: the folder's name is no run name, or the configuration is not JSON-able.
            RunError: the folder holds something already, is in use or cannot be written.
        """
        check_run_name(path.name)
        text = _config_text(config, given)
        kind: Kind = "experiment" if "experiment" in config else "run"
        try:
            path.mkdir(parents=True, exist_ok=True)
            fsync_folder(path.parent)
            check_unused(path, kind)
        except OSError as error:
            raise RunError(
                f"Could not create the run folder {path}: {plain_words(error)}."
            ) from error
        folder = cls(path, json.loads(text)["config"], given)
        # Again under the lock: of two runs started under one name only one may go on.
        with folder.lock():
            check_unused(path, kind)
            write_atomically(folder.config_path, text.encode(), private=private)
        return folder

    def make_images_folder(self) -> Path:
        """Make the folder of the images that the report shows.

        Raises:
            RunError: it cannot be made.
        """
        try:
            self.images_path.mkdir(exist_ok=True)
        except OSError as error:
            raise RunError(
                f"Could not create {self.images_path}: {plain_words(error)}. Everything computed "
                f"is kept; continue with: calibri resume {self.path}"
            ) from error
        return self.images_path

    @classmethod
    def open(cls, path: Path, *, of_experiment: bool = False) -> RunFolder:
        """Open an existing run.

        Args:
            path: the folder.
            of_experiment: it is that of an experiment (``calibri.experiment``) instead.

        Raises:
            RunError: there is no such run (the message lists those beside it), or its
                configuration is damaged or of another format version.
        """
        try:
            data = (path / _CONFIG).read_bytes()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise RunError(_missing(path)) from error
        except OSError as error:
            raise RunError(f"Could not read {path / _CONFIG}: {plain_words(error)}.") from error
        folder = cls(path, *_parse_config(data, path / _CONFIG))
        if ("experiment" in folder.config) != of_experiment:
            raise RunError(_other_kind(folder))
        return folder

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Be the only writer of this run. The system frees the lock when the process dies.

        Raises:
            RunError: another process holds it (named with its host), or it cannot be taken.
        """
        lock = FileLock(self.path / _LOCK, blocking=False)
        try:
            lock.acquire()
        except Timeout as error:
            raise RunError(
                f"The {self._kind} {self.path} is in use by {_named(self.holder)}. Wait for it to "
                f"finish, stop it, or choose another {_place_of(self._kind)}."
            ) from error
        except OSError as error:
            raise RunError(f"Could not lock the run {self.path}: {plain_words(error)}.") from error
        try:
            remove_temporaries(self.path)
            holder = {"pid": os.getpid(), "host": socket.gethostname()}
            write_atomically(self.path / _HOLDER, json.dumps(holder).encode())
            yield
        finally:
            with contextlib.suppress(OSError):
                (self.path / _HOLDER).unlink()
            lock.release()

    @property
    def holder(self) -> Holder | None:
        """Who holds the lock, or was killed holding it; None when it was let go."""
        return _holder(self.path / _HOLDER)

    @property
    def is_finished(self) -> bool:
        """Whether results and artifact are there, so that there is nothing to resume."""
        return self.results_path.exists() and self.calibration_path.is_dir()

    def write_results(self, summary: RunSummary) -> None:
        """Keep the results, replacing earlier ones at once.

        Raises:
            RunError: a figure is not finite, or the file cannot be written.
        """
        try:
            text = json.dumps(summary.model_dump(mode="json"), allow_nan=False, indent=1)
        except ValueError as error:
            raise RunError(
                f"The results of {self.path} hold a figure that is not finite ({error}), so they "
                "were not saved. The journal is complete; check the reward and resume."
            ) from error
        write_atomically(self.results_path, text.encode())

    def read_results(self) -> RunSummary | None:
        """Read the results, or None while the run is not finished.

        Raises:
            RunError: the file is damaged or cannot be read.
        """
        try:
            return RunSummary.model_validate_json(self.results_path.read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise RunError(f"Could not read {self.results_path}: {plain_words(error)}.") from error
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"]) or "the file"
            raise RunError(
                f"{self.results_path} is damaged ({place}: {first['msg']}). Delete it and run "
                f"`calibri resume {self.path}`, which writes it again from the journal."
            ) from error


def _config_text(config: Mapping[str, object], given: Sequence[str]) -> str:
    content: dict[str, object] = {"format_version": FORMAT_VERSION, "config": dict(config)}
    if given:
        content["given"] = list(given)
    try:
        text = json.dumps(content, allow_nan=False, indent=2)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"The configuration cannot be kept as JSON: {error}. Use finite numbers, text, lists "
            "and mappings."
        ) from error
    return text + "\n"


def check_unused(path: Path, kind: Kind = "run") -> None:
    """Check that a new run, or experiment, may be started in a folder.

    Raises:
        RunError: it holds something already.
    """
    # Hidden files are the lock and what an interrupted start left behind.
    if path.is_dir() and any(not entry.name.startswith(".") for entry in path.iterdir()):
        of_run = f"Continue that run with `calibri resume {path}`, or choose"
        what = of_run if kind == "run" else "Choose"
        raise RunError(f"{path} is not empty. {what} another {_place_of(kind)}.")


def _place_of(kind: Kind) -> str:
    """The option that says where it is kept."""
    return "--name" if kind == "run" else "--output"


def _missing(path: Path) -> str:
    if path.is_dir():
        return f"{path} is not a run: it has no {_CONFIG}. Give the folder of a run."
    if path.exists():
        return f"{path} is a file, not the folder of a run."
    runs = sorted(config.parent.name for config in path.parent.glob(f"*/{_CONFIG}"))
    if not runs:
        return f"There is no run {path}, nor any other in {path.parent}. Check the path."
    more = f" and {len(runs) - 10} more" if len(runs) > 10 else ""
    return f"There is no run {path}. {path.parent} has: {', '.join(runs[:10])}{more}."


def _other_kind(folder: RunFolder) -> str:
    if "experiment" not in folder.config:
        return f"{folder.path} is the folder of a run, not of an experiment. Name another --output."
    return (
        f"{folder.path} is the folder of an experiment, not of a run. The command that made it, "
        f"`calibri experiment {folder.config['experiment']}` with its options, goes on with it."
    )


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a finite number")


def _parse_config(data: bytes, path: Path) -> tuple[dict[str, object], list[str]]:
    try:
        content = json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} is damaged: {error}. Restore it, or start a new run.") from error
    version = content.get("format_version") if isinstance(content, dict) else None
    if version not in (None, FORMAT_VERSION):
        raise RunError(
            f"{path} has format version {version!r}; this Calibri reads version {FORMAT_VERSION}. "
            "Use the Calibri that made the run."
        )
    if version is None or not isinstance(content.get("config"), dict):
        raise RunError(
            f"{path} is damaged: it lacks 'format_version' or 'config'. Restore it, or start a "
            "new run."
        )
    given = content.get("given", [])
    if not isinstance(given, list):
        raise RunError(f"{path} is damaged: 'given' is no list. Restore it, or start a new run.")
    return content["config"], [str(what) for what in given]


def _holder(path: Path) -> Holder | None:
    # Between taking the lock and naming the holder the file may be missing.
    try:
        holder = json.loads(path.read_bytes())
        return Holder(int(holder["pid"]), str(holder["host"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _named(holder: Holder | None) -> str:
    if holder is None:
        return "another process"
    return f"process {holder.pid} on host {holder.host!r}"

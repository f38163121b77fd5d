"""The two files of a calibration: JSON for people, safetensors for tools, and their checks."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Final, NoReturn, TypeVar

import numpy as np
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from calibri.coefficients import Coefficients
from calibri.errors import CalibrationError, RunError
from calibri.files import write_atomically
from calibri.results import Record

JSON_NAME = "calibri.json"
TENSORS_NAME = "calibri.safetensors"
CARD_NAME = "README.md"

# A calibration of the largest known model is far below 1 MB; more is a mistake or an attack.
MAX_BYTES = 10 * 2**20

FORMAT_VERSION: Final = 2
_READABLE = (1, FORMAT_VERSION)

AnyRecord = TypeVar("AnyRecord", bound=Record)


def json_bytes(record: Record) -> bytes:
    """Serialise a record as pretty-printed UTF-8 JSON.

    Raises:
        CalibrationError: a number is not finite.
    """
    try:
        text = json.dumps(record.model_dump(), indent=2, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise CalibrationError(
            "The calibration was not saved: it contains a number that is not finite (NaN or "
            "infinity). Evaluate it again and check the scores."
        ) from error
    return (text + "\n").encode()


def _tensors(coefficients: Coefficients) -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
    members = {f"scales.{i}": [*m.values()] for i, m in enumerate(coefficients.scales)}
    weights = {
        "output_weights": coefficients.output_weights,
        "start_weights": coefficients.start_weights,
    }
    return {
        name: np.array(values, dtype=np.float64) for name, values in {**members, **weights}.items()
    }


def _metadata(coefficients: Coefficients, version: int = FORMAT_VERSION) -> dict[str, str]:
    return {
        "format_version": str(version),
        "granularity": coefficients.granularity,
        **{f"names.{i}": json.dumps([*m]) for i, m in enumerate(coefficients.scales)},
        **{
            name: str(count)
            for name in ("knots", "output_knots")
            if (count := getattr(coefficients, name)) > 1
        },
        **{name: repr(getattr(coefficients, name)) for name in coefficients.factors},
    }


def tensor_bytes(coefficients: Coefficients) -> bytes:
    """Serialise coefficients as float64 tensors with their names in the metadata."""
    return _in_order(save(_tensors(coefficients), _metadata(coefficients)))


def _in_order(data: bytes) -> bytes:
    """Sort a safetensors header, whose order differs from process to process.

    It is JSON behind its length in eight bytes, little endian, and ends with spaces up to a
    multiple of eight; tensors stand at offsets behind it.
    """
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[end:]


def write_folder(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write files one after the other, in the order of the mapping.

    Raises:
        CalibrationError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in contents.items():
            write_atomically(folder / name, data)
    except (OSError, RunError) as error:
        reason = str(error) if isinstance(error, RunError) else error.strerror
        raise CalibrationError(
            f"The calibration was not saved to {folder}: {reason} "
            "Choose a folder that can be written to."
        ) from error


def checked_subfolder(subfolder: str | None) -> str:
    """Return a subfolder in POSIX form, empty for none.

    Raises:
        CalibrationError: it is absolute or leads out of the folder.
    """
    path = PurePosixPath(subfolder or "")
    if path.is_absolute() or ".." in path.parts or "\\" in str(path):
        raise CalibrationError(
            f"The subfolder '{subfolder}' leads out of the calibration's folder. "
            "Pass a relative path without '..'."
        )
    return "" if path == PurePosixPath() else str(path)


def checked_size(name: str, size: int) -> None:
    """Refuse a file that is too large to be part of a calibration.

    Raises:
        CalibrationError: ``size`` is above 10 MB.
    """
    if size > MAX_BYTES:
        raise CalibrationError(
            f"{name} has {size / 2**20:.1f} MB; a file of a calibration has at most "
            f"{MAX_BYTES // 2**20} MB. This is not a calibration made by Calibri."
        )


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
            checked_size(path.name, max(len(data), path.stat().st_size))
            return data
    except FileNotFoundError as error:
        raise CalibrationError(
            f"No calibration was found in {path.parent}: {path.name} is missing. "
            "Pass the folder that contains it."
        ) from error
    except OSError as error:
        raise CalibrationError(
            f"{path} could not be read: {error.strerror or error}. Check the folder."
        ) from error


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        _refuse_constant(text)
    return value


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"the number {text} is not finite")


def read_json(path: Path) -> bytes:
    """Read the JSON file and check what the schema cannot: size, finite numbers, version.

    Raises:
        CalibrationError: the file is missing, too large, malformed or of an unknown version.
    """
    data = _read(path)
    try:
        document = json.loads(data, parse_float=_finite, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(document, dict):
        raise _damaged(path, "it does not contain a JSON object")
    if document.get("format_version") not in _READABLE:
        raise CalibrationError(
            f"{path} has format version {document.get('format_version')!r}; this version of "
            f"Calibri reads up to version {FORMAT_VERSION}. Update Calibri, or ask for the "
            "calibration in the older format."
        )
    return data


def validate(kind: type[AnyRecord], data: bytes, path: Path) -> AnyRecord:
    """Parse a record from JSON, strictly.

    Raises:
        CalibrationError: a field is missing, unknown or has a wrong value.
    """
    try:
        return kind.model_validate_json(data, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        message = f"{place}: {first['msg']}" if place else first["msg"]
        raise _damaged(path, message) from error


def _damaged(path: Path, reason: str) -> CalibrationError:
    return CalibrationError(
        f"{path} is not a valid calibration: {reason}. Download or save it again."
    )


def check_tensors(path: Path, coefficients: Coefficients, version: int) -> None:
    """Check that the safetensors file holds exactly these coefficients.

    Raises:
        CalibrationError: the file is missing, too large, malformed or disagrees.
    """
    checked_size(path.name, len(_read(path)))
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise _damaged(path, str(error)) from error
    expected = _tensors(coefficients)
    same = stored.keys() == expected.keys() and all(
        stored[name].dtype == np.float64 and np.array_equal(stored[name], expected[name])
        for name in expected
    )
    if not same or metadata != _metadata(coefficients, version):
        raise CalibrationError(
            f"{path.name} and {JSON_NAME} in {path.parent} disagree: they do not come from the "
            "same calibration, or saving was interrupted. Download or save it again."
        )

"""Prompts: from files to (id, text)."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from calibri.errors import PromptError
from calibri.prompts.pictures import DIGEST, IMAGE, with_picture

MAX_FILE_BYTES = 64 * 2**20
MAX_PROMPTS = 100_000
MAX_CHARACTERS = 4000


@dataclass(frozen=True)
class Prompt:
    """A prompt.

    Attributes:
        id: first 16 hexadecimal digits of the SHA-256 of the text in UTF-8, and of its source
            picture where it has one; the same wherever and in whatever order they are found.
        text: without outer whitespace, 1 to 4000 characters.
        metadata: what its file or set says of it beside the text, for the rewards that need it; no
            part of what makes two prompts equal.
    """

    id: str
    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def source(self) -> str | None:
        """The path of the picture that the text is an instruction for; None where there is none."""
        path = self.metadata.get(IMAGE) if DIGEST in self.metadata else None
        return None if path is None else str(path)


# (where, text, metadata): the place is only for messages.
Located = tuple[str, str, Mapping[str, Any]]
_NOTHING: Mapping[str, Any] = {}


def make_prompts(texts: Iterable[str]) -> tuple[Prompt, ...]:
    """Turn texts into prompts: strip, drop blank ones and repeats, keep the order.

    Raises:
        PromptError: a text is too long or cannot be encoded, there are too many, or none is left.
    """
    return collect_prompts(
        ((f"prompt {i}", text, _NOTHING) for i, text in enumerate(texts, 1)), "The list"
    )


def collect_prompts(located: Iterable[Located], source: str) -> tuple[Prompt, ...]:
    """Turn texts with what is known of them into prompts, see ``make_prompts``.

    Args:
        located: place, text and metadata of each; of a text that repeats the first is kept.
        source: where they are from, for messages.

    Raises:
        PromptError: as ``make_prompts``.
    """
    found: dict[tuple[str, str], Prompt] = {}
    for where, raw, metadata in located:
        text = raw.strip()
        key = text, str(metadata.get(DIGEST, ""))
        if not text or key in found:
            continue
        if len(found) == MAX_PROMPTS:
            raise PromptError(
                f"{source} has more than {MAX_PROMPTS} prompts (at {where}). Give fewer."
            )
        found[key] = _prompt(text, metadata, where, source)
    if not found:
        raise PromptError(f"{source} has no prompts: it is empty or blank. Add at least one.")
    return tuple(found.values())


def _prompt(text: str, metadata: Mapping[str, Any], where: str, source: str) -> Prompt:
    if len(text) > MAX_CHARACTERS:
        raise PromptError(
            f"{source}, {where}: the prompt has {len(text)} characters, more than "
            f"{MAX_CHARACTERS}. Shorten it, or check that the file has one prompt a line."
        )
    try:
        data = text.encode()
    except UnicodeEncodeError as error:  # a lone surrogate, which JSON escapes can spell
        raise PromptError(
            f"{source}, {where}: the prompt has a character that is not valid Unicode. Remove it."
        ) from error
    if DIGEST in metadata:
        data += b"\0" + str(metadata[DIGEST]).encode()
    return Prompt(hashlib.sha256(data).hexdigest()[:16], text, metadata)


def load_prompts(path: Path) -> tuple[Prompt, ...]:
    """Read prompts from a UTF-8 file: one a line, JSON, JSON lines or CSV.

    Args:
        path: ``.txt`` (one prompt a line), ``.json`` (a list of texts or of objects with
            ``"prompt"``), ``.jsonl`` (one of these a line) or ``.csv`` (a column ``prompt``). What
            an object or a row has beside becomes the prompt's metadata; ``"image"`` is the path,
            relative to the file, of the picture that the prompt is an instruction for. At most
            64 MB, 100,000 prompts and 4000 characters each.

    Raises:
        PromptError: missing, unreadable, too large, malformed or without prompts; names the file
            and the line.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise PromptError(
            f"Cannot read prompts from {path}: '{path.suffix}' is not a known kind of file. Use "
            f"{', '.join(_READERS)}."
        )
    located = (
        (where, text, with_picture(metadata, path.parent, f"{path}, {where}"))
        for where, text, metadata in reader(_read_text(path), path)
    )
    return collect_prompts(located, str(path))


def _read_text(path: Path) -> str:
    try:
        if path.exists() and not path.is_file():
            raise PromptError(f"{path} is not a regular file. Give a file with prompts.")
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise PromptError(
            f"Could not read the prompt file {path}: {error.strerror}. Check the path."
        ) from error
    if len(data) > MAX_FILE_BYTES:
        raise PromptError(
            f"{path} is larger than {MAX_FILE_BYTES // 2**20} MB. Give fewer prompts."
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise PromptError(
            f"{path}, line {line}: not UTF-8 text. Save the file as UTF-8."
        ) from error


def _lines(text: str) -> list[str]:
    # Not str.splitlines: it would also split at characters that may stand inside a prompt.
    return re.split(r"\r\n|\r|\n", text)


def _read_txt(text: str, path: Path) -> Iterator[Located]:
    for number, line in enumerate(_lines(text), 1):
        yield f"line {number}", line, _NOTHING


def _read_json(text: str, path: Path) -> Iterator[Located]:
    entries = _parse(text, path, first_line=1)
    if not isinstance(entries, list):
        raise PromptError(
            f'{path}: not a list. Write ["a prompt", ...] or [{{"prompt": "a prompt"}}, ...].'
        )
    for number, entry in enumerate(entries, 1):
        yield f"entry {number}", *_entry(entry, f"{path}, entry {number}")


def _read_jsonl(text: str, path: Path) -> Iterator[Located]:
    for number, line in enumerate(_lines(text), 1):
        if line.strip():
            entry = _parse(line, path, first_line=number)
            yield f"line {number}", *_entry(entry, f"{path}, line {number}")


def _read_csv(text: str, path: Path) -> Iterator[Located]:
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [name.strip() for name in next(rows, [])]
        if header.count("prompt") != 1:
            raise PromptError(
                f"{path}, line 1: needs one column named 'prompt'; has {header[:10]}. Add a header."
            )
        for row in rows:
            # An unquoted comma would silently cut a prompt short.
            if row and len(row) != len(header):
                raise PromptError(
                    f"{path}, line {rows.line_num}: {len(row)} cells under {len(header)} columns. "
                    'Put prompts that have commas in "quotes".'
                )
            if row:
                cells = dict(zip(header, row, strict=True))
                yield f"line {rows.line_num}", cells.pop("prompt"), cells
    except csv.Error as error:
        raise PromptError(f"{path}, line {rows.line_num}: {error}. Correct the line.") from error


def _parse(text: str, path: Path, first_line: int) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise PromptError(
            f"{path}, line {line}, column {error.colno}: not JSON ({error.msg}). Correct the line."
        ) from error
    except (RecursionError, ValueError) as error:
        raise PromptError(
            f"{path}, from line {first_line}: nested too deeply or with a number too long. "
            "Write plain texts."
        ) from error


def _entry(entry: object, where: str) -> tuple[str, Mapping[str, Any]]:
    metadata = dict(entry) if isinstance(entry, dict) else {}
    text = metadata.pop("prompt", None) if isinstance(entry, dict) else entry
    if not isinstance(text, str):
        raise PromptError(
            f'{where}: neither a text nor an object with a text under "prompt". Correct it.'
        )
    return text, metadata


_READERS = {".txt": _read_txt, ".json": _read_json, ".jsonl": _read_jsonl, ".csv": _read_csv}


def check_disjoint(
    train: Iterable[Prompt], held_out: Iterable[Prompt], held_out_name: str = "held-out"
) -> None:
    """Check that no prompt of a search is used to judge it.

    Texts count as equal when they differ only in case or whitespace; instructions do for the same
    picture.

    Args:
        train: prompts that the search scores.
        held_out: prompts that choose checkpoints or give the final figures.
        held_out_name: what the message calls the second set.

    Raises:
        PromptError: some prompts are in both; gives their number and names the first three.
    """
    seen = {_asked(prompt) for prompt in train}
    shared = [prompt.text for prompt in held_out if _asked(prompt) in seen]
    if shared:
        shown = ", ".join(repr(text[:80]) for text in shared[:3])
        more = f" and {len(shared) - 3} more" if len(shared) > 3 else ""
        raise PromptError(
            f"{len(shared)} {held_out_name} prompts are training prompts too: {shown}{more}. "
            "Remove them from one of the two files."
        )


def _asked(prompt: Prompt) -> tuple[str, str]:
    return wording(prompt.text), str(prompt.metadata.get(DIGEST, ""))


def wording(text: str) -> str:
    """Reduce a text to what makes it another prompt: neither case nor whitespace does."""
    return " ".join(text.split()).casefold()

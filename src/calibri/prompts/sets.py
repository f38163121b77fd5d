"""Prompt sets that the field knows, fetched by name and kept.

They are not ours to hand on, so each is fetched from its authors once and kept in the cache. A file
is pinned to a commit where one is known. No checksum is known beforehand: that of the first fetch
is recorded beside the file, and later reads and fetches verify it, so that one machine never mixes
two versions without saying so.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calibri.errors import PromptError
from calibri.http_client import HttpClient, PassingFaultError, RefusedError, ReplyTooLargeError
from calibri.prompts.files import MAX_FILE_BYTES, Prompt, collect_prompts

CACHE_VARIABLE = "CALIBRI_CACHE"
_TIMEOUT_SECONDS = 600.0  # for the largest file, over a slow line


# Text, category, which is empty where the set has none, and what else the set says of the prompt.
_Record = tuple[str, str, Mapping[str, Any]]


@dataclass(frozen=True)
class PromptFile:
    """One file of a set.

    Attributes:
        repo: ``owner/name``.
        path: in the repository.
        revision: branch or commit.
        hub: whether it is a dataset of the Hugging Face hub; otherwise a GitHub repository.
        category: of all its prompts; empty where each line has its own or none.
        sha256: of the content, where it is known beforehand.
    """

    repo: str
    path: str
    revision: str = "main"
    hub: bool = False
    category: str = ""
    sha256: str = ""

    @property
    def url(self) -> str:
        """Where a person can download it."""
        if self.hub:
            return (
                f"https://huggingface.co/datasets/{self.repo}/resolve/{self.revision}/{self.path}"
            )
        return f"https://raw.githubusercontent.com/{self.repo}/{self.revision}/{self.path}"

    @property
    def cached(self) -> Path:
        """Where it is kept."""
        return cache_folder() / self.repo / self.revision / self.path


_COMPBENCH = "Karine-Huang/T2I-CompBench"
# The commit of each file; T2I-CompBench++ brought the categories that the first release lacks.
_FIRST, _PLUS_PLUS = (
    "7710d059c3391fe97fbf9e2ad3813ed0e7d87979",
    "fc2c9b9f8ec357dcf1bb1b382c0df017afe9cd8c",
)
_COMPBENCH_REVISIONS = {
    "color": (_FIRST, "3310c2f1f43cc173505fc40cf6cc70762f090c07"),
    "shape": (_FIRST, _FIRST),
    "texture": (_FIRST, _FIRST),
    "spatial": (_FIRST, _FIRST),
    "3d_spatial": (_PLUS_PLUS, _PLUS_PLUS),
    "numeracy": (_PLUS_PLUS, _PLUS_PLUS),
    "non_spatial": (
        "9af0f65672ae1fb510b7a71112dac2d610afa41c",
        "41388b8b6ae716108ebb507133930c1f030990c3",
    ),
    "complex": (_FIRST, _FIRST),
}


def _compbench(split: str) -> tuple[PromptFile, ...]:
    return tuple(
        PromptFile(
            _COMPBENCH,
            f"examples/dataset/{category}_{split}.txt",
            revisions[split == "val"],
            category=category,
        )
        for category, revisions in _COMPBENCH_REVISIONS.items()
    )


def _calibri(name: str) -> tuple[PromptFile, ...]:
    revision = "716944c0a5525e6dc1a87033a1c15c7ffe98902d"
    return (PromptFile("v-gen-ai/Calibri", f"data/{name}.txt", revision),)


# Set to split to files; the first split is the one that the set's name alone means.
SETS: dict[str, dict[str, tuple[PromptFile, ...]]] = {
    "t2i-compbench": {
        "train": _compbench("train"),
        "val": _compbench("val"),
        # What the authors of Calibri report on.
        "val499": _calibri("t2i_compbench_val_random_crop"),
    },
    # No commit of this one is known: its branch is followed until the first fetch.
    "hpdv3": {"test": (PromptFile("MizzenAI/HPDv3", "test.json", hub=True),)},
    "drawbench": {
        "test": (
            PromptFile(
                "zhwang/HPDv2",
                "benchmark/drawbench.json",
                "260dbde75ab1c68e86d32a8e7739f1b49b100578",
                hub=True,
            ),
        )
    },
    "partiprompts": {
        "test": (
            PromptFile(
                "google-research/parti",
                "PartiPrompts.tsv",
                "2c99f6652cbc7f0d0441aa91f4c7e7055bcb0071",
            ),
        )
    },
    "geneval": {
        "test": (
            PromptFile(
                "djghosh13/geneval",
                "prompts/evaluation_metadata.jsonl",
                "d927da8e42fde2b1b5cd743da4df5ff83c1654ff",
            ),
        )
    },
}


def is_prompt_set(spec: str) -> bool:
    """Whether a text names a set rather than a file."""
    return spec.partition(":")[0] in SETS


def load_prompt_set(spec: str) -> tuple[Prompt, ...]:
    """Read a set, from the cache or from its authors.

    Args:
        spec: ``name``, ``name:split`` or ``name:split:category,category``, for example
            ``"t2i-compbench:val:color,shape"``.

    Returns:
        Prompts in the order of the files, with what the set says of each as its metadata, its
        ``"category"`` among it; a text that occurs again is left out.

    Raises:
        PromptError: there is no such set, split or category, a file cannot be fetched, or it is
            not the one that was fetched before.
    """
    name, split, categories = _parse(spec)
    records = [record for file in SETS[name][split] for record in _read(file)]
    missing = categories - {category for text, category, _ in records if text}
    if missing or not any(text for text, _, _ in records):
        raise PromptError(
            f"The prompt set '{name}:{split}' has no category {', '.join(sorted(missing)) or spec}."
            " Leave the categories out to get them all."
        )
    return collect_prompts(
        (
            (f"prompt {place}", text, {**metadata, **({"category": category} if category else {})})
            for place, (text, category, metadata) in enumerate(records, 1)
            if not categories or category in categories
        ),
        f"The prompt set '{spec}'",
    )


def cache_folder() -> Path:
    """Where fetched sets are kept: ``CALIBRI_CACHE``, or the user's cache folder."""
    root = os.environ.get(CACHE_VARIABLE)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return (Path(root) if root else Path(base) / "calibri") / "prompts"


def _parse(spec: str) -> tuple[str, str, set[str]]:
    name, _, rest = spec.partition(":")
    split, _, categories = rest.partition(":")
    if name not in SETS:
        raise PromptError(f"There is no prompt set '{name}'. Known are {', '.join(SETS)}.")
    split = split or next(iter(SETS[name]))
    if split not in SETS[name]:
        raise PromptError(
            f"The prompt set '{name}' has no split '{split}'. It has {', '.join(SETS[name])}."
        )
    return name, split, {c.strip() for c in categories.split(",") if c.strip()}


def _read(file: PromptFile) -> Iterator[_Record]:
    content = _content(file)
    try:
        text = content.decode("utf-8-sig")
        yield from _READERS[Path(file.path).suffix](text, file)
    except (ValueError, KeyError, TypeError, RecursionError, csv.Error) as error:
        raise PromptError(
            f"'{file.cached}' is not the file that was expected ({type(error).__name__}: {error}). "
            f"Delete it and try again, or compare it with {file.url}."
        ) from error


def _content(file: PromptFile) -> bytes:
    path = file.cached
    new = not path.is_file()
    content = _fetch(file) if new else path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    record = path.with_name(path.name + ".sha256")
    expected = file.sha256 or (record.read_text().strip() if record.is_file() else "")
    if expected and digest != expected:
        raise PromptError(
            f"{file.url if new else repr(str(path))} has the SHA-256 checksum {digest}, not "
            f"{expected} {'as published' if file.sha256 else 'as when it was first fetched'}, and "
            "is not used. "
            f"To accept another version, delete '{path}' and '{record.name}' beside it; results "
            "before and after may not compare."
        )
    if not expected:
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(digest + "\n")
    if new:
        _write(path, content)
    return content


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    temporary.replace(path)


def _fetch(file: PromptFile) -> bytes:
    # The hub redirects to where its files are kept.
    client = HttpClient(timeout=_TIMEOUT_SECONDS, max_bytes=MAX_FILE_BYTES, redirects=True)
    try:
        return client.send("GET", file.url)
    except (PassingFaultError, RefusedError) as error:
        raise PromptError(
            f"Cannot fetch {file.url}: {error}. Connect to the network, or download the file "
            f"elsewhere and put it at '{file.cached}'."
        ) from error
    except ReplyTooLargeError as error:
        raise PromptError(f"{file.url} has {error}; not used.") from error


def _read_lines(text: str, file: PromptFile) -> Iterator[_Record]:
    # The files mix line ends, and some lines are indented.
    for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n"):
        yield line.strip(), file.category, {}


def _read_json(text: str, file: PromptFile) -> Iterator[_Record]:
    for entry in json.loads(text):
        rest = dict(entry) if isinstance(entry, dict) else {"prompt": entry}
        yield str(rest.pop("prompt")).strip(), "", rest


def _read_jsonl(text: str, file: PromptFile) -> Iterator[_Record]:
    for line in text.split("\n"):
        if line.strip():
            entry = dict(json.loads(line))
            yield entry.pop("prompt").strip(), str(entry.get("tag", "")), entry


def _read_tsv(text: str, file: PromptFile) -> Iterator[_Record]:
    # Quotes belong to the prompts.
    for row in csv.DictReader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE):
        rest = {key: value for key, value in row.items() if key not in ("Prompt", "Category")}
        yield row["Prompt"].strip(), row["Category"].strip(), rest


_READERS = {
    ".txt": _read_lines,
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".tsv": _read_tsv,
}

"""What reward models need from the hub beside single tensors files: tokenizers, whole models."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import AutoTokenizer

from calibri.errors import RewardError
from calibri.rewards.weights import Checkpoint, read_tensors


def load_tokenizer(checkpoint: Checkpoint) -> Any:
    """Load the tokenizer of a repository or folder.

    Raises:
        RewardError: it is not there, or cannot be had from the hub.
    """
    source = checkpoint.folder or checkpoint.repo_id
    revision = {"revision": checkpoint.revision} if checkpoint.revision else {}
    try:
        return AutoTokenizer.from_pretrained(source, **revision)
    except (OSError, ValueError) as error:
        raise RewardError(
            f"Cannot load the tokenizer of '{checkpoint}': {error}. Connect to the hub, or put the "
            "tokenizer's files into the folder of the weights."
        ) from error


def read_json(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    """Read a JSON object of a checkpoint.

    Raises:
        RewardError: the file is missing or no JSON object.
    """
    path = checkpoint.file(name)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RewardError(f"Cannot read '{path}': {error}. Download it again.") from error
    if not isinstance(value, dict):
        raise RewardError(f"'{path}' is not a JSON object. Download it again.")
    return value


def read_converted(checkpoint: Checkpoint, name: str) -> dict[str, Tensor]:
    """Read weights that were published as a pickle, from their conversion to safetensors.

    Args:
        checkpoint: where they are.
        name: the published file, for example ``"ImageReward.pt"``; in a folder the conversion of
            the same name is read, ``"ImageReward.safetensors"``, and on the hub's cache the one
            beside the published file.

    Raises:
        RewardError: the file is missing, or was not converted yet; says how.
    """
    converted = str(Path(name).with_suffix(".safetensors"))
    if checkpoint.folder is not None:
        return read_tensors(checkpoint.file(converted))
    published = checkpoint.file(name)
    beside = published.with_suffix(".safetensors")
    return read_tensors(beside if beside.is_file() else published)


def read_sharded(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Read a model's tensors from ``model.safetensors`` or, if there is an index, from its shards.

    Raises:
        RewardError: a file is missing, damaged or not safetensors.
    """
    for index in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        shards = _shards(checkpoint, index)
        if shards:
            return {k: v for shard in shards for k, v in read_converted(checkpoint, shard).items()}
    return read_tensors(checkpoint.file("model.safetensors"))


def _shards(checkpoint: Checkpoint, index: str) -> list[str]:
    try:
        path = checkpoint.file(index)
    except RewardError:  # no index: the weights are in one file
        return []
    names = json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()
    return sorted(set(names))


def load_pretrained(
    cls: Any, checkpoint: Checkpoint, leave_out: tuple[str, ...] = (), **options: Any
) -> nn.Module:
    """Load a model of transformers strictly; the library maps its older key layouts itself.

    Args:
        cls: a class with ``from_pretrained``.
        checkpoint: repository or folder with ``config.json`` and ``model.safetensors``.
        leave_out: starts of checkpoint keys that the model knowingly does not use.
        **options: passed to the class.

    Raises:
        RewardError: a file is missing, or keys or shapes do not match.
    """
    checkpoint.file("model.safetensors")
    folder = checkpoint.file("config.json").parent
    try:
        model, report = cls.from_pretrained(
            folder,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, with the other faults
            **options,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise RewardError(
            f"Cannot load {cls.__name__} from '{checkpoint}': {error}. Use the checkpoint this "
            "reward names."
        ) from error
    _check(cls.__name__, report, leave_out)
    loaded: nn.Module = model
    return loaded


def _check(name: str, report: Mapping[str, Any], leave_out: tuple[str, ...]) -> None:
    missing = sorted(report["missing_keys"])
    unknown = sorted(key for key in report["unexpected_keys"] if not key.startswith(leave_out))
    wrong = sorted(str(key) for key in report["mismatched_keys"])
    if missing or unknown or wrong:
        raise RewardError(
            f"The checkpoint does not fit {name}: {len(missing)} keys missing {missing[:3]}, "
            f"{len(unknown)} unknown {unknown[:3]}, {len(wrong)} of another shape {wrong[:3]}. Use "
            "the checkpoint this reward names."
        )

"""Files of reward models: conversion, shards, tokenizers, JSON, and every reward by its name."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from calibri.errors import RewardError
from calibri.rewards import convert
from calibri.rewards.convert import convert_checkpoint
from calibri.rewards.pretrained import load_tokenizer, read_converted, read_json, read_sharded
from calibri.rewards.registry import make_reward
from calibri.rewards.reward import BatchedReward
from calibri.rewards.weights import Checkpoint
from tests.rewards.tiny_models import pictures, save, save_clip_tokenizer

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b.weight": torch.ones(2).half()}

NAMES = [
    "aesthetic",
    "blip-vqa",
    "clipscore",
    "clipscore-original",
    "compbench-attribute",
    "compbench-clip",
    "dino-diversity",
    "dino-source",
    "geneval",
    "geneval-soft",
    "hpsv2.1",
    "imagereward",
    "jpeg-compressibility",
    "jpeg-incompressibility",
    "pickscore",
    "vqascore",
]
WITHOUT_WEIGHTS = {"jpeg-compressibility", "jpeg-incompressibility"}


def at(folder: Path) -> Checkpoint:
    return Checkpoint("some/repository", folder=folder)


def same(found: dict[str, torch.Tensor]) -> bool:
    return found.keys() == TENSORS.keys() and all(
        torch.equal(found[key], value) and found[key].dtype == value.dtype
        for key, value in TENSORS.items()
    )


@pytest.mark.parametrize(
    "content",
    [TENSORS, {"state_dict": TENSORS, "epoch": 3}, {"model": TENSORS, "config": {"a": [1]}}],
)
def test_a_legacy_checkpoint_is_converted_beside_itself(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "old.pt")
    assert convert_checkpoint(tmp_path / "old.pt") == tmp_path / "old.safetensors"
    assert same(read_converted(at(tmp_path), "old.pt"))


def test_tensors_that_share_memory_are_both_kept(tmp_path: Path) -> None:
    torch.save({"a": TENSORS["a"], "view": TENSORS["a"].T}, tmp_path / "old.bin")
    convert_checkpoint(tmp_path / "old.bin")
    found = read_converted(at(tmp_path), "old.bin")
    assert torch.equal(found["view"], TENSORS["a"].T)


class Evil:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('code ran')",))


def test_code_in_a_checkpoint_does_not_run(tmp_path: Path) -> None:
    torch.save({"state_dict": TENSORS, "extra": Evil()}, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps(Evil(), protocol=2))
    for name in ("a.pt", "b.pt"):
        with pytest.raises(RewardError, match="runs no code"):
            convert_checkpoint(tmp_path / name)
    assert not list(tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {"state_dict": {}}])
def test_a_file_without_tensors_is_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "old.pt")
    with pytest.raises(RewardError, match="no tensors"):
        convert_checkpoint(tmp_path / "old.pt")


@pytest.mark.parametrize("content", [b"", b"not a checkpoint"])
def test_a_damaged_or_missing_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "old.pt").write_bytes(content)
    for name in ("old.pt", "missing.pt"):
        with pytest.raises(RewardError, match="Cannot read tensors"):
            convert_checkpoint(tmp_path / name)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save(TENSORS, buffer)
    (tmp_path / "old.pt").write_bytes(buffer.getvalue()[:-200])
    with pytest.raises(RewardError, match="Cannot read tensors"):
        convert_checkpoint(tmp_path / "old.pt")


def test_on_the_hub_the_conversion_is_looked_for_beside_the_published_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = tmp_path / "old.pt"
    torch.save(TENSORS, published)
    monkeypatch.setattr(Checkpoint, "file", lambda self, name: tmp_path / name)
    with pytest.raises(RewardError, match=r"calibri rewards convert .*old\.pt"):
        read_converted(Checkpoint("some/repository"), "old.pt")
    convert_checkpoint(published)
    assert same(read_converted(Checkpoint("some/repository"), "old.pt"))


def test_a_conversion_overwrites_nothing(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(3)}, tmp_path / "old.pt")
    (tmp_path / "old.safetensors").write_bytes(b"mine")
    with pytest.raises(RewardError, match="nothing is overwritten"):
        convert_checkpoint(tmp_path / "old.pt")
    assert (tmp_path / "old.safetensors").read_bytes() == b"mine"


def test_a_conversion_that_cannot_be_written_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"w": torch.ones(3)}, tmp_path / "old.pt")

    def full(tensors: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(convert, "save_file", full)
    with pytest.raises(RewardError, match=r"Cannot write '.*old\.safetensors'.*No space left"):
        convert_checkpoint(tmp_path / "old.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["old.pt"]


def test_shards_of_a_converted_checkpoint_are_read(tmp_path: Path) -> None:
    for number, (key, value) in enumerate(TENSORS.items()):
        torch.save({key: value}, tmp_path / f"part-{number}.bin")
        convert_checkpoint(tmp_path / f"part-{number}.bin")
    parts = {key: f"part-{number}.bin" for number, key in enumerate(TENSORS)}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": parts}))
    assert same(read_sharded(at(tmp_path)))


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    index = {"weight_map": {"a": "part-1.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(RewardError, match=r"part-1\.safetensors"):
        read_sharded(at(tmp_path))


def test_one_file_needs_no_index(tmp_path: Path) -> None:
    save(tmp_path, "model.safetensors", TENSORS)
    assert same(read_sharded(at(tmp_path)))


@pytest.mark.parametrize("content", ["", "[1]", "{"])
def test_settings_that_are_no_object_are_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(RewardError, match=r"config\.json"):
        read_json(at(tmp_path), "config.json")


def test_a_tokenizer_comes_from_the_folder_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(RewardError, match="tokenizer"):
        load_tokenizer(at(tmp_path))
    save_clip_tokenizer(tmp_path)
    assert load_tokenizer(at(tmp_path))("a")["input_ids"][0] == 0


@pytest.mark.parametrize("name", NAMES)
def test_every_reward_is_made_by_name_and_says_what_is_missing(name: str, tmp_path: Path) -> None:
    options = {} if name in WITHOUT_WEIGHTS else {"checkpoint": str(tmp_path)}
    reward = make_reward(name, batch_size=2, **options)
    assert isinstance(reward, BatchedReward)
    assert reward.info.name == name
    assert reward.batch_size == 2
    assert reward.info.unit
    images = pictures(2, 16, 16)
    if name in WITHOUT_WEIGHTS:
        assert reward.score(images, ["a", "a"]).isfinite().all()
    else:
        assert str(tmp_path) in reward.info.variant
        with pytest.raises(RewardError, match=r"missing|Give"):
            reward.score(images, ["a", "a"])


def test_a_reward_takes_a_revision_and_a_dtype() -> None:
    reward = make_reward("pickscore", revision="abc", dtype="bfloat16")
    assert "yuvalkirstain/PickScore_v1@abc" in reward.info.variant
    assert reward.dtype == torch.bfloat16

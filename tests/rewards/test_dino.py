from __future__ import annotations

import math
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from transformers import Dinov2Config, Dinov2Model, ViTConfig, ViTModel

from calibri.errors import RewardError
from calibri.rewards import dino
from calibri.rewards.dino import DinoDiversity, DinoSource, mean_dissimilarity
from calibri.rewards.weights import Checkpoint
from tests.rewards.differentiable import check_differentiable
from tests.rewards.oracles import cosine, dinov2, double
from tests.rewards.tiny_models import HEADS, Draw, pictures, save

IMAGES = pictures(5, 30, 40)
PROMPTS = ["a", "b", "a", "b", "a"]
SIZES = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=HEADS, patch_size=8)


@pytest.fixture(autouse=True)
def _small_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dino, "RESIZE", 18)
    monkeypatch.setattr(dino, "CROP", 16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DINOv2 in the keys that the hub has."""
    folder = tmp_path_factory.mktemp("dino")
    config = Dinov2Config(image_size=16, mlp_ratio=2, **SIZES)
    model = Dinov2Model(config)
    model.load_state_dict(Draw(0).like(model.state_dict()))
    model.save_pretrained(folder)
    return folder


def diversity(folder: Path, **options: object) -> DinoDiversity:
    return DinoDiversity(Checkpoint("unused", folder=folder), **options)


def pixels(image: Tensor) -> Tensor:
    """30 x 40 to 18 x 24, the middle 16 x 16, ImageNet's mean and deviation."""
    picture = Image.fromarray(np.moveaxis(image.numpy(), 0, 2)).resize((24, 18), Image.BICUBIC)
    array = np.asarray(picture)[1:17, 4:20] / 255
    array = (array - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    return torch.from_numpy(np.moveaxis(array, 2, 0).copy())


def test_the_checkpoint_is_in_the_published_keys(folder: Path) -> None:
    keys = load_file(folder / "model.safetensors").keys()
    assert "encoder.layer.0.attention.attention.query.weight" in keys
    assert "encoder.layer.1.attention.output.dense.bias" in keys


def test_the_score_is_the_mean_dissimilarity_of_all_pairs_of_a_prompt(folder: Path) -> None:
    tensors = double(load_file(folder / "model.safetensors"))
    features = [dinov2(tensors, pixels(image), HEADS) for image in IMAGES]
    expected = {}
    for prompt in "ab":
        rows = [features[i] for i in range(5) if PROMPTS[i] == prompt]
        values = [1 - cosine(x, y) for x, y in combinations(rows, 2)]
        expected[prompt] = sum(values) / len(values)
    scores = diversity(folder).score(IMAGES, PROMPTS)
    assert abs(expected["a"] - expected["b"]) > 1e-3
    assert scores.tolist() == pytest.approx([expected[p] for p in PROMPTS], abs=2e-6)


def test_groups_are_not_split_into_batches(folder: Path) -> None:
    whole = diversity(folder).score(IMAGES, PROMPTS)
    torch.testing.assert_close(diversity(folder, batch_size=2).score(IMAGES, PROMPTS), whole)


def test_a_group_of_one_is_refused(folder: Path) -> None:
    with pytest.raises(RewardError, match="'b'"):
        diversity(folder).score(IMAGES[:3], ["a", "b", "a"])


def test_it_is_groupwise_and_needs_nothing_for_no_images(folder: Path) -> None:
    reward = diversity(folder)
    assert reward.info.kind == "groupwise"
    assert reward.score(IMAGES[:0], []).shape == (0,)


def test_dissimilarity_of_equal_orthogonal_and_opposite_features() -> None:
    one = torch.tensor([1.0, 0.0])
    other = torch.tensor([0.0, 5.0])
    assert mean_dissimilarity(torch.stack([one, 3 * one])) == pytest.approx(0)
    assert mean_dissimilarity(torch.stack([one, other])) == pytest.approx(1)
    assert mean_dissimilarity(torch.stack([one, -one])) == pytest.approx(2)
    # Three directions at 120 degrees: the largest value of three images, 3 / 2.
    turns = torch.tensor([0.0, 2.0, 4.0]) * math.pi / 3
    spread = torch.stack([turns.cos(), turns.sin()], 1)
    assert mean_dissimilarity(spread) == pytest.approx(1.5)


def test_the_first_dino_has_no_pooler(tmp_path: Path) -> None:
    config = ViTConfig(image_size=16, intermediate_size=20, **SIZES)
    model = ViTModel(config, add_pooling_layer=False)
    model.load_state_dict(Draw(0).like(model.state_dict()))
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        states = model.eval()(torch.stack([pixels(x) for x in IMAGES]).float()).last_hidden_state
    features = diversity(tmp_path).features(IMAGES)
    torch.testing.assert_close(features, states[:, 0], atol=1e-5, rtol=1e-5)


def test_loading_is_strict(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    for message, faulty in {
        "1 keys missing": {k: v for k, v in tensors.items() if k != "layernorm.bias"},
        "1 unknown": tensors | {"head.weight": torch.zeros(1)},
        "of another shape": tensors | {"layernorm.bias": torch.zeros(3)},
    }.items():
        save(tmp_path, "model.safetensors", faulty)
        with pytest.raises(RewardError, match=message):
            diversity(tmp_path).score(IMAGES, PROMPTS)


def test_other_models_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(RewardError, match="'clip' model"):
        diversity(tmp_path).score(IMAGES, PROMPTS)


def test_it_scores_floats_with_a_gradient(folder: Path) -> None:
    check_differentiable(diversity(folder), PROMPTS)
    check_differentiable(diversity(folder, batch_size=2), PROMPTS)


def test_the_value_of_a_group_is_moved_by_its_images_alone(folder: Path) -> None:
    pixels = (IMAGES / 255).requires_grad_()
    scores = diversity(folder).score_float(pixels, PROMPTS)
    scores[0].backward()
    assert [bool(gradient.any()) for gradient in pixels.grad] == [p == "a" for p in PROMPTS]


def test_a_result_is_compared_with_its_source(folder: Path) -> None:
    tensors = double(load_file(folder / "model.safetensors"))
    reward = DinoSource(Checkpoint("unused", folder=folder))
    sources = list(IMAGES.roll(1, 0))
    scores = reward.score_edits(IMAGES, PROMPTS, sources)
    expected = [
        cosine(*(dinov2(tensors, pixels(image), HEADS) for image in pair))
        for pair in zip(IMAGES, sources, strict=True)
    ]
    assert scores.tolist() == pytest.approx(expected, abs=2e-6)
    assert reward.score_edits(IMAGES, PROMPTS, list(IMAGES)).tolist() == pytest.approx([1.0] * 5)


def test_results_without_their_sources_are_refused(folder: Path) -> None:
    reward = DinoSource(Checkpoint("unused", folder=folder))
    with pytest.raises(RewardError, match="none were given"):
        reward.score(IMAGES, PROMPTS)
    with pytest.raises(RewardError, match="4 source pictures for 5"):
        reward.score_edits(IMAGES, PROMPTS, list(IMAGES[1:]))

"""GenEval's detector and reward on a tiny Mask2Former and a tiny CLIP."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from transformers import Mask2FormerConfig, Mask2FormerModel, SwinConfig

from calibri.errors import RewardError
from calibri.prompts.sets import SETS, load_prompt_set
from calibri.rewards import geneval, mask2former
from calibri.rewards.geneval import GenEval, GenEvalSoft, crop_object
from calibri.rewards.geneval_rules import COLORS, NAMES, Detection, Requirement, Task
from calibri.rewards.mask2former import (
    detector_pixels,
    instances,
    load_detector,
    resized_size,
    upsample,
)
from calibri.rewards.reward import UsesMetadata
from calibri.rewards.weights import Checkpoint
from tests.rewards.oracles import cosine, double, hf_image, hf_text, quick_gelu
from tests.rewards.tiny_models import (
    HEADS,
    Draw,
    clip_ids,
    clip_tensors,
    pictures,
    save,
    save_clip_tokenizer,
    tiny_clip,
)


def tiny_detector() -> Mask2FormerConfig:
    swin = SwinConfig(
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 1, 1],
        window_size=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    return Mask2FormerConfig(
        backbone_config=swin,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=8,
        dim_feedforward=8,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        num_queries=6,
        num_labels=len(NAMES),
    )


def save_detector(folder: Path) -> None:
    """A detector as the hub has it: the model below ``model.``, a head, a constant of the loss."""
    model = Mask2FormerModel(tiny_detector())
    model.save_pretrained(folder)
    tensors = {f"model.{k}": v for k, v in load_file(folder / "model.safetensors").items()}
    tensors |= Draw(1, scale=2.0).linear("class_predictor", len(NAMES) + 1, 32)
    save(folder, "model.safetensors", tensors | {"criterion.empty_weight": torch.ones(81)})


@pytest.fixture(scope="module")
def detector_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("detector")
    save_detector(folder)
    return folder


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    save(folder, "model.safetensors", clip_tensors(tiny_clip("quick_gelu")))
    save_clip_tokenizer(folder)
    return folder


def at(folder: Path) -> Checkpoint:
    return Checkpoint("unused", folder=folder)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((512, 512), (800, 800)),
        ((1024, 1024), (800, 800)),
        ((512, 1024), (667, 1333)),
        ((400, 300), (1067, 800)),
    ],
)
def test_the_short_side_becomes_800_unless_the_long_one_exceeds_1333(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert resized_size(*size) == expected


def test_the_detector_sees_a_padded_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mask2former, "SHORT_SIDE", 40)
    image = pictures(1, 20, 25)[0]
    pixels, inner = detector_pixels(image)
    assert inner == (40, 50)
    assert pixels.shape == (1, 3, 64, 64)
    assert not pixels[..., 40:, :].any()
    assert not pixels[..., 50:].any()
    resized = Image.fromarray(np.moveaxis(image.numpy(), 0, 2)).resize((50, 40), Image.BILINEAR)
    expected = (np.asarray(resized) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    torch.testing.assert_close(
        pixels[0, :, :40, :50].double(),
        torch.from_numpy(np.moveaxis(expected, 2, 0).copy()),
        atol=1e-5,
        rtol=0,
    )


def test_masks_lose_the_padding_and_get_the_images_size() -> None:
    # The left half of the padded 8 x 16 is the whole image.
    masks = torch.zeros(1, 2, 4)
    masks[:, :, :2] = 1
    full = upsample(masks, (8, 16), (8, 6), (4, 3))
    assert full.shape == (1, 4, 3)
    torch.testing.assert_close(full, torch.ones(1, 4, 3))


def instances_oracle(classes: Tensor, masks: Tensor) -> list[tuple[str, float, tuple[int, ...]]]:
    """Every pair of query and class, one after the other, pixel by pixel."""
    found = []
    for query in range(len(classes)):
        total = sum(math.exp(v) for v in classes[query].tolist())
        pixels = [
            (y, x, v) for y, row in enumerate(masks[query].tolist()) for x, v in enumerate(row)
        ]
        inside = [(y, x, 1 / (1 + math.exp(-v))) for y, x, v in pixels if v > 0]
        for label in range(classes.shape[1] - 1):
            if inside:
                score = math.exp(classes[query, label]) / total
                score *= sum(v for _, _, v in inside) / len(inside)
                ys, xs = [y for y, _, _ in inside], [x for _, x, _ in inside]
                box = (min(xs), min(ys), max(xs) + 1, max(ys) + 1)
                found.append((NAMES[label], score, box))
    return sorted((x for x in found if x[1] > 0.3), key=lambda x: -x[1])


def test_instances_are_the_confident_pairs_of_query_and_class() -> None:
    generator = torch.Generator().manual_seed(0)
    classes = 4 * torch.randn(12, 81, generator=generator)
    classes[0, 3], classes[0, 5] = 20.0, 20.1  # one query may be two classes
    masks = 2 * torch.randn(12, 5, 7, generator=generator) + 1
    masks[1] = -1.0  # nothing: no object
    classes[1, 7] = 30.0
    found = sorted(instances(classes, masks), key=lambda x: -x.score)
    expected = instances_oracle(classes, masks)
    assert len(expected) >= 3
    assert [(x.name, x.box) for x in found] == [(name, box) for name, _, box in expected]
    assert [x.score for x in found] == pytest.approx([score for _, score, _ in expected], abs=1e-6)
    for detection in found:
        assert detection.mask is not None
        assert any(torch.equal(detection.mask, mask > 0) for mask in masks)


def test_no_object_is_no_class() -> None:
    classes = torch.zeros(1, 81)
    classes[0, 80] = 30.0
    assert instances(classes, torch.ones(1, 3, 3)) == []


def test_the_detector_is_the_librarys_with_a_head(detector_folder: Path) -> None:
    detector = load_detector(at(detector_folder)).eval()
    tensors = load_file(detector_folder / "model.safetensors")
    library = Mask2FormerModel.from_pretrained(detector_folder).eval()
    pixels = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        classes, masks = detector(pixels)
        output = library(pixels)
    assert masks.shape == (6, 16, 24)
    torch.testing.assert_close(masks, output.masks_queries_logits[-1][0])
    # The last state is returned before the norm that both of the decoder's heads read it through.
    states = output.transformer_decoder_last_hidden_state.reshape(6, 32)
    states = library.transformer_module.decoder.layernorm(states)
    head = tensors["class_predictor.weight"], tensors["class_predictor.bias"]
    torch.testing.assert_close(classes, states @ head[0].T + head[1], atol=1e-5, rtol=1e-5)


def test_the_detector_loads_strictly(detector_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((detector_folder / "config.json").read_text())
    tensors = load_file(detector_folder / "model.safetensors")
    for message, faulty in {
        "keys missing": {k: v for k, v in tensors.items() if "queries_embedder" not in k},
        "1 unknown": tensors | {"extra.weight": torch.zeros(1)},
        "1 keys missing": {k: v for k, v in tensors.items() if k != "class_predictor.bias"},
    }.items():
        save(tmp_path, "model.safetensors", faulty)
        with pytest.raises(RewardError, match=message):
            load_detector(at(tmp_path))


def test_a_detector_of_other_classes_is_refused(tmp_path: Path) -> None:
    save_detector(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["id2label"] = {"0": "cat"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(RewardError, match="knows 1 classes"):
        load_detector(at(tmp_path))


# Colours


def test_an_object_is_cut_out_on_grey() -> None:
    image = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[1, 1] = mask[2, 2] = True
    crop = np.asarray(crop_object(image, Detection("cat", 1.0, (1, 1, 3, 3), mask)))
    assert crop.shape == (2, 2, 3)
    assert crop[0, 0].tolist() == [15, 16, 17]
    assert crop[1, 1].tolist() == [30, 31, 32]
    assert crop[0, 1].tolist() == crop[1, 0].tolist() == [0x99] * 3


def reward(detector: Path, clip: Path, metadata: object = None) -> GenEval:
    return GenEval(
        at(detector), metadata=metadata, clip=at(clip), config=lambda: tiny_clip("quick_gelu")
    )


def color_oracle(clip: Path, crop: Image.Image, name: str) -> str:
    """The colour whose mean of unit text embeddings is nearest to the crop's."""
    tensors = double(load_file(clip / "model.safetensors"))
    array = np.asarray(crop.resize((16, 16), Image.BICUBIC)) / 255
    array = (array - [0.48145466, 0.4578275, 0.40821073]) / [0.26862954, 0.26130258, 0.27577711]
    image = hf_image(tensors, torch.from_numpy(np.moveaxis(array, 2, 0).copy()), HEADS, quick_gelu)
    best, nearest = "", -2.0
    for color in COLORS:
        texts = (
            f"a photo of a {color} {name}",
            f"a photo of a {color}-colored {name}",
            f"a photo of a {color} object",
        )
        total = torch.zeros(8, dtype=torch.float64)
        for text in texts:
            embedding = hf_text(tensors, clip_ids(text), HEADS, quick_gelu)
            total += embedding / embedding.norm()
        if cosine(image, total) > nearest:
            best, nearest = color, cosine(image, total)
    return best


def test_colours_are_the_nearest_of_ten(detector_folder: Path, clip_folder: Path) -> None:
    objects, crops, pieces = [], [], pictures(12, 20, 20, seed=3)
    scene = torch.cat(list(pieces), 2)
    picture = Image.fromarray(np.moveaxis(scene.numpy(), 0, 2))
    for index in range(12):
        box = (20 * index, 0, 20 * index + 20, 20)
        objects.append(Detection("cat", 1.0, box))
        crops.append(picture.crop(box))
    with torch.inference_mode():
        colors = reward(detector_folder, clip_folder).colors(picture, objects)
    assert colors == [color_oracle(clip_folder, crop, "cat") for crop in crops]


# The whole reward


TASKS = {
    "cat": Task("single_object", (Requirement("cat", 1),)),
    "two cats": Task("counting", (Requirement("cat", 2),), (Requirement("cat", 3),)),
    "cats": Task("counting", (Requirement("cat", 1),), (Requirement("cat", 2),)),
}


def test_images_score_one_or_zero_by_their_prompts_task(
    detector_folder: Path, clip_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = [Detection("cat", 0.95, (0, 0, 5, 5)), Detection("cat", 0.6, (5, 0, 9, 5))]
    monkeypatch.setattr(geneval, "detect", lambda *args: shown)
    judged = reward(detector_folder, clip_folder, TASKS)
    images = pictures(3, 16, 16)
    # The second cat is not confident enough to count.
    assert judged.score(images, ["cat", "two cats", "cats"]).tolist() == [1.0, 0.0, 1.0]
    assert judged.explain(images[1], TASKS["two cats"]) == ["expected 2 cat, found 1"]
    assert judged.info.kind == "corpus"
    assert "hf" in judged.info.variant


def test_soft_scores_are_graded_from_the_same_detections(
    detector_folder: Path, clip_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = [Detection("cat", 0.95, (0, 0, 5, 5)), Detection("cat", 0.6, (5, 0, 9, 5))]
    monkeypatch.setattr(geneval, "detect", lambda *args: shown)
    colored = Task("colors", (Requirement("cat", 2, "red"),))
    soft = GenEvalSoft(
        at(detector_folder),
        metadata={**TASKS, "red": colored},
        clip=at(clip_folder),
        config=lambda: tiny_clip("quick_gelu"),
    )
    monkeypatch.setattr(soft, "colors", lambda image, objects: ["red", "blue"])
    # Counting sees the first cat only; a single object may be there once, not twice.
    scores = soft.score(pictures(4, 16, 16), ["cat", "two cats", "cats", "red"])
    assert scores.tolist() == [0.0, 0.5, 1.0, 0.75]
    assert (soft.info.name, soft.info.kind) == ("geneval-soft", "pointwise")
    assert soft.info.variant.startswith("graded, ")


def test_the_tiny_models_run_end_to_end(
    detector_folder: Path, clip_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mask2former, "SHORT_SIDE", 64)
    monkeypatch.setattr(mask2former, "THRESHOLD", 0.0)
    monkeypatch.setattr("calibri.rewards.geneval_rules.THRESHOLD", 0.0)
    every = Task("two_object", tuple(Requirement(name, 1) for name in NAMES))
    judged = reward(detector_folder, clip_folder, {"everything": every})
    assert judged.score(pictures(2, 32, 48), ["everything"] * 2).tolist() == [0.0, 0.0]
    missing = judged.explain(pictures(1, 32, 48)[0], every)
    # Six queries show some classes, not all eighty.
    assert 0 < len(missing) < len(NAMES)


TASK = {"tag": "single_object", "include": [{"class": "cat", "count": 1}]}


def cats(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    boxes = [Detection("cat", 0.95, (9.0 * i, 0, 9.0 * i + 5, 5)) for i in range(count)]
    monkeypatch.setattr(geneval, "detect", lambda *args: boxes)


def test_tasks_must_be_known(detector_folder: Path, clip_folder: Path, tmp_path: Path) -> None:
    image = pictures(1, 16, 16)
    with pytest.raises(RewardError, match=r"'cat' asks for.*evaluation_metadata\.jsonl"):
        reward(detector_folder, clip_folder).score(image, ["cat"])
    with pytest.raises(RewardError, match="Cannot read GenEval's metadata"):
        reward(detector_folder, clip_folder, tmp_path / "none.jsonl").score(image, ["cat"])


def test_tasks_may_come_from_a_file_and_with_the_prompts(
    detector_folder: Path, clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cats(monkeypatch, 1)
    path = tmp_path / "tasks.jsonl"
    path.write_text(json.dumps({**TASK, "prompt": "a cat"}) + "\n")
    known = reward(detector_folder, clip_folder, str(path))
    two = {**TASK, "include": [{"class": "cat", "count": 2}]}
    known.remember({"two cats": two, "a cat": two, "a dog": {}, "a bird": {"tag": "single_object"}})
    known.remember({"cats": two})
    # The option wins where both know a prompt.
    assert known.score(pictures(3, 16, 16), ["a cat", "two cats", "cats"]).tolist() == [1, 0, 0]
    with pytest.raises(RewardError, match="'a dog' asks for"):
        known.score(pictures(1, 16, 16), ["a dog"])


def test_the_set_of_the_benchmark_needs_no_second_file(
    detector_folder: Path, clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cats(monkeypatch, 1)
    monkeypatch.setenv("CALIBRI_CACHE", str(tmp_path))
    (file,) = SETS["geneval"]["test"]
    file.cached.parent.mkdir(parents=True)
    file.cached.write_text(json.dumps({**TASK, "prompt": "a photo of a cat"}) + "\n")
    (prompt,) = load_prompt_set("geneval")
    judged = reward(detector_folder, clip_folder)
    assert isinstance(judged, UsesMetadata)
    judged.remember({prompt.text: prompt.metadata})
    assert judged.score(pictures(1, 16, 16), [prompt.text]).tolist() == [1.0]


@pytest.mark.parametrize(
    "wrong", [{"include": []}, {"include": "cat"}, {"include": [{"class": "unicorn", "count": 1}]}]
)
def test_tasks_of_another_form_are_refused(
    detector_folder: Path, clip_folder: Path, wrong: dict[str, object]
) -> None:
    with pytest.raises(RewardError, match="'a cat' is no task of GenEval"):
        reward(detector_folder, clip_folder).remember({"a cat": {**TASK, **wrong}})

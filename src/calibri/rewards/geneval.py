"""GenEval with a detector of transformers: a variant, not comparable with published tables."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPConfig

from calibri.errors import RewardError
from calibri.rewards.clip import CLIP_L14, embed_images, embed_texts, load_clip, vit_l14
from calibri.rewards.geneval_rules import (
    COLORS,
    Detection,
    Task,
    faults,
    grade,
    parse_task,
    read_tasks,
    select,
)
from calibri.rewards.images import ROUND, clip_pixels, to_pil
from calibri.rewards.mask2former import detect, load_detector
from calibri.rewards.pretrained import load_tokenizer
from calibri.rewards.reward import ModelReward, RewardInfo
from calibri.rewards.weights import Checkpoint

DEFAULT = Checkpoint("facebook/mask2former-swin-small-coco-instance")
BACKGROUND = (0x99, 0x99, 0x99)
TEMPLATES = (
    "a photo of a {color} {name}",
    "a photo of a {color}-colored {name}",
    "a photo of a {color} object",
)


def crop_object(image: Image.Image, detection: Detection) -> Image.Image:
    """Cut an object out: grey where its mask is not, then its box."""
    if detection.mask is not None:
        mask = Image.fromarray(detection.mask.numpy())
        image = Image.composite(image, Image.new("RGB", image.size, BACKGROUND), mask)
    left, top, right, bottom = (round(edge) for edge in detection.box)
    return image.crop((left, top, right, bottom))


class _GenEval(nn.Module):
    def __init__(self, detector: nn.Module, clip: nn.Module) -> None:
        super().__init__()
        self.detector = detector
        self.clip = clip


class GenEval(ModelReward):
    """1 if an image shows all objects, numbers, colours and positions asked for, else 0.

    Args:
        checkpoint: detector, a Mask2Former for COCO instances.
        metadata: the benchmark's ``evaluation_metadata.jsonl``, or tasks by prompt, for prompts
            that come without metadata of their own.
        clip: of the CLIP ViT-L/14 that names colours, with its tokenizer.
        config: makes the CLIP's architecture.
        **options: ``device``, ``dtype`` and ``batch_size``, as for every reward with a network.
    """

    def __init__(
        self,
        checkpoint: Checkpoint = DEFAULT,
        *,
        metadata: Path | str | Mapping[str, Task] | None = None,
        clip: Checkpoint = CLIP_L14,
        config: Callable[[], CLIPConfig] = vit_l14,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.checkpoint = checkpoint
        self.clip = clip
        self.config = config()
        self._metadata = metadata
        self._remembered: dict[str, Task] = {}
        self._tokenizer: Any = None
        self._classifiers: dict[str, Tensor] = {}
        self.info = RewardInfo(
            name="geneval",
            variant=f"geneval (hf): {checkpoint}, colours by {clip}; not the published detector",
            range=(0.0, 1.0),
            unit="1 if correct; the benchmark's figure is the mean of its six tasks' means",
            kind="corpus",
            license="see its card",
        )

    def load(self) -> nn.Module:
        """Build the networks and read their weights.

        Raises:
            RewardError: the weights cannot be had or do not fit.
        """
        return _GenEval(load_detector(self.checkpoint), load_clip(self.config, self.clip))

    def remember(self, metadata: Mapping[str, Mapping[str, Any]]) -> None:
        """Take note of the tasks of prompts; the option ``metadata`` wins over them.

        Args:
            metadata: text of a prompt to its record of the benchmark; records of anything else are
                left alone.

        Raises:
            RewardError: a record has a tag and objects, and is no task of GenEval.
        """
        for prompt, record in metadata.items():
            if {"tag", "include"} <= record.keys():
                self._remembered[prompt] = _task_of(prompt, record)

    def _task(self, prompt: str) -> Task:
        task = self._given.get(prompt) or self._remembered.get(prompt)
        if task is None:
            raise RewardError(
                f"Reward '{self.info.name}' does not know what the prompt {prompt[:80]!r} asks "
                "for. Give GenEval's prompts (--prompts geneval), others in a .jsonl file of the "
                "same form, or the benchmark's evaluation_metadata.jsonl as the option 'metadata'."
            )
        return task

    @functools.cached_property
    def _given(self) -> Mapping[str, Task]:
        """Tasks of the option ``metadata``, read when they are first needed."""
        if isinstance(self._metadata, str | Path):
            return read_tasks(Path(self._metadata))
        return self._metadata or {}

    def score_batch(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score one batch: uint8 (N, 3, H, W) and N prompts of the metadata to 0 or 1 (N,).

        Raises:
            RewardError: a prompt has no task.
        """
        tasks = [self._task(prompt) for prompt in prompts]
        correct = [not self.explain(x, task) for x, task in zip(images, tasks, strict=True)]
        return torch.tensor(correct).float()

    def explain(self, image: Tensor, task: Task) -> list[str]:
        """Say what is wrong with uint8 (3, H, W), in words; nothing when it is right."""
        picture = to_pil(image)
        found = self.found(image, task)
        return list(faults(task, found, lambda objects: self.colors(picture, objects)))

    def found(self, image: Tensor, task: Task) -> dict[str, list[Detection]]:
        """Detect what a task looks at in uint8 (3, H, W): by class, best first."""
        model: Any = self.model
        return select(detect(model.detector, image, self.device, self.dtype), task.tag)

    def colors(self, image: Image.Image, objects: Sequence[Detection]) -> list[str]:
        """Name the colours of objects of one class, by CLIP on their crops."""
        model: Any = self.model
        crops = [crop_object(image, detection) for detection in objects]
        size = self.config.vision_config.image_size
        pixels = torch.cat([clip_pixels(_as_tensor(crop), size, ROUND) for crop in crops])
        embeddings = embed_images(model.clip, pixels.to(self.device, self.dtype))
        best = (embeddings @ self._classifier(objects[0].name).T).argmax(-1)
        return [COLORS[index] for index in best.tolist()]

    def _classifier(self, name: str) -> Tensor:
        """One unit vector a colour: the mean over templates of unit embeddings."""
        if name not in self._classifiers:
            if self._tokenizer is None:
                self._tokenizer = load_tokenizer(self.clip)
            texts = [t.format(color=color, name=name) for color in COLORS for t in TEMPLATES]
            model: Any = self.model
            embeddings = embed_texts(model.clip, self._tokenizer, texts, self.device)
            means = embeddings.view(len(COLORS), len(TEMPLATES), -1).mean(1)
            self._classifiers[name] = functional.normalize(means, dim=-1)
        return self._classifiers[name]


class GenEvalSoft(GenEval):
    """How far an image shows what is asked for, from 0 to 1: graded, for a search.

    Args:
        checkpoint: detector, a Mask2Former for COCO instances.
        **options: as for ``GenEval``.
    """

    def __init__(self, checkpoint: Checkpoint = DEFAULT, **options: Any) -> None:
        super().__init__(checkpoint, **options)
        self.info = replace(
            self.info,
            name="geneval-soft",
            variant=f"graded, {self.info.variant}",
            unit="mean over numbers, colours and positions of how nearly they are met",
            kind="pointwise",
        )

    def score_batch(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score one batch: uint8 (N, 3, H, W) and N prompts of the metadata to grades (N,).

        Raises:
            RewardError: a prompt has no task.
        """
        tasks = [self._task(prompt) for prompt in prompts]
        return torch.tensor([self._grade(x, task) for x, task in zip(images, tasks, strict=True)])

    def _grade(self, image: Tensor, task: Task) -> float:
        picture = to_pil(image)
        found = self.found(image, task)
        return grade(task, found, lambda objects: self.colors(picture, objects))


def _task_of(prompt: str, record: Mapping[str, Any]) -> Task:
    try:
        return parse_task(record)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RewardError(
            f"The metadata of the prompt {prompt[:80]!r} is no task of GenEval ({error}). Correct "
            "it, or use another reward."
        ) from error


def _as_tensor(image: Image.Image) -> Tensor:
    width, height = image.size
    flat = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return flat.view(1, height, width, 3).permute(0, 3, 1, 2)

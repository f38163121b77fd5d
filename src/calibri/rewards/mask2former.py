"""Mask2Former as an instance detector, with post-processing of our own (mmdet's, not the Hub's).

The library's own post-processing goes through a square of 384 pixels and lets masks overwrite each
other. Its class with a head needs scipy, for a loss we do not use; we add the head ourselves.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Mask2FormerModel

from calibri.errors import RewardError
from calibri.rewards.clip import WEIGHTS_FILE
from calibri.rewards.geneval_rules import NAMES, THRESHOLD, Detection
from calibri.rewards.images import BILINEAR, IMAGENET_MEAN, IMAGENET_STD, normalise
from calibri.rewards.pretrained import load_pretrained
from calibri.rewards.resizing import resize
from calibri.rewards.weights import Checkpoint, load_strict, read_tensors

SHORT_SIDE, LONG_SIDE = 800, 1333
DIVISOR = 32
TOP = 100

_HEAD = "class_predictor."


class Detector(nn.Module):
    """Mask2Former's queries, each with a class and a mask."""

    def __init__(self, model: nn.Module, width: int, num_classes: int) -> None:
        super().__init__()
        self.model = model
        self.class_predictor = nn.Linear(width, num_classes + 1)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """float (1, 3, H, W) to class logits (Q, C + 1) and mask logits (Q, H / 4, W / 4)."""
        output = self.model(pixels, output_hidden_states=True)
        states = output.transformer_decoder_intermediate_states[-1].transpose(0, 1)
        return self.class_predictor(states)[0].float(), output.masks_queries_logits[-1][0].float()


def load_detector(checkpoint: Checkpoint) -> Detector:
    """Load a Mask2Former for COCO's instances.

    Raises:
        RewardError: the weights cannot be had, do not fit, or are for other classes.
    """
    model: Any = load_pretrained(Mask2FormerModel, checkpoint, (_HEAD, "criterion."))
    config = model.config
    if config.num_labels != len(NAMES):
        raise RewardError(
            f"The detector of '{checkpoint}' knows {config.num_labels} classes, not COCO's "
            f"{len(NAMES)}. Use a Mask2Former for COCO instances."
        )
    detector = Detector(model, config.hidden_dim, config.num_labels)
    tensors = read_tensors(checkpoint.file(WEIGHTS_FILE))
    head = {key: value for key, value in tensors.items() if key.startswith(_HEAD)}
    load_strict(detector.class_predictor, head, lambda key: key.removeprefix(_HEAD))
    return detector


def resized_size(height: int, width: int) -> tuple[int, int]:
    """Height and width with the short side at 800, unless the long one would exceed 1333."""
    scale = min(SHORT_SIDE / min(height, width), LONG_SIDE / max(height, width))
    return int(height * scale + 0.5), int(width * scale + 0.5)


def detector_pixels(image: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """Preprocess uint8 (3, H, W): float (1, 3, H', W') and the size without the padding."""
    height, width = resized_size(*image.shape[-2:])
    resized = resize(image[None], (height, width), BILINEAR)
    pixels = normalise(resized, IMAGENET_MEAN, IMAGENET_STD)
    padded = functional.pad(pixels, (0, -width % DIVISOR, 0, -height % DIVISOR))
    return padded, (height, width)


def upsample(masks: Tensor, padded: tuple[int, int], inner: tuple[int, int], size: Any) -> Tensor:
    """Mask logits (Q, h, w) to the padded size, without the padding, to the image's: (Q, H, W)."""
    full = functional.interpolate(masks[None], padded, mode="bilinear")
    cut = full[..., : inner[0], : inner[1]]
    return functional.interpolate(cut, tuple(size), mode="bilinear")[0]


def instances(classes: Tensor, masks: Tensor) -> list[Detection]:
    """The best 100 pairs of query and class, as detections above GenEval's lower threshold.

    Args:
        classes: logits (Q, C + 1); the last class is "no object".
        masks: logits (Q, H, W) in the image's size.

    Returns:
        Detections scored by the probability of the class times the mean probability in the mask.
    """
    probabilities = classes.softmax(-1)[:, :-1]
    num_classes = probabilities.shape[1]
    best = probabilities.flatten().topk(min(TOP, probabilities.numel()))
    found = []
    for score, place in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        query, label = divmod(place, num_classes)
        detection = _detection(NAMES[label], score, masks[query]) if score > THRESHOLD else None
        if detection is not None and detection.score > THRESHOLD:
            found.append(detection)
    return found


def _detection(name: str, probability: float, logits: Tensor) -> Detection | None:
    mask = logits > 0
    if not mask.any():
        return None
    confidence = float(logits[mask].sigmoid().mean())
    rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
    box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    return Detection(name, probability * confidence, box, mask.cpu())


def detect(detector: nn.Module, image: Tensor, device: torch.device, dtype: torch.dtype) -> Any:
    """Detect objects in uint8 (3, H, W): a list of detections, masks in the image's size."""
    pixels, inner = detector_pixels(image)
    classes, masks = detector(pixels.to(device, dtype))
    padded = (pixels.shape[-2], pixels.shape[-1])
    return instances(classes, upsample(masks, padded, inner, image.shape[-2:]))

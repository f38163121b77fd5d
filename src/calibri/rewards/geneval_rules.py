"""GenEval's rules: whether detected objects are what a prompt asks for (Ghosh et al., 2023)."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from calibri.errors import RewardError

# COCO's 80 classes in their order, by the names that GenEval's prompts use.
_NAMES = (
    "person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, "
    "fire hydrant, stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, "
    "bear, zebra, giraffe, backpack, umbrella, handbag, tie, suitcase, frisbee, skis, snowboard, "
    "sports ball, kite, baseball bat, baseball glove, skateboard, surfboard, tennis racket, "
    "bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, "
    "broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, "
    "dining table, toilet, tv, laptop, computer mouse, tv remote, computer keyboard, cell phone, "
    "microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors, teddy bear, "
    "hair drier, toothbrush"
)
NAMES = tuple(_NAMES.split(", "))
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RELATIONS = ("left of", "right of", "above", "below")

THRESHOLD, COUNTING_THRESHOLD = 0.3, 0.9
MAX_OBJECTS = 16
MARGIN = 0.1


@dataclass(frozen=True, eq=False)
class Detection:
    """One detected object.

    Attributes:
        name: its class.
        score: confidence in [0, 1].
        box: left, top, right and bottom, in pixels; right and bottom are exclusive.
        mask: bool (H, W), or None.
    """

    name: str
    score: float
    box: tuple[float, float, float, float]
    mask: Tensor | None = None


@dataclass(frozen=True)
class Requirement:
    """``count`` objects of a class, perhaps of a colour, perhaps beside an earlier requirement's.

    Attributes:
        name: class.
        count: at least so many (or, excluded, fewer).
        color: of all of them.
        position: relation, and the index of the earlier requirement.
    """

    name: str
    count: int
    color: str | None = None
    position: tuple[str, int] | None = None


@dataclass(frozen=True)
class Task:
    """What one prompt asks for.

    Attributes:
        tag: the benchmark's name of the kind of task.
        include: must all hold.
        exclude: none may hold.
    """

    tag: str
    include: tuple[Requirement, ...]
    exclude: tuple[Requirement, ...] = ()


# Colours of some objects of one class.
ColorsOf = Callable[[Sequence[Detection]], Sequence[str]]


def read_tasks(path: Path) -> dict[str, Task]:
    """Read the benchmark's JSON lines with ``prompt``, ``tag``, ``include`` and ``exclude``.

    Raises:
        RewardError: the file is missing or malformed; names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise RewardError(f"Cannot read GenEval's metadata from '{path}': {error}.") from error
    tasks: dict[str, Task] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            tasks[record["prompt"].strip()] = parse_task(record)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RewardError(
                f"'{path}', line {number}: not a task of GenEval ({error}). Correct the line."
            ) from error
    return tasks


def parse_task(record: Mapping[str, Any]) -> Task:
    """Check and parse one record of the metadata.

    Raises:
        ValueError: a class, colour, relation or number is not the benchmark's.
        KeyError, TypeError: a part is missing or of another kind.
    """
    include = tuple(_requirement(part, place) for place, part in enumerate(record["include"]))
    exclude = tuple(_requirement(part, 0) for part in record.get("exclude", ()))
    if not include:
        raise ValueError("nothing is included")
    return Task(str(record["tag"]), include, exclude)


def _requirement(part: Mapping[str, Any], place: int) -> Requirement:
    name, count, color = part["class"], part["count"], part.get("color")
    if name not in NAMES or not (color is None or color in COLORS):
        raise ValueError(f"unknown class or colour: {name!r}, {color!r}")
    if type(count) is not int or count < 1:
        raise ValueError(f"count is {count!r}")
    position = part.get("position")
    if position is None:
        return Requirement(name, count, color)
    relation, target = position
    if relation not in RELATIONS or type(target) is not int or not 0 <= target < place:
        raise ValueError(f"position is {position!r}")
    return Requirement(name, count, color, (relation, target))


def select(detections: Sequence[Detection], tag: str) -> dict[str, list[Detection]]:
    """Keep the confident detections: by class, best first, at most 16.

    Counting needs more confidence, because one false detection makes a count wrong.
    """
    threshold = COUNTING_THRESHOLD if tag == "counting" else THRESHOLD
    found: dict[str, list[Detection]] = {}
    for detection in sorted(detections, key=lambda x: -x.score):
        same = found.setdefault(detection.name, [])
        if detection.score > threshold and len(same) < MAX_OBJECTS:
            same.append(detection)
    return {name: same for name, same in found.items() if same}


def relations(first: Detection, second: Detection) -> set[str]:
    """Where the first object is relative to the second; none when they are too close to tell.

    A tenth of the summed extents is taken off each offset of the centres; what is left counts if it
    is more than half the distance of the centres.
    """
    offsets, rests = [], []
    for low, high in ((0, 2), (1, 3)):
        offset = (first.box[low] + first.box[high] - second.box[low] - second.box[high]) / 2
        extents = sum(abs(x.box[high] - x.box[low]) for x in (first, second))
        offsets.append(offset)
        rests.append(math.copysign(max(abs(offset) - MARGIN * extents, 0.0), offset))
    if max(map(abs, rests)) < 1e-3:
        return set()
    right, down = (rest / math.hypot(*offsets) for rest in rests)
    return {
        name
        for name, amount in zip(RELATIONS, (-right, right, -down, down), strict=True)
        if amount > 0.5
    }


def faults(
    task: Task, found: Mapping[str, Sequence[Detection]], colors_of: ColorsOf
) -> Iterator[str]:
    """Say in which respects confident detections are not what the task asks for.

    Args:
        task: the task.
        found: detections by class, best first; only the first ``count`` of a class are looked at.
        colors_of: names the colours of objects of one class; asked only when the count is right.
    """
    matched: list[Sequence[Detection] | None] = []
    for need in task.include:
        objects = list(found.get(need.name, ()))[: need.count]
        fault = _fault(need, objects, matched, colors_of)
        matched.append(None if fault else objects)
        if fault:
            yield fault
    for excess in task.exclude:
        count = len(found.get(excess.name, ()))
        if count >= excess.count:
            yield f"expected fewer than {excess.count} {excess.name}, found {count}"


def _fault(
    need: Requirement,
    objects: Sequence[Detection],
    matched: Sequence[Sequence[Detection] | None],
    colors_of: ColorsOf,
) -> str | None:
    if len(objects) < need.count:
        return f"expected {need.count} {need.name}, found {len(objects)}"
    if need.color is not None:
        colors = list(colors_of(objects))
        if colors.count(need.color) < need.count:
            return f"expected {need.count} {need.color} {need.name}, found {', '.join(colors)}"
    if need.position is None:
        return None
    relation, target = need.position
    if matched[target] is None:
        return f"nothing for {need.name} to be {relation}"
    if _is_placed(need.position, objects, matched):
        return None
    return f"expected {need.name} {relation} the other"


def _is_placed(
    position: tuple[str, int],
    objects: Sequence[Detection],
    matched: Sequence[Sequence[Detection] | None],
) -> bool:
    relation, target = position
    others = matched[target]
    return others is not None and all(relation in relations(x, y) for x in objects for y in others)


def grade(task: Task, found: Mapping[str, Sequence[Detection]], colors_of: ColorsOf) -> float:
    """Say how far confident detections are what the task asks for: a reward, not the benchmark.

    The mean over parts: the number of each class, which must be met exactly, and its colour and its
    position where they are asked for. A number or colour counts ``1 - |seen - asked| / asked``, at
    least 0; a position all or nothing. Colour and position count 0 where the number is wrong.

    Args:
        task: the task; what it excludes is left to the exact numbers.
        found: detections by class.
        colors_of: names the colours of objects of one class; asked only when the number is right.

    Returns:
        From 0 to 1.
    """
    parts: list[float] = []
    matched: list[Sequence[Detection] | None] = []
    for need in task.include:
        objects = found.get(need.name, ())
        parts.append(_nearness(len(objects), need.count))
        holds = len(objects) == need.count
        if need.color is not None:
            seen = list(colors_of(objects)).count(need.color) if holds else 0
            parts.append(_nearness(seen, need.count))
            holds = holds and seen == need.count
        if need.position is not None:
            holds = holds and _is_placed(need.position, objects, matched)
            parts.append(float(holds))
        matched.append(objects if holds else None)
    return sum(parts) / len(parts)


def _nearness(seen: int, asked: int) -> float:
    return max(0.0, 1 - abs(seen - asked) / asked)

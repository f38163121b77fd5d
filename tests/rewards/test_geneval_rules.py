from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from calibri.errors import RewardError
from calibri.rewards.geneval_rules import (
    COLORS,
    NAMES,
    RELATIONS,
    Detection,
    Requirement,
    Task,
    faults,
    grade,
    parse_task,
    read_tasks,
    relations,
    select,
)


def thing(
    name: str, x: float = 0.0, y: float = 0.0, size: float = 10.0, score: float = 0.95
) -> Detection:
    half = size / 2
    return Detection(name, score, (x - half, y - half, x + half, y + half))


def grouped(*detections: Detection) -> dict[str, list[Detection]]:
    found: dict[str, list[Detection]] = {}
    for detection in detections:
        found.setdefault(detection.name, []).append(detection)
    return found


def no_colors(objects: Sequence[Detection]) -> list[str]:
    raise AssertionError("no colour was asked for")


def right(task: Task, *detections: Detection, colors: object = no_colors) -> bool:
    return not list(faults(task, grouped(*detections), colors))


def test_the_classes_are_cocos_in_order() -> None:
    assert len(NAMES) == len(set(NAMES)) == 80
    assert [NAMES.index(name) for name in ("person", "dog", "computer mouse", "toothbrush")] == [
        0,
        16,
        64,
        79,
    ]


@pytest.mark.parametrize("wanted", range(1, 5))
@pytest.mark.parametrize("present", range(6))
def test_counting_needs_exactly_the_number(wanted: int, present: int) -> None:
    task = Task("counting", (Requirement("cat", wanted),), (Requirement("cat", wanted + 1),))
    assert right(task, *[thing("cat")] * present) == (present == wanted)


@pytest.mark.parametrize("present", range(4))
def test_including_needs_at_least_the_number(present: int) -> None:
    task = Task("single_object", (Requirement("cat", 2),))
    assert right(task, *[thing("cat")] * present, thing("dog")) == (present >= 2)


@pytest.mark.parametrize("present", list(itertools.product([False, True], repeat=3)))
def test_every_object_asked_for_must_be_there(present: tuple[bool, ...]) -> None:
    names = ("cat", "dog", "bus")
    task = Task("two_object", tuple(Requirement(name, 1) for name in names))
    shown = [thing(name) for name, there in zip(names, present, strict=True) if there]
    assert right(task, *shown) == all(present)


@pytest.mark.parametrize("seen", list(itertools.product(["red", "blue"], repeat=3)))
@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_best_objects_must_have_the_colour(seen: tuple[str, ...], count: int) -> None:
    cats = [thing("cat", x=index) for index in range(3)]

    def colors(objects: Sequence[Detection]) -> list[str]:
        return [seen[cats.index(x)] for x in objects]

    task = Task("colors", (Requirement("cat", count, "red"),))
    # Only the `count` best are looked at, and all of them must be red.
    assert right(task, *cats, colors=colors) == all(color == "red" for color in seen[:count])


def test_colours_are_not_asked_when_the_number_is_wrong() -> None:
    task = Task("colors", (Requirement("cat", 2, "red"),))
    assert not right(task, thing("cat"))


# The angle of the first object around the second, y downwards: half the distance is at 60 degrees.
@pytest.mark.parametrize("degrees", range(0, 360, 15))
def test_directions_overlap_between_the_axes(degrees: int) -> None:
    angle = math.radians(degrees)
    first, second = thing("a", 1000 * math.cos(angle), 1000 * math.sin(angle), 1e-3), thing("b")
    small = thing("b", size=1e-3)
    expected = {
        name
        for name, amount in {
            "right of": math.cos(angle),
            "left of": -math.cos(angle),
            "below": math.sin(angle),
            "above": -math.sin(angle),
        }.items()
        if amount > 0.5 + 1e-6
    }
    if degrees % 30 or degrees % 60 == 30 or degrees % 90 == 0:
        assert relations(first, small) == expected
    assert relations(first, second) <= expected


def test_objects_too_close_for_their_sizes_have_no_relation() -> None:
    # Sizes of 10 take 0.1 * 20 = 2 off the offset.
    assert relations(thing("a", 1.9), thing("b")) == set()
    assert relations(thing("a", 3.9), thing("b")) == set()  # (3.9 - 2) / 3.9 is below a half
    assert relations(thing("a", 4.1), thing("b")) == {"right of"}
    assert relations(thing("a", -4.1), thing("b")) == {"left of"}
    assert relations(thing("a", 0, 4.1), thing("b")) == {"below"}
    assert relations(thing("a", 0, -4.1), thing("b")) == {"above"}
    assert relations(thing("a"), thing("a")) == set()


def position_task(relation: str) -> Task:
    return Task("position", (Requirement("dog", 1), Requirement("cat", 1, None, (relation, 0))))


@pytest.mark.parametrize("relation", RELATIONS)
@pytest.mark.parametrize("place", [(50, 0), (-50, 0), (0, 50), (0, -50)])
def test_positions_are_those_of_the_second_object_to_the_first(
    relation: str, place: tuple[int, int]
) -> None:
    where = {(50, 0): "right of", (-50, 0): "left of", (0, 50): "below", (0, -50): "above"}[place]
    shown = right(position_task(relation), thing("dog"), thing("cat", *place))
    assert shown == (relation == where)


def test_a_position_without_the_other_object_is_wrong() -> None:
    assert not right(position_task("left of"), thing("cat", -50))
    assert not right(position_task("left of"), thing("dog"))


def test_all_pairs_must_be_in_the_position() -> None:
    task = Task("position", (Requirement("dog", 2), Requirement("cat", 1, None, ("left of", 0))))
    assert right(task, thing("cat", -50), thing("dog"), thing("dog", 20))
    assert not right(task, thing("cat", -50), thing("dog"), thing("dog", -120))


def test_a_wrong_colour_leaves_nothing_to_be_beside() -> None:
    task = Task(
        "color_attr", (Requirement("dog", 1, "red"), Requirement("cat", 1, None, ("left of", 0)))
    )
    found = grouped(thing("dog"), thing("cat", -50))
    assert list(faults(task, found, lambda objects: ["blue"])) == [
        "expected 1 red dog, found blue",
        "nothing for cat to be left of",
    ]
    assert not list(faults(task, found, lambda objects: ["red"]))


def test_excluded_objects_count_whatever_else_is_right() -> None:
    task = Task("counting", (Requirement("cat", 1),), (Requirement("dog", 1),))
    assert right(task, thing("cat"))
    assert not right(task, thing("cat"), thing("dog"))


def verdict(task: Task, found: dict[str, list[Detection]], color: dict[Detection, str]) -> bool:
    """The rules again, from the sentences of the paper: one boolean per clause, nothing shared."""
    clauses = []
    holds: list[bool] = []
    for need in task.include:
        best = found.get(need.name, [])[: need.count]
        good = len(best) == need.count
        good = good and (need.color is None or all(color[x] == need.color for x in best))
        if good and need.position is not None:
            relation, target = need.position
            other = task.include[target]
            pairs = itertools.product(best, found.get(other.name, [])[: other.count])
            good = holds[target] and all(beside(relation, a.box, b.box) for a, b in pairs)
        holds.append(good)
        clauses.append(good)
    clauses += [len(found.get(x.name, [])) < x.count for x in task.exclude]
    return all(clauses)


def beside(relation: str, a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    axis = 0 if relation in ("left of", "right of") else 1
    sign = 1 if relation in ("right of", "below") else -1
    centres = [((a[i] + a[i + 2]) / 2, (b[i] + b[i + 2]) / 2) for i in (0, 1)]
    distance = math.dist(*zip(*centres, strict=True))
    gap = sign * (centres[axis][0] - centres[axis][1])
    slack = 0.1 * (a[axis + 2] - a[axis] + b[axis + 2] - b[axis])
    return gap - slack >= 1e-3 and gap - slack > 0.5 * distance


def test_thousands_of_random_scenes_agree_with_the_rules_written_again() -> None:
    rng = random.Random(0)
    outcomes = {False: 0, True: 0}
    for _ in range(4000):
        names = rng.sample(["cat", "dog", "bus"], 2)
        first = Requirement(names[0], rng.randint(1, 2), rng.choice([None, "red"]))
        position = rng.choice([None, (rng.choice(RELATIONS), 0)])
        second = Requirement(names[1], 1, rng.choice([None, "red"]), position)
        exclude = (Requirement(names[0], 3),) if rng.random() < 0.5 else ()
        task = Task("any", (first, second), exclude)
        shown = [
            thing(name, rng.uniform(-40, 40), rng.uniform(-40, 40), rng.uniform(1, 30))
            for name in names
            for _ in range(rng.choice([0, 1, 1, 2, 2, 3]))
        ]
        color = {x: rng.choice(["red", "red", "blue"]) for x in shown}
        found = grouped(*shown)
        got = not list(faults(task, found, lambda objects, c=color: [c[x] for x in objects]))
        assert got == verdict(task, found, color)
        outcomes[got] += 1
    assert min(outcomes.values()) > 400


def test_only_confident_detections_are_kept_best_first() -> None:
    scores = [0.5, 0.3, 0.31, 0.9, 0.91]
    detections = [thing("cat", score=score) for score in scores] + [thing("dog", score=0.2)]
    kept = select(detections, "colors")
    assert {n: [x.score for x in same] for n, same in kept.items()} == {
        "cat": [0.91, 0.9, 0.5, 0.31]
    }
    assert [x.score for x in select(detections, "counting")["cat"]] == [0.91]


def test_at_most_sixteen_objects_of_a_class_are_kept() -> None:
    detections = [thing("cat", score=0.5 + index / 100) for index in range(20)]
    kept = select([*detections, thing("dog")], "single_object")
    assert [x.score for x in kept["cat"]] == sorted((x.score for x in detections[4:]), reverse=True)
    assert len(kept["dog"]) == 1


RECORD = {
    "tag": "position",
    "include": [
        {"class": "dog", "count": 1},
        {"class": "tv remote", "count": 2, "color": "red", "position": ["left of", 0]},
    ],
    "exclude": [{"class": "cat", "count": 1}],
    "prompt": "a photo of two red tv remotes left of a dog",
}


def test_a_record_of_the_benchmark_is_read() -> None:
    assert parse_task(RECORD) == Task(
        "position",
        (Requirement("dog", 1), Requirement("tv remote", 2, "red", ("left of", 0))),
        (Requirement("cat", 1),),
    )


def broken(**changes: object) -> str:
    record = json.loads(json.dumps(RECORD))
    second = record["include"][1]
    for key, value in changes.items():
        (record if key in record else second)[key] = value
    return json.dumps(record)


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        "{}",
        broken(include=[]),
        broken(include=7),
        broken(**{"class": "unicorn"}),
        broken(color="mauve"),
        broken(count=0),
        broken(count=True),
        broken(count="2"),
        broken(position=["near", 0]),
        broken(position=["left of", 1]),
        broken(position=["left of", -1]),
        broken(position=["left of"]),
        broken(prompt=3),
    ],
)
def test_a_malformed_line_is_refused_and_named(line: str, tmp_path: Path) -> None:
    path = tmp_path / "metadata.jsonl"
    path.write_text(json.dumps(RECORD) + "\n\n" + line + "\n")
    with pytest.raises(RewardError, match="line 3"):
        read_tasks(path)


def test_a_file_of_tasks_is_read_by_prompt(tmp_path: Path) -> None:
    path = tmp_path / "metadata.jsonl"
    path.write_text(json.dumps(RECORD) + "\n")
    assert read_tasks(path) == {RECORD["prompt"]: parse_task(RECORD)}
    with pytest.raises(RewardError, match="nowhere"):
        read_tasks(tmp_path / "nowhere.jsonl")


def test_the_ten_colours() -> None:
    assert len(set(COLORS)) == 10


def graded(task: Task, found: dict[str, list[Detection]], color: dict[Detection, str]) -> float:
    """The grades again, clause by clause and without looking back."""

    def number(need: Requirement) -> bool:
        return len(found.get(need.name, [])) == need.count

    def hits(need: Requirement) -> int:
        same = [x for x in found.get(need.name, []) if color[x] == need.color]
        return len(same) if number(need) else 0

    def holds(place: int) -> bool:
        need = task.include[place]
        return number(need) and (need.color is None or hits(need) == need.count) and placed(place)

    def placed(place: int) -> bool:
        need = task.include[place]
        if need.position is None:
            return True
        relation, target = need.position
        pairs = itertools.product(found[need.name], found.get(task.include[target].name, []))
        return holds(target) and all(beside(relation, a.box, b.box) for a, b in pairs)

    parts: list[float] = []
    for place, need in enumerate(task.include):
        seen = len(found.get(need.name, []))
        parts.append(max(0.0, 1 - abs(seen - need.count) / need.count))
        if need.color is not None:
            parts.append(hits(need) / need.count)
        if need.position is not None:
            parts.append(1.0 if holds(place) else 0.0)
    return sum(parts) / len(parts)


@pytest.mark.parametrize("seed", range(400))
def test_grades_of_random_scenes(seed: int) -> None:
    rng = random.Random(seed)
    names = ("cat", "dog")
    things = [
        thing(rng.choice(names), rng.uniform(-40, 40), rng.uniform(-40, 40))
        for _ in range(rng.randrange(6))
    ]
    color = {x: rng.choice(("red", "blue")) for x in things}
    colored = rng.choice(("red", None))
    position = (rng.choice(RELATIONS), 0) if rng.random() < 0.7 else None
    task = Task(
        "made up",
        (
            Requirement("cat", rng.randint(1, 2), colored),
            Requirement("dog", rng.randint(1, 2), rng.choice(("blue", None)), position),
        ),
    )
    found = grouped(*things)
    value = grade(task, found, lambda objects: [color[x] for x in objects])
    assert value == pytest.approx(graded(task, found, color))
    assert 0 <= value <= 1
    if value == 1:
        assert not list(faults(task, found, lambda objects: [color[x] for x in objects]))


@pytest.mark.parametrize(
    ("seen", "asked", "expected"), [(0, 1, 0), (1, 1, 1), (5, 1, 0), (3, 2, 0.5), (3, 4, 0.75)]
)
def test_a_number_counts_by_how_near_it_is(seen: int, asked: int, expected: float) -> None:
    task = Task("counting", (Requirement("cat", asked),))
    assert grade(task, grouped(*[thing("cat")] * seen), no_colors) == expected

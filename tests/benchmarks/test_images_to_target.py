import json

import pytest
from benchmarks.images_to_target import fractions, geometric_mean, reached, thinned

from benchmarks import images_to_target


def curve(*rewards):
    return [{"images": 100.0 * (i + 1), "r": reward} for i, reward in enumerate(rewards)]


def record(ours, shipped, mean, tail):
    return {
        "objective": "r",
        "ours": {"images": 900.0, "curve": curve(*ours)},
        "reference": {
            "images": 1000.0,
            "validation_images": 250.0,
            "shipped": {"r": shipped},
            "mean": {"r": mean},
            "tail": {"r": tail},
            "curve": curve(0.1, mean, mean + 0.1, 0.2, mean),
        },
    }


def test_a_target_is_reached_where_the_curve_stays():
    assert reached(curve(0, 5, 3, 6, 7, 2), "r", 5) == 400.0
    assert reached(curve(0, 1, 6), "r", 5) == 300.0
    assert reached(curve(6, 7), "r", 5) == 100.0
    assert reached(curve(0, 6, 1), "r", 5) is None


def test_images_are_counted_against_the_whole_budget_and_the_first_time():
    found = fractions(record([0.1, 0.3, 0.6, 0.9, 1.2], 0.25, 0.5, 1.0))
    assert found["shipped"]["of_budget"] == pytest.approx(200 / 1250)
    assert found["mean"]["of_budget"] == pytest.approx(300 / 1000)
    assert found["mean"]["of_first"] == pytest.approx(300 / 200)
    assert found["tail"]["of_budget"] == pytest.approx(500 / 1000)


def test_a_target_that_is_not_reached_is_never_a_saving():
    found = fractions(record([0.1, 0.2], 0.1, 0.5, 0.5))
    assert found["mean"]["ours"] is None
    assert found["mean"]["of_budget"] == 1.0
    assert found["mean"]["of_first"] == pytest.approx(900 / 200)


def test_points_are_thinned_from_the_end():
    points = [(i, None) for i in range(7)]
    assert [i for i, _ in thinned(points, 3)] == [0, 3, 6]
    assert [i for i, _ in thinned(points[:6], 4)] == [1, 5]


def test_halves_and_doubles_average_to_one():
    figure = geometric_mean([0.5, 2.0, 0.25, 4.0])
    assert figure.mean == pytest.approx(1.0)
    assert 0.25 <= figure.low < 1 < figure.high <= 4.0


@pytest.mark.end_to_end
def test_the_whole_way_resumes(tmp_path, capsys):
    small = {
        "sampling.num_inference_steps": 1,
        "sampling.workers": 1,
        "search.generations": 2,
        "search.popsize": 4,
        "search.bucket_size": 2,
        "search.bucket_growth": 1,
        "search.race_keep": 1,
        "search.num_validation_prompts": 5,
        "evaluation.num_prompts": 4,
    }
    arguments = [f"--set={key}={value}" for key, value in small.items()]
    arguments += ["--generations", "2", "--every", "1", "--folder", str(tmp_path), "--seeds"]
    images_to_target.main([*arguments, "0"])
    first = json.loads((tmp_path / "images_to_target.json").read_text())
    found = first["seeds"]["0"]
    # Two generations of 4 + 1 candidates x 2 prompts; one validation of two vectors x 5 prompts.
    assert found["ours"]["images"] == 30
    assert [point["images"] for point in found["ours"]["curve"]] == [20, 30]
    assert found["reference"]["images"] == 2 * 13 * 16
    assert set(found["original"]) == {"shapes", "shapes-judge"}

    images_to_target.main([*arguments, "0", "1"])
    again = json.loads((tmp_path / "images_to_target.json").read_text())
    assert again["seeds"]["0"] == found
    assert set(again["seeds"]) == {"0", "1"}
    assert "seed 0:" not in capsys.readouterr().out.split("seed 1:")[1]

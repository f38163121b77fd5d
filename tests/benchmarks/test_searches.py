import json

from benchmarks.searches import images_to_targets, selection


def keep(folder, name, figures):
    (folder / f"{name}.json").write_text(json.dumps(figures))


def test_what_was_not_measured_is_said_with_the_command(tmp_path):
    rows = images_to_targets(tmp_path)[0] + selection(tmp_path)[0]
    commands = [row.value.partition("run ")[2] for row in rows]
    assert commands == [
        "python -m benchmarks.synthetic",
        "python -m benchmarks.images_to_target",
        "python -m benchmarks.synthetic",
    ]


def test_every_cell_counts_and_never_reached_is_the_worst(tmp_path):
    cells = {
        "a": {"fractions": [[0.1, 0, 1], [0.2, 0, 1], [None, None, None]], "chosen_lead": [0.5]},
        "b": {"fractions": [[0.3, 0, 1], [1.2, 0, 1], [0.4, 0, 1]], "chosen_lead": [0.05]},
        "c": {"fractions": [[0.2, 0, 1], [0.3, 0, 1], [0.5, 0, 1]], "chosen_lead": [-0.2]},
    }
    keep(tmp_path, "synthetic", cells)
    rows, figures = images_to_targets(tmp_path)
    values = [row.value for row in rows]
    assert values[:2] == ["0.20 (0.10 to 0.30)", "0"]
    assert values[2:4] == ["0.30 (0.20 to 1.20)", "1"]
    assert values[4:6] == ["0.50 (0.40 to inf)", "1"]
    json.dumps(figures, allow_nan=False)
    assert [row.value for row in selection(tmp_path)[0]] == ["+0.05 (-0.20 to +0.50)", "2"]


def test_seeds_of_the_shipped_pipeline_are_shown(tmp_path):
    mean = {"mean": 0.4, "low": 0.3, "high": 0.6, "n": 5}
    lines = {"mean, of_first": {"geometric_mean": mean}, "tail": {"geometric_mean": None}}
    keep(tmp_path, "images_to_target", {"summary": lines})
    rows, _ = images_to_targets(tmp_path)
    assert [row.value for row in rows][1:] == ["0.40 (0.30 to 0.60)"]

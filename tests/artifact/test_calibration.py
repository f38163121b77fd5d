from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from calibri.artifact import folder_format
from calibri.artifact.calibration import Calibration, Sampling
from calibri.coefficients.coefficients import Coefficients
from calibri.errors import CalibrationError
from calibri.results import Evaluation

Document = dict[str, Any]
FINITE = st.floats(allow_nan=False, allow_infinity=False)


def edit(folder: Path, change: Callable[[Document], object]) -> None:
    path = folder / folder_format.JSON_NAME
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


@pytest.fixture
def folder(calibration: Calibration, tmp_path: Path) -> Path:
    return calibration.save_pretrained(tmp_path / "calibration")


def test_a_saved_calibration_loads_as_it_was(calibration: Calibration, folder: Path) -> None:
    assert Calibration.from_pretrained(folder) == calibration
    assert {path.name for path in folder.iterdir()} == {
        "calibri.json",
        "calibri.safetensors",
        "README.md",
    }


@settings(max_examples=25, deadline=None)
@given(values=st.lists(FINITE, min_size=1, max_size=5), weight=FINITE, start=FINITE.filter(bool))
def test_every_finite_coefficient_survives_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, values: list[float], weight: float, start: float
) -> None:
    coefficients = Coefficients(
        granularity="block",
        scales=({f"blocks.{i}": value for i, value in enumerate(values)},),
        output_weights=(weight,),
        start_weights=(start,),
    )
    calibration = Calibration(
        calibri_version="0.1.0",
        transformer_class="T",
        base_model="a/b",
        coefficients=coefficients,
        sampling=Sampling(num_inference_steps=1, guidance_scale=1.0, dtype="float32"),
        rewards={"r": "1"},
        objective="r",
        provenance={},
    )
    folder = calibration.save_pretrained(tmp_path_factory.mktemp("calibration"))
    loaded = Calibration.from_pretrained(folder).coefficients
    assert repr(loaded) == repr(coefficients)


def test_tensors_can_be_read_without_calibri(calibration: Calibration, folder: Path) -> None:
    tensors = load_file(folder / "calibri.safetensors")
    with safe_open(folder / "calibri.safetensors", framework="numpy") as file:
        names = json.loads(file.metadata()["names.1"])
    assert {tensor.dtype for tensor in tensors.values()} == {np.dtype(np.float64)}
    member = dict(zip(names, tensors["scales.1"].tolist(), strict=True))
    assert member == calibration.coefficients.scales[1]
    assert tensors["output_weights"].tolist() == [4.7, -3.1]
    assert tensors["start_weights"].tolist() == [4.5, -3.5]


def test_the_json_file_is_written_last(calibration: Calibration, tmp_path: Path) -> None:
    in_the_way = tmp_path / folder_format.JSON_NAME
    in_the_way.mkdir()
    with pytest.raises(CalibrationError, match="directory"):
        calibration.save_pretrained(tmp_path)
    in_the_way.rmdir()
    assert sorted(os.listdir(tmp_path)) == ["README.md", "calibri.safetensors"]
    with pytest.raises(CalibrationError, match=r"calibri\.json is missing"):
        Calibration.from_pretrained(tmp_path)


def test_a_half_replaced_calibration_is_refused(calibration: Calibration, folder: Path) -> None:
    other = calibration.coefficients.model_copy(update={"output_weights": (4.7, -3.2)})
    (folder / folder_format.TENSORS_NAME).write_bytes(folder_format.tensor_bytes(other))
    with pytest.raises(CalibrationError, match="disagree"):
        Calibration.from_pretrained(folder)


@pytest.mark.parametrize("name", ["scales.0", "start_weights"])
def test_any_tensor_that_disagrees_is_refused(folder: Path, name: str) -> None:
    path = folder / folder_format.TENSORS_NAME
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    tensors[name] = np.nextafter(tensors[name], np.inf)
    save_file(tensors, path, metadata)
    with pytest.raises(CalibrationError, match="disagree"):
        Calibration.from_pretrained(folder)


def test_names_that_disagree_are_refused(folder: Path) -> None:
    path = folder / folder_format.TENSORS_NAME
    save_file(load_file(path), path, {"names.0": "[]"})
    with pytest.raises(CalibrationError, match="disagree"):
        Calibration.from_pretrained(folder)


@pytest.mark.parametrize("token", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_not_finite_are_refused(folder: Path, token: str) -> None:
    path = folder / folder_format.JSON_NAME
    path.write_text(path.read_text().replace("0.625", token))
    with pytest.raises(CalibrationError, match="not finite"):
        Calibration.from_pretrained(folder)


def test_saving_a_number_that_is_not_finite_is_refused(
    calibration: Calibration, evaluation: Evaluation, tmp_path: Path
) -> None:
    settings = [evaluation.settings[0].model_copy(update={"seconds_per_image": float("nan")})]
    broken = evaluation.model_copy(update={"settings": settings})
    with pytest.raises(CalibrationError, match="not finite"):
        calibration.model_copy(update={"evaluation": broken}).save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("version", [0, 3, "1", None])
def test_an_unknown_format_version_is_refused_by_its_number(folder: Path, version: object) -> None:
    edit(folder, lambda document: document.update(format_version=version))
    with pytest.raises(CalibrationError, match=f"format version {version!r}"):
        Calibration.from_pretrained(folder)


def with_negative_prompt(calibration: Calibration, text: str) -> Calibration:
    sampling = calibration.sampling.model_copy(update={"negative_prompt": text})
    return calibration.model_copy(update={"sampling": sampling})


def test_a_negative_prompt_is_saved_and_its_absence_is_an_empty_one(
    calibration: Calibration, tmp_path: Path
) -> None:
    made = with_negative_prompt(calibration, "ugly, \N{SNOWMAN}")
    folder = made.save_pretrained(tmp_path / "made")
    assert Calibration.from_pretrained(folder) == made
    edit(folder, lambda document: document["sampling"].pop("negative_prompt"))
    assert Calibration.from_pretrained(folder).sampling.negative_prompt == ""


def test_an_empty_negative_prompt_is_written_as_before_there_was_one(
    calibration: Calibration, folder: Path
) -> None:
    written = json.loads((folder / "calibri.json").read_text())["sampling"]
    assert written.keys() == Sampling.model_fields.keys() - {"negative_prompt"}
    assert calibration.sampling.negative_prompt == ""


def test_a_folder_of_the_first_version_still_loads(calibration: Calibration, folder: Path) -> None:
    def make_old(document: Document) -> None:
        document["format_version"] = 1
        for name in ("guidance", "shift", "knots"):  # added since
            del document["coefficients"][name]

    edit(folder, make_old)
    with safe_open(folder / "calibri.safetensors", framework="numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata() | {"format_version": "1"}
    save_file(tensors, folder / "calibri.safetensors", metadata)
    loaded = Calibration.from_pretrained(folder)
    assert loaded.coefficients == calibration.coefficients
    loaded.save_pretrained(folder)
    assert Calibration.from_pretrained(folder) == calibration


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.pop("sampling"), "sampling: Field required"),
        (lambda d: d.update(surprise=1), "surprise: Extra inputs"),
        (lambda d: d["sampling"].update(num_inference_steps=0), "num_inference_steps"),
        (lambda d: d["sampling"].update(num_inference_steps="4"), "valid integer"),
        (lambda d: d["coefficients"]["output_weights"].append(1.0), "differ in length"),
        (lambda d: d["coefficients"].update(output_weights=[1.0]), "differ in length"),
        (lambda d: d["coefficients"]["scales"][0].pop("transformer_blocks.0.mlp"), "members"),
        (lambda d: d["coefficients"].update(start_weights=[1.0, 0.0]), "start weight is zero"),
        (lambda d: d.update(objective="judge"), "not the first"),
    ],
)
def test_a_document_that_breaks_the_schema_is_refused(
    folder: Path, change: Callable[[Document], object], said: str
) -> None:
    edit(folder, change)
    with pytest.raises(CalibrationError, match=said):
        Calibration.from_pretrained(folder)


def test_the_python_call_refuses_what_the_file_would_refuse(calibration: Calibration) -> None:
    document = calibration.model_dump() | {"objective": "unknown"}
    with pytest.raises(ValidationError, match="not the first"):
        Calibration.model_validate(document)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, "\x00", '{"format_version": 1'])
def test_text_that_is_not_a_calibration_is_refused(folder: Path, text: str) -> None:
    (folder / folder_format.JSON_NAME).write_text(text)
    with pytest.raises(CalibrationError, match="not a valid calibration"):
        Calibration.from_pretrained(folder)


@pytest.mark.parametrize("data", [b"", b"\x80\x05pickle", b"\xff" * 64])
def test_damaged_tensors_are_refused(folder: Path, data: bytes) -> None:
    (folder / folder_format.TENSORS_NAME).write_bytes(data)
    with pytest.raises(CalibrationError, match="not a valid calibration"):
        Calibration.from_pretrained(folder)


@pytest.mark.parametrize("name", [folder_format.JSON_NAME, folder_format.TENSORS_NAME])
def test_an_oversized_file_is_refused(folder: Path, name: str) -> None:
    with (folder / name).open("ab") as file:
        file.truncate(folder_format.MAX_BYTES + 1)
    with pytest.raises(CalibrationError, match="at most 10 MB"):
        Calibration.from_pretrained(folder)


@pytest.mark.parametrize("name", [folder_format.JSON_NAME, folder_format.TENSORS_NAME])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(CalibrationError, match=f"{name} is missing"):
        Calibration.from_pretrained(folder)


def test_no_other_file_is_opened(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("calibri.pkl", "pytorch_model.bin", "calibri.pt", "config.json", "README.md"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir()  # opening it would raise
    opened = []
    real = Path.open
    monkeypatch.setattr(Path, "open", lambda p, *a, **k: opened.append(p.name) or real(p, *a, **k))
    assert Calibration.from_pretrained(folder).objective == "shapes"
    assert set(opened) == {folder_format.JSON_NAME, folder_format.TENSORS_NAME}


def test_a_subfolder_is_read(calibration: Calibration, tmp_path: Path) -> None:
    calibration.save_pretrained(tmp_path / "a" / "b")
    assert Calibration.from_pretrained(tmp_path, subfolder="a/b") == calibration


@pytest.mark.parametrize("subfolder", ["..", "a/../..", "/etc", "..\\x"])
def test_a_subfolder_cannot_lead_out(folder: Path, subfolder: str) -> None:
    with pytest.raises(CalibrationError, match="leads out"):
        Calibration.from_pretrained(folder, subfolder=subfolder)


def test_a_file_in_the_way_is_told(calibration: Calibration, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CalibrationError, match="was not saved"):
        calibration.save_pretrained(tmp_path / "file")


def test_equal_calibrations_have_equal_bytes_in_every_process(calibration: Calibration) -> None:
    script = (
        "import sys, hashlib; from calibri.artifact import folder_format as f; "
        "from calibri.coefficients import Coefficients; "
        "c = Coefficients.model_validate_json(sys.stdin.read()); "
        "print(hashlib.sha256(f.tensor_bytes(c)).hexdigest())"
    )
    text = calibration.coefficients.model_dump_json()
    digests = {
        subprocess.run(
            [sys.executable, "-c", script], input=text, capture_output=True, text=True, check=True
        ).stdout
        for _ in range(3)
    }
    own = hashlib.sha256(folder_format.tensor_bytes(calibration.coefficients)).hexdigest()
    assert digests == {own + "\n"}

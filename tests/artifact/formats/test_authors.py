import json

import numpy as np
import pytest
import torch
from diffusers import QwenImageTransformer2DModel
from hypothesis import given, settings
from hypothesis import strategies as st

from calibri.artifact.calibration import Calibration
from calibri.artifact.formats.authors import (
    AuthorsFile,
    export_authors_vector,
    import_authors_vector,
)
from calibri.errors import CalibrationError, ConfigError, UnsupportedModelError
from calibri.pipelines.sites.find import find_sites
from tests.needs import of_diffusers
from tests.tiny import FLUX_DEV, SD35_MEDIUM, tiny_flux, tiny_sd3

FLUX, SD3 = tiny_flux(), tiny_sd3(dual=(0, 2))
with torch.device("meta"):
    QWEN = QwenImageTransformer2DModel(
        num_layers=3, attention_head_dim=8, num_attention_heads=2, joint_attention_dim=16
    )


class Values:
    """A different number for every member and name, and the order that the spec describes."""

    def __init__(self):
        self.vector = []
        self.of = {}

    def add(self, member, name):
        self.of[member, name] = len(self.vector) * 0.01 + 0.1
        self.vector.append(self.of[member, name])

    def outputs(self, members):
        for member in range(members):
            self.add(member, "output")
        return self


def flux_gate(members):
    values = Values()
    for member in range(members):
        for block in range(2):
            values.add(member, f"transformer_blocks.{block}.attn[0]")
            values.add(member, f"transformer_blocks.{block}.ff")
    for member in range(members):
        for block in range(2):
            values.add(member, f"transformer_blocks.{block}.attn[1]")
            values.add(member, f"transformer_blocks.{block}.ff_context")
    for member in range(members):
        for block in range(2):
            values.add(member, f"single_transformer_blocks.{block}.proj_out")
    return values.outputs(members)


def flux_layer(members):
    values = Values()
    for member in range(members):
        for block in range(2):
            values.add(member, f"transformer_blocks.{block}.attn")
            values.add(member, f"transformer_blocks.{block}.mlp")
    for member in range(members):
        for block in range(2):
            values.add(member, f"single_transformer_blocks.{block}.attn+mlp")
    return values.outputs(members)


def flux_block(members):
    values = Values()
    for kind in ("transformer_blocks", "single_transformer_blocks"):
        for member in range(members):
            for block in range(2):
                values.add(member, f"{kind}.{block}")
    return values.outputs(members)


def sd3_gate(members):
    values = Values()
    for member in range(members):
        for block in range(3):
            values.add(member, f"transformer_blocks.{block}.attn[0]")
            values.add(member, f"transformer_blocks.{block}.ff")
    for member in range(members):
        for block in range(2):  # the last block has no text gates
            values.add(member, f"transformer_blocks.{block}.attn[1]")
            values.add(member, f"transformer_blocks.{block}.ff_context")
    for member in range(members):
        for block in (0, 2):  # the blocks with a second attention
            values.add(member, f"transformer_blocks.{block}.attn2")
    return values.outputs(members)


def qwen_gate(members):
    values = Values()
    for member in range(members):
        for block in range(3):
            for name in ("attn[0]", "attn[1]", "img_mlp", "txt_mlp"):
                values.add(member, f"transformer_blocks.{block}.{name}")
    return values.outputs(members)


CASES = [
    (FLUX, "gate", flux_gate),
    (FLUX, "layer", flux_layer),
    (FLUX, "block", flux_block),
    (SD3, "gate", sd3_gate),
    (QWEN, "gate", qwen_gate),
]


@pytest.mark.parametrize("members", [1, 2, 3])
@pytest.mark.parametrize(("model", "granularity", "oracle"), CASES)
def test_every_value_reaches_the_coefficient_that_the_format_names(
    model, granularity, oracle, members
):
    values = oracle(members)
    found = import_authors_vector(
        values.vector, model, granularity=granularity, members=members
    ).coefficients
    assert len(found.scales) == members
    assert not list(found.problems())
    assert found.site_scales(find_sites(model)).shape[0] == members
    assert list(found.output_weights) == [values.of[m, "output"] for m in range(members)]
    expected = {key: value for key, value in values.of.items() if key[1] != "output"}
    named = {(m, name): v for m, member in enumerate(found.scales) for name, v in member.items()}
    assert named.keys() == expected.keys()
    for key, value in named.items():
        assert value == (1.0 if "_mlp" in key[1] else expected[key])


@settings(max_examples=30, deadline=None)
@given(data=st.data(), case=st.sampled_from(CASES[:4]), members=st.integers(1, 4))
def test_a_vector_survives_the_way_in_and_out(data, case, members):
    model, granularity, oracle = case
    size = len(oracle(members).vector)
    numbers = st.floats(-10, 10, allow_nan=False)
    vector = data.draw(st.lists(numbers, min_size=size, max_size=size))
    imported = import_authors_vector(vector, model, granularity=granularity, members=members)
    stored = Calibration.model_validate_json(imported.model_dump_json())
    exported = export_authors_vector(stored.coefficients, model)
    assert list(exported.solution) == vector
    assert sum(exported.shapes) == size


def test_exporting_qwen_writes_ones_where_the_entries_have_no_effect():
    values = qwen_gate(2)
    found = import_authors_vector(values.vector, QWEN, members=2)
    exported = export_authors_vector(found.coefficients, QWEN).solution
    idle = [i for i in range(24) if i % 4 > 1]
    assert [exported[i] for i in idle] == [1.0] * 12
    kept = [i for i in range(26) if i not in idle]
    assert [exported[i] for i in kept] == [values.vector[i] for i in kept]


@pytest.mark.parametrize(
    ("model", "members", "start", "branches"),
    [
        (FLUX, 1, (1.0,), (0,)),
        (FLUX, 3, (1.0, 0.0, 0.0), (0, 0, 0)),
        (SD3, 1, (1.0,), (0,)),
        (SD3, 2, (7.0, -6.0), (0, 1)),
        (SD3, 3, (7.0, -6.0, 0.0), (0, 1, 0)),
        (QWEN, 2, (4.0, -3.0), (0, 1)),
    ],
)
def test_members_see_the_prompts_of_the_family(model, members, start, branches):
    oracle = {FLUX: flux_gate, SD3: sd3_gate, QWEN: qwen_gate}[model]
    found = import_authors_vector(oracle(members).vector, model, members=members)
    assert found.coefficients.start_weights == start
    assert found.coefficients.member_branches == branches
    guided = model is FLUX or members > 1
    assert (found.sampling.guidance_scale > 1) is guided


def test_a_guidance_of_one_gives_every_member_the_prompt():
    found = import_authors_vector(sd3_gate(2).vector, SD3, members=2, guidance_scale=1.0)
    assert found.coefficients.member_branches == (0, 0)
    assert found.coefficients.start_weights == (1.0, 0.0)


def test_values_as_they_ran_are_rounded_to_bfloat16():
    vector = np.linspace(-1.234567, 6.54321, len(flux_gate(1).vector)).tolist()
    exact = export_authors_vector(import_authors_vector(vector, FLUX).coefficients, FLUX)
    ran = import_authors_vector(vector, FLUX, as_they_ran=True)
    rounded = export_authors_vector(ran.coefficients, FLUX).solution
    assert list(exact.solution) == vector
    assert list(rounded) != vector
    for value, near in zip(vector, rounded, strict=True):
        # Eight significant bits: the value nearest to it, in the units of its last place.
        unit = 2.0 ** (np.floor(np.log2(abs(value))) - 7)
        assert near == pytest.approx(np.round(value / unit) * unit, abs=0)


def test_the_papers_counts():
    # The lengths of the published vectors: (scalars + output weight) per member.
    for kind, config, members, length in (
        ("FluxTransformer2DModel", FLUX_DEV, 1, 115),
        ("SD3Transformer2DModel", SD35_MEDIUM, 2, 216),
    ):
        with torch.device("meta"):
            model = of_diffusers(kind)(**config)
        ones = [1.0] * length
        assert len(import_authors_vector(ones, model, members=members).coefficients.scales)


def test_a_wrong_length_is_refused_with_both_numbers_and_what_would_fit():
    vector = flux_layer(2).vector
    with pytest.raises(
        CalibrationError, match=f"{len(vector)} entries.*needs 11 .*'layer' with members=2"
    ):
        import_authors_vector(vector, FLUX)
    with pytest.raises(CalibrationError, match="4 entries.*No granularity"):
        import_authors_vector([1.0] * 4, FLUX)


def test_another_family_granularity_or_number_of_members_is_refused():
    with pytest.raises(
        UnsupportedModelError, match=r"Linear.*FluxTransformer2DModel \(gate, layer"
    ):
        import_authors_vector([1.0], torch.nn.Linear(1, 1))
    with pytest.raises(UnsupportedModelError, match="granularity 'block'"):
        import_authors_vector([1.0], SD3, granularity="block")
    with pytest.raises(ConfigError, match="got 0"):
        import_authors_vector([1.0], SD3, members=0)
    of_flux = import_authors_vector(flux_gate(1).vector, FLUX).coefficients
    with pytest.raises(CalibrationError, match="does not fit"):
        export_authors_vector(of_flux, SD3)


def test_a_file_is_read_and_written(tmp_path):
    vector = flux_gate(2).vector
    path = tmp_path / "cmaes_step_0200.json"
    extra = {"shapes": [4, 4, 2], "step": 200, "train_best": 13.4, "val": {"hpsv3": 13.1}}
    path.write_text(json.dumps({"solution": vector, "sigma": 0.1, "more": [1], **extra}))
    file = AuthorsFile.read(path)
    assert list(file.solution) == vector
    assert import_authors_vector(file, FLUX, members=2).provenance["step"] == 200
    file.write(tmp_path / "again.json")
    assert AuthorsFile.read(tmp_path / "again.json") == file


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not a coefficient file"),
        (b"\x80\x04K\x01.", "not a coefficient file"),
        (b"[1, 2]", "not a coefficient file"),
        (b'{"step": 1}', "solution: Field required"),
        (b'{"solution": []}', "solution"),
        (b'{"solution": [1, "x"]}', "solution.1"),
        (b'{"solution": [1, NaN]}', "solution.1"),
        (b"{" + b" " * 11 * 2**20 + b"}", "more than 10 MB"),
    ],
)
def test_what_is_not_their_file_is_refused(tmp_path, content, said):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(CalibrationError, match=said):
        AuthorsFile.read(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(CalibrationError, match="No such file"):
        AuthorsFile.read(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"guidance": 1.5}, "also change the guidance of"),
        ({"guidance": 1.5, "shift": 2.0}, "the guidance and the shift"),
    ],
)
def test_what_their_file_has_no_place_for_is_refused(change, said):
    found = import_authors_vector(flux_gate(1).vector, FLUX).coefficients
    with pytest.raises(CalibrationError, match=said):
        export_authors_vector(found.model_copy(update=change), FLUX)
    with_knots = {"knots": 2, "scales": found.scales * 2}
    with pytest.raises(CalibrationError, match="2 knots"):
        export_authors_vector(found.model_copy(update=with_knots), FLUX)

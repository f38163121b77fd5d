"""What Calibri promises about the sites of every transformer class of the installed diffusers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from calibri.errors import FuseError
from calibri.pipelines.classes import transformer_classes
from calibri.pipelines.families.lookup import classes_where
from calibri.pipelines.sites.find import find_output_sites, find_sites
from calibri.pipelines.sites.site import Site
from calibri.sampling.scales.fold import Fused
from tests.needs import needs
from tests.pipelines.measuring import distance, random_scales, scaled
from tests.pipelines.zoo import EVERY, QUIET, ZOO, Specimen, run, take_row

pytestmark = QUIET
NAMES = Path(__file__).parent / "names.json"

# Blocks that change their streams even with every branch off, and what does it.
NOT_IDENTITY = {
    "CosmosTransformerBlock": "adds the learned position embedding",
    "HunyuanDiTBlock": "blocks of the second half first project the skip connection",
    "StableAudio3DiTBlock": "adds the local conditioning",
    "SanaVideoMSCamCtrlBlock": "adds the ray embedding of the camera",
}


@needs(diffusers="0.42")
def test_every_class_of_diffusers_is_in_the_zoo_or_refused_with_a_reason():
    tested = {specimen.model_class for specimen in ZOO}
    refused = set(classes_where(lambda family: family.refused))
    assert set(transformer_classes()) == tested | refused
    assert not tested & refused


@EVERY
def test_ones_are_the_identity(specimen: Specimen):
    model = specimen.model()
    before = run(model, specimen.draw())
    with scaled(model) as scaler:
        assert distance(run(model, specimen.draw()), before) == 0
        scaler.set(random_scales(scaler))
        assert distance(run(model, specimen.draw()), before) > 1e-3
    assert distance(run(model, specimen.draw()), before) == 0


def is_discarded(site: Site, model: nn.Module) -> bool:
    """Say whether the branch adds to the text stream of the last block, which no layer reads."""
    return site.stream == "text" and site.block == find_sites(model)[-1].block


@EVERY
def test_every_site_has_an_influence_unless_its_stream_ends_there(specimen: Specimen):
    model = specimen.model()
    before = run(model, specimen.draw())
    with scaled(model) as scaler:
        for position, site in enumerate(scaler.sites):
            scales = torch.ones(1, 1, len(scaler.sites) + 1)
            scales[..., position] = -1
            scaler.set(scales)
            moved = distance(run(model, specimen.draw()), before)
            assert moved == 0 if is_discarded(site, model) else moved > 1e-6, site.name


@EVERY
def test_the_output_site_scales_the_output(specimen: Specimen):
    model = specimen.model()
    before = run(model, specimen.draw())
    with scaled(model) as scaler:
        scales = torch.ones(1, 1, len(scaler.sites) + 1)
        scales[..., -1] = 1.7
        scaler.set(scales)
        assert distance(run(model, specimen.draw()), [1.7 * part for part in before]) < 1e-5


def tensors(value: object) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value
    return [t for v in parts for t in tensors(v)] if isinstance(value, dict | list | tuple) else []


def blocks_that_change_their_streams(model: nn.Module, specimen: Specimen) -> set[str]:
    changed: set[str] = set()

    def check(block, args, kwargs, output):
        given = tensors([args, kwargs])
        for stream in tensors(output):
            same = (g for g in given if g.shape == stream.shape and torch.equal(g, stream))
            if next(same, None) is None:
                changed.add(type(block).__name__)

    with scaled(model) as scaler:
        for path in {site.block for site in scaler.sites}:
            model.get_submodule(path).register_forward_hook(check, with_kwargs=True)
        scales = torch.ones(1, 1, len(scaler.sites) + 1)
        scales[..., :-1] = 0
        scaler.set(scales)
        run(model, specimen.draw())
    return changed


@EVERY
def test_zero_makes_every_block_the_identity_on_its_streams(specimen: Specimen):
    model = specimen.model()
    blocks = {type(model.get_submodule(s.block)).__name__ for s in find_sites(model)}
    assert blocks_that_change_their_streams(model, specimen) == blocks & set(NOT_IDENTITY)


@EVERY
def test_fused_weights_give_the_output_of_the_hooks(specimen: Specimen):
    model = specimen.model()
    with scaled(model) as scaler:
        scales = random_scales(scaler)
        scaler.set(scales)
        hooked = run(model, specimen.draw())
    flat = scales[0, 0].tolist()
    unfoldable = [site for site in find_sites(model) if not site.fold]
    if unfoldable:
        with pytest.raises(FuseError, match=unfoldable[0].no_fold):
            Fused(model, flat)
        return
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fused = Fused(model, flat)
    assert distance(run(model, specimen.draw()), hooked) <= 2e-6
    fused.undo()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@EVERY
def test_scales_per_row_equal_one_row_at_a_time(specimen: Specimen):
    if not specimen.batched:
        pytest.skip("packed sequences have no rows")
    model, rows = specimen.model(), 3
    given = specimen.draw(rows)
    with scaled(model) as scaler:
        scales = random_scales(scaler, rows)
        scaler.set(scales)
        together = run(model, specimen.draw(rows))
        for row in range(rows):
            scaler.set(scales[row : row + 1])
            alone = run(model, take_row(given, row, rows, specimen.row_axis))
            listed = len(together) == rows and len(alone) == 1
            expected = [together[row]] if listed else [part[row : row + 1] for part in together]
            assert distance(alone, expected) < 1e-5


@pytest.mark.slow
def test_names_are_stable():
    found = {
        specimen.id: [site.name for site in (*find_sites(m), *find_output_sites(m))]
        for specimen in ZOO
        for m in [specimen.model()]
    }
    assert found == json.loads(NAMES.read_text())
    assert all(len(set(names)) == len(names) for names in found.values())

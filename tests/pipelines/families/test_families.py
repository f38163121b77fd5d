"""Every row against the installed diffusers: its classes, and what its pipelines' source says."""

import subprocess
import sys
from collections import Counter

import pytest

from calibri.pipelines.classes import transformer_classes
from calibri.pipelines.families.family import Family
from calibri.pipelines.families.lookup import block_family, families, family_of
from calibri.pipelines.families.notation import parse_row
from calibri.pipelines.families.timesteps import Schedule
from tests.needs import needs
from tests.pipelines.source import (
    combines_by_excess,
    defined_names,
    given_timestep,
    guidance_above,
    pipelines,
)

# What a reading of the source does not follow, and what it says.
_TOKENS = "t for every token, and 0 for tokens that are given"
_SIGMA = "the share of noise, from the scheduler's sigma"
NOT_READ = {
    "AceStepPipeline": "a share of noise from a schedule of its own",
    "Cosmos2_5_PredictBasePipeline": _SIGMA,
    "Cosmos2_5_TransferPipeline": _SIGMA,
    "Cosmos2TextToImagePipeline": _SIGMA,
    "Cosmos2VideoToWorldPipeline": _SIGMA,
    "LTX2ConditionPipeline": _TOKENS,
    "LTX2DFRPipeline": _TOKENS,
    "LTX2DFRTemporalRefinePipeline": _TOKENS,
    "LTX2ImageToVideoPipeline": _TOKENS,
    "SkyReelsV2DiffusionForcingImageToVideoPipeline": "t of every frame",
    "SkyReelsV2DiffusionForcingPipeline": "t of every frame",
    "SkyReelsV2DiffusionForcingVideoToVideoPipeline": "t of every frame",
    "VisualClozePipeline": "calls another pipeline",
    "SanaSprintImg2ImgPipeline": "an angle; its scheduler is refused",
    "SanaSprintPipeline": "an angle; its scheduler is refused",
}
# Their scheduler, EDM's, is refused.
OTHER_SCHEDULE = {"CosmosTextToWorldPipeline", "CosmosVideoToWorldPipeline"}


@needs(diffusers="0.42")
def test_every_class_of_diffusers_has_exactly_one_row():
    rows = Counter(name for family in families() for name in family.classes)
    assert max(rows.values()) == 1
    assert set(rows) == set(transformer_classes())


@needs(diffusers="0.42")
def test_every_block_has_exactly_one_row_that_can_be_read():
    rows = Counter(block for family in families() for block in family.blocks)
    assert max(rows.values()) == 1
    assert {name.partition("[")[0] for name in rows} <= defined_names()
    for family in families():
        for block, lines in family.blocks.items():
            assert block_family(block) is family
            assert all(branch.fold for line in lines for branch in parse_row(line))


def test_a_row_does_not_contradict_itself():
    for family in families():
        assert not (family.refused and (family.blocks or family.timesteps))
        assert family.timesteps or family.no_timesteps
        assert {block for block, _ in family.batch_axes} <= {*family.blocks, *family.classes}
        assert set(family.refined) <= set(family.blocks)


def test_nothing_is_known_of_an_unknown_class():
    assert family_of("NoSuchTransformer") == Family(("NoSuchTransformer",))
    assert block_family("NoSuchBlock") is None


def test_rows_are_read_without_diffusers():
    code = (
        "import sys; from calibri.pipelines.families.lookup import families; families(); "
        "sys.exit('diffusers' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", pipelines())
def test_guidance_is_counted_as_the_source_of_the_pipeline_does(name):
    kind, source = pipelines()[name]
    above = family_of(kind).guidance.excess_above
    assert combines_by_excess(source) == (above is not None)
    if above is not None:
        assert guidance_above(source) in (above, None)


def test_cosmos_3_counts_guidance_as_most_do_and_cosmos_2_does_not():
    assert family_of("Cosmos3OmniTransformer").guidance.scale(6.0) == 6.0
    assert family_of("CosmosTransformer3DModel").guidance.scale(6.0) == 7.0


@needs(diffusers="0.42")
def test_timesteps_are_what_the_source_of_every_pipeline_makes_of_t():
    unread = set()
    for name, (kind, source) in pipelines().items():
        timesteps = family_of(kind).timesteps
        if timesteps is None:
            continue
        given = [given_timestep(source, timesteps.argument, t, 1000) for t in (0.0, 1000.0)]
        if None in given or name in OTHER_SCHEDULE:
            unread.add(name)
            continue
        assert given == pytest.approx(timesteps.range(Schedule.flow())), name
    assert unread == set(NOT_READ) | OTHER_SCHEDULE

"""Discovery, which knows no model, against the table, on every class of the zoo."""

from __future__ import annotations

from calibri.pipelines.families.lookup import block_family, families
from calibri.pipelines.sites.find import find_output_sites, find_sites
from calibri.pipelines.sites.site import Site
from tests.pipelines.measuring import by_block, measured
from tests.pipelines.zoo import EVERY, QUIET, ZOO, Specimen

pytestmark = QUIET


# What the figures of a site cannot show, and why.
GATED_INSIDE = {
    "MochiTransformerBlock": "the norm that is the site multiplies by the gate itself",
    "LTX2VideoTransformerBlock": "its cross-attention has a gate in some configurations",
}
UNNAMED_FOLDS = {
    "NucleusMoEImageTransformerBlock": "experts in one parameter beside others of their module",
}
PACKED = {"Cosmos3VLTextMoTDecoderLayer": "nothing tells a packed sequence from a batch"}


@EVERY
def test_discovery_finds_the_sites_of_the_table_or_a_reason_is_given(specimen: Specimen):
    model = specimen.model()
    found = measured(specimen, model)
    sites = by_block([finding.site for finding in (*found.findings, *found.doubtful)])
    for block, known in by_block(find_sites(model)).items():
        kind = type(model.get_submodule(block)).__name__
        agrees = set(sites.get(block, {})) == set(known)
        family = block_family(kind)
        assert family is not None
        assert agrees == (kind not in family.refined), (block, sorted(sites.get(block, {})))
        for name in set(known) & set(sites.get(block, {})):
            assert_alike(known[name], sites[block][name], kind)
    assert [site.name for site in found.outputs] == [s.name for s in find_output_sites(model)]


def assert_alike(known: Site, found: Site, kind: str) -> None:
    folds = [{fold.path for fold in site.fold} for site in (known, found)]
    assert known.gated == found.gated or kind in GATED_INSIDE, known.name
    assert known.batch_axis == found.batch_axis or kind in PACKED, known.name
    assert folds[0] == folds[1] or (kind in UNNAMED_FOLDS and not folds[1]), known.name


def test_every_refinement_is_of_a_block_in_the_zoo():
    used = {type(m).__name__ for specimen in ZOO for m in specimen.model().modules()}
    assert {block for family in families() for block in family.refined} <= used

import pytest
import torch

from calibri.errors import UnsupportedModelError
from calibri.pipelines.sites.find import find_sites
from calibri.pipelines.skeletons import load_skeleton, load_transformer


def test_a_skeleton_has_the_sites_of_the_pipeline_and_no_weights():
    skeleton = load_skeleton("shapes")
    assert next(skeleton.parameters()).is_meta
    assert len(find_sites(skeleton)) == 22


def test_a_transformer_has_the_weights_of_the_pipeline(shipped):
    alone = load_transformer("shapes").state_dict()
    whole = shipped.transformer.state_dict()
    assert alone.keys() == whole.keys()
    assert all(torch.equal(alone[name], value) for name, value in whole.items())


@pytest.mark.parametrize("load", [load_skeleton, load_transformer])
def test_what_is_no_pipeline_is_refused(load, tmp_path):
    with pytest.raises(UnsupportedModelError, match="Cannot read the transformer's configuration"):
        load(str(tmp_path))


def test_missing_weights_are_told(tmp_path):
    load_skeleton("shapes").save_config(tmp_path / "transformer")
    load_skeleton(str(tmp_path))
    with pytest.raises(UnsupportedModelError, match="Cannot read the transformer's weights"):
        load_transformer(str(tmp_path))

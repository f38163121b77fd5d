import pytest
import torch

from calibri.errors import UnsupportedModelError
from calibri.pipelines.loading import load_pipeline
from calibri.pipelines.sites.find import find_sites
from calibri.pipelines.skeletons import load_pipeline_skeleton, load_skeleton


def test_a_skeleton_has_the_sites_of_the_pipeline_and_no_weights():
    skeleton = load_skeleton("shapes")
    assert next(skeleton.parameters()).is_meta
    assert len(find_sites(skeleton)) == 22


def test_what_is_no_transformer_is_refused(tmp_path):
    with pytest.raises(UnsupportedModelError, match="Cannot read the transformer's configuration"):
        load_skeleton(str(tmp_path))


def test_a_pipeline_without_weights_has_every_part(tmp_path):
    whole, empty = load_pipeline("shapes", device="cpu"), load_pipeline_skeleton("shapes")
    assert type(empty) is type(whole)
    assert empty.components.keys() == whole.components.keys()
    models = {name for name, part in whole.components.items() if isinstance(part, torch.nn.Module)}
    assert len(models) > 2
    for name, part in empty.components.items():
        assert type(part) is type(whole.components[name])
        if name in models:
            assert all(weight.is_meta for weight in part.parameters())
            shapes = {key: value.shape for key, value in part.state_dict().items()}
            assert shapes == {n: v.shape for n, v in whole.components[name].state_dict().items()}


def test_what_is_no_pipeline_at_all_is_refused(tmp_path):
    with pytest.raises(UnsupportedModelError, match="Cannot load a pipeline"):
        load_pipeline_skeleton(str(tmp_path))

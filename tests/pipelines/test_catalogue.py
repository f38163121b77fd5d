import pytest

from calibri.errors import UnsupportedModelError
from calibri.pipelines import catalogue
from calibri.pipelines.catalogue import models
from tests.needs import needs

pytestmark = pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")


def test_a_known_class_has_counts_folds_and_a_guidance_layout():
    (status,) = models(["FluxTransformer2DModel"])
    assert status.status == "table"
    assert status.counts == {"block": 57, "layer": 76, "gate": 114}
    assert status.gated == 114
    assert status.folds == "all"
    assert status.guidance == "embedded, or one call for each branch"


def test_mochi_folds_nothing():
    (status,) = models(["MochiTransformer3DModel"])
    assert status.folds == "none"


def test_a_class_without_defaults_is_known_but_not_counted():
    (status,) = models(["HiDreamImageTransformer2DModel"])
    assert status.status == "table"
    assert status.counts is None
    assert "no complete defaults" in status.reason


@needs(diffusers="0.42")
def test_a_refused_class_says_why():
    (status,) = models(["DreamLiteTransformer2DModel"])
    assert status.status == "refused"
    assert "U-Net" in status.reason


def test_a_class_whose_blocks_are_not_in_the_table_is_left_to_discovery(monkeypatch):
    monkeypatch.setattr(catalogue, "block_family", lambda name: None)
    (status,) = models(["FluxTransformer2DModel"])
    assert status.status == "discover"


def test_a_name_that_diffusers_does_not_have_is_refused():
    with pytest.raises(UnsupportedModelError, match="NoSuchModel"):
        models(["NoSuchModel"])

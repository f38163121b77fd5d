"""What the columns of a table of scales multiply."""

from calibri.coefficients.columns import OUTPUT, scaled_places
from calibri.pipelines.networks import Network, sites_of
from calibri.pipelines.sites.find import find_output_sites, find_sites
from tests.tiny import tiny_flux, tiny_sd3


def test_each_site_has_its_column_and_all_outputs_share_the_last():
    networks = (Network(tiny_sd3()), Network(tiny_flux(), "transformer_2"))
    table = [site.name for site in sites_of(networks)] + ["output"]
    for network, places in zip(networks, scaled_places(networks), strict=True):
        inner, outputs = find_sites(network.transformer), find_output_sites(network.transformer)
        assert tuple(place.site for place in places) == (*inner, *outputs)
        prefix = f"{network.name}." if network.name else ""
        names = [f"{prefix}{site.name}" for site in inner] + ["output"] * len(outputs)
        assert [table[place.column] for place in places] == names
    assert table[OUTPUT] == "output"


def test_a_bare_transformer_is_the_only_network():
    model = tiny_sd3()
    (places,) = scaled_places(model)
    assert len(places) == len(find_sites(model)) + len(find_output_sites(model))

"""``calibri models`` and the measured side of ``calibri inspect``."""

import json

import pytest

from calibri.pipelines.discovery.findings import Discovery

pytestmark = pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")


def test_models_shows_counts_and_reasons(calibri):
    shown = calibri("models", "FluxTransformer2DModel", "T5FilmDecoder").stdout
    flux, film = shown.splitlines()[1:3]
    assert flux.split()[:6] == ["FluxTransformer2DModel", "table", "57", "76", "114", "all"]
    assert film.split()[:2] == ["T5FilmDecoder", "refused"]
    assert "1 of 2 classes" in shown


def test_models_prints_json(calibri):
    (status,) = json.loads(calibri("models", "MochiTransformer3DModel", "--json").stdout)
    assert status["counts"] == {"block": 48, "layer": 96, "gate": 190}
    assert status["folds"] == "none"


def test_models_refuses_a_name_that_diffusers_does_not_have(calibri):
    result = calibri("models", "FluxTransformer")
    assert result.exit_code == 3
    assert "FluxTransformer" in result.stderr


def test_inspect_measures_saves_and_reads_back_the_sites_of_the_table(calibri, tmp_path):
    table = json.loads(calibri("inspect", "--json").stdout)
    args = ("inspect", "--discover", "--save", "sites.json")
    measured = json.loads(calibri(*args, "--json").stdout)
    names = [site["name"] for site in table["sites"]]
    assert [site["name"] for site in measured["sites"]] == names
    assert measured["output"] == table["output"]
    assert {site.name for site in Discovery.load(tmp_path / "sites.json").sites} == set(names)
    read = calibri("inspect", "--sites", "sites.json").stdout
    for name in ("influence", "nonlinearity", *names):
        assert name in read


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--save", "sites.json"), "Add --discover"),
        (("--discover", "--sites", "sites.json"), "not both"),
    ],
)
def test_inspect_refuses_options_that_contradict(calibri, options, message):
    result = calibri("inspect", *options)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())

import pytest

from calibri.config import EvaluationConfig, RunConfig, load_config, validate_config
from calibri.errors import ConfigError
from calibri.search import METHODS


def test_later_sources_win(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("seed: 1\nsearch:\n  sigma0: 0.1\n  bucket_size: 4\n")
    config = load_config(
        path, ["search.sigma0=0.3"], {"seed": 2, "search.sigma0": 0.2, "device": None}
    )
    assert (config.seed, config.search.sigma0, config.search.bucket_size) == (2, 0.3, 4)
    assert config.device == "auto"


def test_the_defaults_survive_json():
    assert RunConfig.model_validate_json(RunConfig().model_dump_json()) == RunConfig()


def test_the_reference_takes_the_papers_values_unless_told_otherwise():
    paper = load_config(values={"search.method": "reference"}).search
    assert (paper.popsize, paper.sigma0, paper.bucket_size) == (None, 0.25, 16)
    assert paper.validate_every == 10
    assert (
        load_config(values={"search.method": "reference", "search.sigma0": 0.1}).search.sigma0
        == 0.1
    )
    assert RunConfig.model_validate_json(RunConfig(search=paper).model_dump_json()) == RunConfig(
        search=paper
    )


@pytest.mark.parametrize("name", METHODS)
def test_every_search_method_can_be_configured(name):
    search = load_config(values={"search.method": name}).search
    assert search.method_info.name == name
    assert search.population(58) == {"reference": 16, "grpo": 24}.get(name, 64)
    assert search.model_copy(update={"popsize": 5}).population(58) == 5


@pytest.mark.parametrize("name", ["genetic", "Calibri", "", ["calibri"], None])
def test_an_unknown_search_method_is_refused_with_the_known_ones(name):
    with pytest.raises(ConfigError) as error:
        validate_config({"search": {"method": name}})
    known = ", ".join(map(repr, METHODS)) if isinstance(name, str) else "string"
    assert known in str(error.value)
    assert "search.method: Input should be" in str(error.value)
    assert f"got {name!r}" in str(error.value)


@pytest.mark.parametrize(
    ("given", "original", "calibrated"),
    [
        ((1, 2, 3), (1, 2, 3), (1, 2)),
        ((3, 2), (1, 2, 3), (1, 2)),
        ((4, 4), (1, 4), (1, 4)),
        ((), (1,), (1,)),
    ],
)
def test_the_original_is_sampled_at_all_multiples_and_the_calibrated_at_two(
    given, original, calibrated
):
    evaluation = EvaluationConfig(step_multiples=given)
    assert evaluation.original_multiples == original
    assert evaluation.calibrated_multiples == calibrated


def test_an_empty_file_gives_the_defaults(tmp_path):
    (tmp_path / "run.yaml").write_text("# nothing\n")
    assert load_config(tmp_path / "run.yaml") == RunConfig()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("search.sigma0", "not of the form"),
        ("search.sigma0=-1", "search.sigma0"),
        ("search.sigma0=.nan", "search.sigma0"),
        ("search.sigma=0.1", "search.sigma"),
        ("space.granularity=head", "space.granularity"),
        ("seed.x=1", "seed"),
        ("seed=[", "YAML"),
    ],
)
def test_wrong_overrides_are_refused_by_name(override, words):
    with pytest.raises(ConfigError, match=words):
        load_config(overrides=[override])


@pytest.mark.parametrize("key", ["space.preset", "spice.start"])
def test_an_unknown_key_says_where_the_known_ones_are(key):
    with pytest.raises(ConfigError, match=r"no such setting.*--dry-run"):
        load_config(overrides=[f"{key}=1"])


@pytest.mark.parametrize(
    ("key", "meant", "also"),
    [
        ("sede", "seed", "pipeline"),
        ("search.generation", "generations", "popsize"),
        ("search.fidelity.heigth", "height", "cache_interval"),
    ],
)
def test_an_unknown_key_says_what_was_meant_and_what_there_is(key, meant, also):
    with pytest.raises(ConfigError, match=f"{key}: .*mean '{meant}'.*{also}"):
        load_config(values={key: 1})


def test_every_wrong_key_is_named():
    with pytest.raises(ConfigError) as error:
        validate_config({"sede": 1, "sampling": {"num_inference_steps": 0}})
    assert "sede" in str(error.value)
    assert "sampling.num_inference_steps" in str(error.value)
    assert "got 0" in str(error.value)


@pytest.mark.parametrize("content", ["- a\n- b\n", "just text", "a: [", b"\xff\xfe\x00"])
def test_files_that_are_no_configuration_are_refused(tmp_path, content):
    path = tmp_path / "run.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=r"run\.yaml"):
        load_config(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="Cannot read"):
        load_config(tmp_path / "none.yaml")


def test_yaml_tags_run_no_code(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(f"seed: !!python/object/apply:os.mkdir ['{tmp_path}/made']\n")
    with pytest.raises(ConfigError, match="YAML"):
        load_config(path)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("count", [-1, 0, 2, 4])
def test_validation_prompts_that_can_choose_nothing_are_refused(count):
    with pytest.raises(ConfigError, match="num_validation_prompts: Input should be at least 5"):
        load_config(values={"search.num_validation_prompts": count})
    load_config(values={"search.num_validation_prompts": 5})


@pytest.mark.parametrize("workers", [1, 256, "ray", None])
def test_workers_are_a_number_or_ray(workers):
    assert load_config(values={"sampling.workers": workers}).sampling.workers == workers


@pytest.mark.parametrize("workers", [0, 257, "rai", "4", True, 2.5])
def test_other_workers_are_refused_with_what_they_may_be(workers):
    with pytest.raises(ConfigError, match="a whole number from 1 to 256, or 'ray'"):
        load_config(values={"sampling.workers": workers})

"""What is given beside a configuration, and what only the shipped pipeline may leave out."""

import pytest
from hypothesis import given as examples
from hypothesis import strategies as st

from calibri.config import RunConfig, SearchConfig, load_config, validate_config
from calibri.configure import check_own_prompts, merge_config, with_own_material
from calibri.errors import ConfigError

KEYS = {
    "seed": st.integers(0, 9),
    "device": st.sampled_from(["cpu", "cuda"]),
    "search.generations": st.integers(1, 9),
    "search.sigma0": st.floats(0.1, 1.0),
    "search.fidelity": st.sampled_from([{"height": 8}, {"width": 8}]),
    "rewards.held_out": st.sampled_from([(), ("shapes",)]),
    "rewards.options": st.sampled_from([{"hpsv3": {"device": "cpu"}}, {}]),
    "prompts.train": st.sampled_from(["a.txt", "b.txt"]),
}
SETTINGS = st.fixed_dictionaries({}, optional=KEYS)


def nested(values):
    sections = {}
    for key, value in values.items():
        section, _, inner = key.rpartition(".")
        (sections.setdefault(section, {}) if section else sections)[inner] = value
    return sections


@examples(SETTINGS, SETTINGS)
def test_values_beside_a_configuration_are_as_flags_over_a_file(first, second):
    merged = merge_config(load_config(values=first), nested(second))
    expected = load_config(values=first | second)
    assert merged == expected
    # What was given and what is a default stay apart: later rules ask for it.
    assert merged.model_dump(exclude_unset=True) == expected.model_dump(exclude_unset=True)


def test_a_configuration_can_be_a_mapping_a_file_or_nothing(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("seed: 4\nsearch: {generations: 2}\n")
    expected = validate_config({"seed": 4, "search": {"generations": 2}})
    assert merge_config(path) == merge_config({"seed": 4, "search": {"generations": 2}}) == expected
    assert merge_config(None) == RunConfig()
    assert merge_config(expected) is expected
    assert merge_config(path, {"seed": 5}).search.generations == 2


def test_a_section_object_replaces_the_section():
    config = load_config(values={"search.generations": 5, "search.popsize": 6})
    search = SearchConfig(popsize=8)
    assert merge_config(config, {"search": search}).search == search


def test_a_name_of_a_pipeline_is_no_configuration():
    with pytest.raises(ConfigError, match=r"not 'some/model'.*pipeline='some/model'"):
        merge_config("some/model")


@pytest.mark.parametrize("config", [None, RunConfig(), {"seed": 1}])
def test_a_misspelt_name_is_refused_with_what_was_meant(config):
    with pytest.raises(ConfigError, match=r"'sedd'. Did you mean 'seed'\? Known are .*search"):
        merge_config(config, {"sedd": 7})
    with pytest.raises(ConfigError, match=r"search\.popsise.*mean 'popsize'"):
        merge_config(config, {"search": {"popsise": 7}})
    with pytest.raises(ConfigError, match="'runz'.*mean 'runs'"):
        merge_config(config, {"runz": 7}, arguments=("runs",))
    with pytest.raises(ConfigError, match=r"'xyzzy'\. Known are"):
        merge_config(config, {"xyzzy": 7})


def test_a_wrong_value_beside_a_configuration_is_refused():
    with pytest.raises(ConfigError, match=r"search\.generations.*got 0"):
        merge_config(RunConfig(), {"search": {"generations": 0}})


def test_another_method_beside_a_configuration_with_one_is_refused():
    reference = load_config(values={"search.method": "reference"})
    with pytest.raises(ConfigError, match="'calibri'.*'reference'"):
        merge_config(reference, {"search": {"method": "calibri"}})
    same = merge_config(reference, {"search": {"method": "reference", "popsize": 7}})
    assert same == load_config(values={"search.method": "reference", "search.popsize": 7})
    # Without a method in the configuration it is clear what was given.
    plain = load_config(values={"search.popsize": 7})
    assert merge_config(plain, {"search": {"method": "reference"}}) == same


def test_the_shipped_pipeline_needs_nothing_and_keeps_its_judge():
    assert with_own_material(RunConfig()) == RunConfig()
    judged = with_own_material(load_config(values={"rewards.objective": "shapes-judge"}))
    assert judged.rewards.held_out == ()  # a reward does not watch itself


OWN = {"prompts.train": "mine.txt", "rewards.objective": "hpsv3"}


def test_another_pipeline_has_no_judge_unless_named():
    foreign = with_own_material(load_config(values=OWN | {"pipeline": "some/model"}))
    assert foreign.rewards.held_out == ()
    assert with_own_material(foreign) == foreign
    named = load_config(
        values=OWN | {"pipeline": "some/model", "rewards.held_out": ["shapes-judge"]}
    )
    assert with_own_material(named) == named


@pytest.mark.parametrize(
    ("left_out", "words"),
    [
        (["prompts.train"], r"--prompts FILE \(prompts.train of"),
        (["rewards.objective"], r"--reward NAME \(rewards.objective of"),
        ([*OWN], "--prompts FILE and --reward NAME"),
    ],
)
def test_another_pipeline_needs_prompts_and_an_objective(left_out, words):
    values = {"pipeline": "some/model"} | {k: v for k, v in OWN.items() if k not in left_out}
    with pytest.raises(ConfigError, match=f"'some/model' needs {words}"):
        with_own_material(load_config(values=values))


def test_prompts_are_asked_for_where_there_are_none():
    check_own_prompts("shapes", None)
    check_own_prompts("some/model", "shapes")  # asked for by name
    with pytest.raises(ConfigError, match="'some/model' needs --prompts FILE"):
        check_own_prompts("some/model", None)

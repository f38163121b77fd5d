"""What a session refuses before it loads or samples anything."""

import pytest

from calibri.config import load_config
from calibri.errors import ConfigError, UnsupportedModelError
from calibri.prompts.files import make_prompts
from calibri.prompts.sources import PromptSets
from calibri.runs.inspect import inspect
from calibri.runs.session import Session
from tests.fakes import Named
from tests.tiny import tiny_run


def test_a_guard_that_compares_images_needs_those_of_a_prompt_in_one_batch():
    values = {
        "pipeline": "./nowhere",  # which is not even looked for
        "rewards.held_out": ("comparing",),
        "sampling.batch_size": 2,
        "search.images_per_prompt": 3,
    }
    rewards = {"comparing": Named("comparing", "groupwise")}
    prompts = PromptSets(make_prompts(["a circle"]), (), ())
    with pytest.raises(ConfigError, match=r"'comparing' .* search\.images_per_prompt is 3"):
        Session(load_config(values=values), prompts, rewards=rewards)


def test_what_is_given_as_an_object_stays_in_this_process():
    config = load_config(values={"sampling.workers": 2, "device": "cpu"})
    with pytest.raises(ConfigError, match="given as an object"):
        Session(config, rewards={"shapes": Named("shapes")})


def test_a_search_can_have_sites_that_were_discovered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = inspect("shapes", discover=True).discovery
    found.model_copy(update={"findings": found.findings[:-1]}).save("sites.json")
    config = tiny_run(space__sites="sites.json", space__granularity="gate")
    session = Session(config)
    assert len(session.bench.scaler.sites) == len(found.findings) - 1
    assert len(session.space.names) == len(session.bench.scaler.sites)
    monkeypatch.chdir("/")  # where a worker, or whoever resumes, may be
    again = Session(session.config)
    assert again.space.names == session.space.names
    for one in (again, session):
        one.close()
    with pytest.raises(UnsupportedModelError, match="Cannot read sites"):
        Session(tiny_run(space__sites="missing.json"))

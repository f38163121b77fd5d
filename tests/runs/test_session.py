"""What a session refuses before it loads or samples anything."""

import pytest

from calibri.config import load_config
from calibri.errors import ConfigError
from calibri.prompts.files import make_prompts
from calibri.prompts.sources import PromptSets
from calibri.runs.session import Session
from tests.fakes import Named


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

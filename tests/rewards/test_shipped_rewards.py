import pytest
import torch

from calibri.rewards.contract import *  # noqa: F403
from calibri.rewards.registry import make_reward
from calibri.shapes.scenes import sample_prompts


@pytest.fixture
def reward():
    return make_reward("shapes")


@pytest.fixture
def prompts():
    return sample_prompts(6, 0, "train")


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (6, 3, 24, 24), generator=generator, dtype=torch.uint8)

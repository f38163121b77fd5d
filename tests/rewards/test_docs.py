from pathlib import Path

import pytest

from calibri.rewards.listing import list_rewards
from calibri.rewards.registry import is_own, reward_names

PAGES = Path(__file__).parents[2] / "docs" / "rewards"


@pytest.mark.parametrize("name", list(filter(is_own, reward_names())))
def test_every_reward_has_a_page_that_the_overview_names(name):
    page = (PAGES / f"{name}.md").read_text()
    assert page.startswith(f"# {name}\n")
    for row in ("unit", "range", "checkpoint", "licence", "memory", "differentiable"):
        assert f"\n| {row} | " in page, row
    for heading in ("What it cannot see", "How far it was checked"):
        assert f"\n## {heading}\n" in page, heading
    assert name in (PAGES / "README.md").read_text()


def test_pages_say_which_rewards_have_a_gradient():
    own = [reward for reward in list_rewards() if is_own(reward.name)]
    assert any(reward.info.differentiable for reward in own)
    for reward in own:
        says = "yes" if reward.info.differentiable else "no"
        page = (PAGES / f"{reward.name}.md").read_text()
        assert f"\n| differentiable | {says}" in page, reward.name

from calibri.rewards import list_rewards
from calibri.rewards.registry import make_reward, reward_names
from tests.rewards.plugins import install


def test_every_reward_is_listed_with_what_it_says_and_without_problems(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = {reward.name: reward for reward in list_rewards()}
    assert tuple(found) == reward_names()
    assert not any(reward.problem for reward in found.values())
    assert found["shapes"].info == make_reward("shapes").info
    assert found["remote"].info.variant == "as served"


def test_packages_that_fail_are_named_and_the_others_are_listed(site):
    install(site, "good-rewards", {"brightness": "Brightness"})
    install(site, "exiting-rewards", {"exiting": "Bad"}, module="raise SystemExit(7)")
    install(site, "raising-rewards", {"raising": "bad"}, module="def bad():\n    return 1 / 0\n")
    install(site, "clashing", {"shapes": "Brightness"})
    found = {reward.name: reward for reward in list_rewards()}
    assert found["brightness"].info.unit == "mean"
    problems = {name: reward.problem for name, reward in found.items() if reward.info is None}
    assert set(problems) == {"exiting", "raising", "shapes"}
    assert "'exiting-rewards'" in problems["exiting"]
    assert "ZeroDivisionError" in problems["raising"]
    assert "'clashing'" in problems["shapes"]

import sys

import pytest
import torch

from calibri.errors import RewardError
from calibri.rewards.arguments import arguments
from calibri.rewards.registry import check_measures, is_own, make_reward, name_rewards, reward_names
from calibri.rewards.reward import BatchedReward, ModelReward, Reward, RewardInfo
from calibri.rewards.weights import Checkpoint
from tests.rewards.plugins import PLUGIN, install


@pytest.fixture
def mine(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(PLUGIN + "ready = Brightness(gain=3.0)\nnumber = 3\n")
    return str(file)


def test_another_package_adds_a_reward(site):
    install(site, "bright-rewards", {"brightness": "Brightness"})
    assert "brightness" in reward_names()
    reward = make_reward("brightness", gain=2.0)
    images = torch.full((3, 3, 2, 2), 5, dtype=torch.uint8)
    assert reward.score(images, ["x"] * 3).tolist() == [10.0] * 3


def test_listing_names_imports_no_reward(site):
    name = install(site, "bad-rewards", {"bad": "Bad"}, module="raise RuntimeError('at import')")
    assert "bad" in reward_names()
    assert name not in sys.modules
    with pytest.raises(RewardError, match=r"'bad-rewards' cannot be imported: RuntimeError"):
        make_reward("bad")


def test_something_that_is_no_reward_is_refused(site):
    install(site, "odd-rewards", {"odd": "not_a_reward"})
    with pytest.raises(RewardError, match="no 'info' or no 'score'"):
        make_reward("odd")


def test_a_package_must_not_take_a_name_of_ours(site):
    install(site, "clashing", {"shapes": "Brightness"})
    with pytest.raises(RewardError, match=r"'clashing' adds a reward 'shapes'"):
        make_reward("shapes")
    assert make_reward("shapes-judge").info.name == "shapes-judge"


def test_two_packages_with_one_name_are_ambiguous(site):
    install(site, "first-one", {"brightness": "Brightness"})
    install(site, "second-one", {"brightness": "Brightness"})
    with pytest.raises(RewardError, match="'first-one', 'second-one'"):
        make_reward("brightness")


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(RewardError, match=r"no reward 'beauty'.* shapes, shapes-judge"):
        make_reward("beauty")


def test_a_label_of_ones_own_names_its_reward():
    assert make_reward("mine", reward="shapes", batch_size=3).batch_size == 3


def test_every_listed_reward_can_be_made_without_weights(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    made = {name: make_reward(name) for name in filter(is_own, reward_names()) if name != "remote"}
    assert all(isinstance(reward, Reward) for reward in made.values())
    assert {name: reward.info.name for name, reward in made.items()} == {n: n for n in made}


@pytest.mark.parametrize(
    "ending", ["raise RuntimeError('no')", "raise SystemExit(3)", "import no_such"]
)
def test_a_package_that_ends_at_import_is_named(site, ending):
    install(site, "bad-rewards", {"bad": "Bad"}, module=ending)
    with pytest.raises(RewardError, match=r"'bad' of 'bad-rewards' cannot be imported"):
        make_reward("bad")


@pytest.mark.parametrize("ending", ["raise ValueError('no')", "raise SystemExit(3)"])
def test_a_reward_of_another_package_that_cannot_be_made_is_named(site, ending):
    install(site, "bad-rewards", {"bad": "bad"}, module=f"def bad():\n    {ending}\n")
    with pytest.raises(RewardError, match="'bad' cannot be made with {}: (ValueError|SystemExit)"):
        make_reward("bad")


@pytest.mark.parametrize("module", ["{}", "def slow():\n    {}\n"])
def test_ctrl_c_is_no_fault_of_a_package(site, module):
    install(site, "slow-rewards", {"slow": "slow"}, module=module.format("raise KeyboardInterrupt"))
    with pytest.raises(KeyboardInterrupt):
        make_reward("slow")


@pytest.mark.parametrize("name", ["diversity", "features", "seconds"])
def test_measures_of_our_own_are_no_names_of_rewards(site, name):
    with pytest.raises(RewardError, match=f"'{name}' is a measure of Calibri's own"):
        make_reward(name, reward="shapes")
    check_measures([name, "shapes"])
    install(site, "bright-rewards", {name: "Brightness"})
    with pytest.raises(RewardError, match=f"reward of 'bright-rewards' a label: .*reward: {name}"):
        make_reward(name)
    with pytest.raises(RewardError, match="'bright-rewards' adds a reward of that name"):
        check_measures([name])
    assert make_reward("theirs", reward=name).info.name == "brightness"


def test_a_label_hides_no_other_reward(site):
    install(site, "bright-rewards", {"brightness": "Brightness"})
    for label in ("pickscore", "brightness"):
        with pytest.raises(RewardError, match=f"'{label}' is a reward, so it cannot be the label"):
            make_reward(label, reward="shapes")
    assert make_reward("shapes", reward="shapes").info.name == "shapes"


IMAGES = torch.full((3, 3, 2, 2), 5, dtype=torch.uint8)


def test_a_class_of_a_file_is_a_reward_with_its_options(mine):
    reward = make_reward(f"{mine}:Brightness", gain=2.0)
    assert reward.score(IMAGES, ["x"] * 3).tolist() == [10.0] * 3
    with pytest.raises(RewardError, match="no option 'gian'.* batch_size|gain"):
        make_reward(f"{mine}:Brightness", gian=2.0)
    label = make_reward("a label", reward=f"{mine}:Brightness", gain=2.0)
    assert label.score(IMAGES, ["x"] * 3).tolist() == [10.0] * 3


def test_a_reward_made_in_a_file_is_taken_as_it_is(mine):
    assert make_reward(f"{mine}:ready").score(IMAGES, ["x"] * 3).tolist() == [15.0] * 3
    with pytest.raises(RewardError, match="is made already"):
        make_reward(f"{mine}:ready", gain=1.0)


@pytest.mark.parametrize(
    ("name", "words"),
    [("not_a_reward", "no 'info' or no 'score'"), ("number", "type 'int', and no reward")],
)
def test_what_is_no_reward_in_a_file_is_refused(mine, name, words):
    with pytest.raises(RewardError, match=words):
        make_reward(f"{mine}:{name}")


def mean(images, prompts):
    """Mean of all channels."""
    return images.float().mean((1, 2, 3))


def lengths(images, prompts):
    return [len(prompt) for prompt in prompts]


def test_a_function_of_images_and_prompts_is_a_reward():
    reward = make_reward(mean, batch_size=2)
    assert isinstance(reward, Reward)
    assert reward.score(IMAGES, ["x"] * 3).tolist() == [5.0] * 3
    assert (reward.info.name, reward.info.unit) == ("mean", "Mean of all channels")
    assert make_reward(lengths).score(IMAGES, ["", "a", "bb"]).tolist() == [0, 1, 2]


class Dim(BatchedReward):
    def __init__(self, name="dim"):
        super().__init__()
        self.info = RewardInfo(name, "1", unit="mean")

    def score_batch(self, images, prompts):
        return -images.float().mean((1, 2, 3))


def test_objects_classes_and_functions_are_named_by_what_they_say():
    ready = Dim("dimmer")
    names, rewards = name_rewards(["hpsv3:0.7,mean:0.3", mean, Dim, ready, "shapes"])
    assert names == ("hpsv3:0.7,mean:0.3", "mean", "dim", "dimmer", "shapes")
    assert set(rewards) == {"mean", "dim", "dimmer"}
    assert rewards["dimmer"] is ready


def test_two_rewards_of_one_name_are_refused():
    with pytest.raises(RewardError, match="Several rewards are called 'dim'"):
        name_rewards([Dim(), Dim])


@pytest.mark.parametrize("name", ["shapes", "hpsv3", "diversity", "features", "seconds"])
def test_an_object_takes_no_name_of_ours(name):
    with pytest.raises(RewardError, match=f"called '{name}', as one of Calibri's own"):
        make_reward(Dim(name))


def test_our_own_rewards_may_be_given_as_objects_too():
    from calibri.rewards.shapes import ShapesReward

    assert name_rewards([ShapesReward, "judge"])[0] == ("shapes", "judge")


def test_an_object_of_an_installed_package_keeps_its_name_and_no_other_takes_it(site):
    module = install(site, "bright-rewards", {"brightness": "Brightness"})
    theirs = __import__(module).Brightness()
    assert make_reward(theirs) is theirs
    with pytest.raises(RewardError, match="called 'brightness', as one of"):
        make_reward(Dim("brightness"))


@pytest.mark.parametrize("given", [lambda images, prompts: [0.0], Dim("two words"), Dim("a:b")])
def test_names_that_cannot_be_written_are_refused(given):
    with pytest.raises(RewardError, match="no plain name"):
        make_reward(given)


@pytest.mark.parametrize("given", [object(), 3, None, list])
def test_objects_that_are_no_rewards_are_refused(given):
    with pytest.raises(RewardError):
        make_reward(given)


DEFAULT, OTHER = Checkpoint("owner/net", "abc"), Checkpoint("owner/other")


class Net(ModelReward):
    info = RewardInfo("net", "1")

    def __init__(self, checkpoint=DEFAULT, *, level=1, **options):
        super().__init__(**options)
        self.checkpoint, self.level = checkpoint, level

    def load(self):
        return torch.nn.Identity()

    def score_batch(self, images, prompts):
        return torch.zeros(len(prompts))


def made(**options):
    return Net(**arguments("net", Net, options))


def test_a_folder_takes_the_place_of_the_hub(tmp_path):
    checkpoint = made(checkpoint=str(tmp_path)).checkpoint
    assert (checkpoint.repo_id, checkpoint.folder) == ("owner/net", tmp_path)


def test_a_revision_replaces_the_default_one(tmp_path):
    assert made(revision="v2").checkpoint == Checkpoint("owner/net", "v2")
    both = made(revision="v2", checkpoint=tmp_path).checkpoint
    assert both == Checkpoint("owner/net", "v2", tmp_path)


def test_a_subclass_has_its_own_default_checkpoint():
    class Other(Net):
        def __init__(self, checkpoint=OTHER, **options):
            super().__init__(checkpoint, **options)

    found = Other(**arguments("other", Other, {"revision": "v2", "level": 2}))
    assert (found.checkpoint, found.level) == (Checkpoint("owner/other", "v2"), 2)


def test_options_of_the_base_class_are_options_too():
    reward = made(dtype="bfloat16", device="meta", batch_size=7, level=3)
    assert (reward.dtype, reward.device.type) == (torch.bfloat16, "meta")
    assert (reward.batch_size, reward.level) == (7, 3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"chekpoint": "x"}, r"no option 'chekpoint'.* batch_size, checkpoint, device, dtype"),
        ({"self": 1}, "no option 'self'"),
        ({"checkpoint": "/no/such/folder"}, "no folder '/no/such/folder'"),
        ({"dtype": "int3"}, "'int3'. Use float32"),
    ],
)
def test_options_that_cannot_be_used_are_named(options, words):
    with pytest.raises(RewardError, match=words):
        made(**options)


def test_a_reward_without_a_checkpoint_has_no_revision():
    with pytest.raises(RewardError, match="no option 'revision'"):
        make_reward("shapes", revision="v2")


def test_a_value_of_the_wrong_kind_is_an_error_in_words():
    with pytest.raises(RewardError, match="batch_size = 'many'"):
        make_reward("shapes", batch_size="many")

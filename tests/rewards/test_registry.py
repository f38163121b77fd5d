import sys

import pytest
import torch

from calibri.errors import RewardError
from calibri.rewards import registry
from calibri.rewards.arguments import arguments
from calibri.rewards.registry import make_reward, reward_names
from calibri.rewards.reward import ModelReward, Reward, RewardInfo
from calibri.rewards.weights import Checkpoint

PLUGIN = """
from calibri.rewards import BatchedReward, RewardInfo

class Brightness(BatchedReward):
    info = RewardInfo("brightness", "1", unit="mean")

    def __init__(self, gain=1.0):
        super().__init__()
        self.gain = gain

    def score_batch(self, images, prompts):
        return images.float().mean((1, 2, 3)) * self.gain

def not_a_reward():
    return object()
"""


def install(folder, distribution, points, module=PLUGIN):
    name = distribution.replace("-", "_")
    (folder / f"{name}.py").write_text(module)
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    lines = [f"{key} = {name}:{value}" for key, value in points.items()]
    (info / "entry_points.txt").write_text("\n".join(["[calibri.rewards]", *lines]))
    return name


@pytest.fixture
def site(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


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
    made = {name: make_reward(name) for name in registry._REWARDS if name != "remote"}
    assert all(isinstance(reward, Reward) for reward in made.values())
    assert {name: reward.info.name for name, reward in made.items()} == {n: n for n in made}


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
    with pytest.raises(RewardError, match="cannot be made with"):
        make_reward("shapes", batch_size="many")

import json

import pytest
import torch

from calibri.errors import RewardError
from calibri.rewards.golden import check_reward, golden_pictures, stored_figures
from calibri.rewards.registry import make_reward
from calibri.rewards.reward import BatchedReward, ModelReward, RewardInfo
from calibri.shapes.scenes import parse_caption


class Brightness(BatchedReward):
    info = RewardInfo("brightness", "1")

    def score_batch(self, images, prompts):
        return images.float().mean((1, 2, 3))


@pytest.fixture
def store(tmp_path):
    """Write a file of figures of ``Brightness``."""

    def write(scores, *, variant="1", pictures=None):
        figures = {"pictures": pictures or golden_pictures().sha256, "scores": scores}
        path = tmp_path / "golden.json"
        path.write_text(json.dumps({"brightness": {variant: figures}}))
        return path

    return write


def brightness():
    pictures = golden_pictures()
    means = [image.double().mean().item() for image in pictures.images]
    return dict(zip(pictures.names, means, strict=True))


def test_pictures_are_the_same_every_time_whatever_the_global_seed():
    torch.manual_seed(1)
    first = golden_pictures()
    torch.manual_seed(2)
    assert golden_pictures().sha256 == first.sha256
    assert first.images.shape == (6, 3, 384, 384)
    assert first.images.dtype == torch.uint8


def test_every_prompt_is_a_caption_with_two_pictures_that_differ():
    pictures = golden_pictures(1)
    assert all(parse_caption(prompt) for prompt in pictures.prompts)
    assert {pictures.prompts.count(prompt) for prompt in pictures.prompts} == {2}
    assert len(pictures.images.flatten(1).unique(dim=0)) == len(set(pictures.names)) == 6


def test_an_enlarged_scene_is_the_scene_in_squares():
    small, large = golden_pictures(1).images[:4], golden_pictures(3).images[:4]
    blocks = large.view(4, 3, 24, 3, 24, 3)
    assert torch.equal(blocks, small[:, :, :, None, :, None].expand_as(blocks))


def test_the_gradient_spans_its_range_and_the_noise_is_noise():
    gradient, noise = golden_pictures().images[4:].float()
    assert [gradient.min().item(), gradient.max().item()] == [0, 255]
    assert (gradient[0].diff(dim=1) >= 0).all()
    assert (gradient[1].diff(dim=0) >= 0).all()
    assert abs(noise.mean().item() - 127.5) < 1


def test_the_digest_knows_the_prompts():
    import dataclasses

    pictures = golden_pictures(1)
    others = dataclasses.replace(pictures, prompts=pictures.prompts[::-1])
    assert others.sha256 != pictures.sha256


def test_differences_are_scores_minus_stored_figures(store):
    shifted = {name: value - i for i, (name, value) in enumerate(brightness().items())}
    path = store(dict(reversed(shifted.items())))
    found = check_reward(Brightness(), stored=path)
    assert found.differences == pytest.approx(range(6), abs=1e-3)


@pytest.mark.parametrize("change", [{"variant": "2"}, {"pictures": "of something else"}])
def test_figures_of_another_variant_or_other_pictures_are_not_compared(store, change):
    found = check_reward(Brightness(), stored=store(brightness(), **change))
    assert (found.stored, found.differences) == (None, None)
    assert found.scores == pytest.approx(tuple(brightness().values()), abs=1e-3)


def test_the_variant_of_published_files_can_be_named(store):
    path = store(brightness(), variant="published")
    found = check_reward(Brightness(), variant="published", stored=path)
    assert found.differences == pytest.approx([0.0] * 6, abs=1e-3)


def test_figures_that_do_not_name_the_pictures_are_refused(store):
    with pytest.raises(RewardError, match="stored figures are for relation and"):
        check_reward(Brightness(), stored=store({"relation": 1.0}))


@pytest.mark.parametrize("text", ["{", '{"x": {"1": {"scores": {}}}}', "[]"])
def test_a_damaged_file_of_figures_is_an_error_in_words(tmp_path, text):
    (tmp_path / "golden.json").write_text(text)
    with pytest.raises(RewardError, match="Cannot read the stored figures"):
        stored_figures(tmp_path / "golden.json")


@pytest.mark.parametrize("name", sorted(stored_figures()))
def test_what_this_installation_gives_is_what_is_stored(name):
    found = check_reward(make_reward(name))
    if found.info.variant not in found.stored_variants:
        pytest.skip(f"no figures of {name} for {found.info.variant}")
    assert found.differences == pytest.approx([0.0] * 6, abs=1e-5)


def test_the_right_scene_is_better_than_the_wrong_one_and_than_noise():
    found = check_reward(make_reward("shapes"))
    scores = dict(zip(found.pictures.names, found.scores, strict=True))
    assert scores["relation"] > 0.3 > scores["relation-reversed"]
    assert scores["count"] > 0.3 > scores["noise"]
    assert scores["single"] > 0.3 > scores["gradient"]


class Placed(ModelReward):
    info = RewardInfo("placed", "1")

    def load(self):
        return torch.nn.Identity()

    def score_batch(self, images, prompts):
        return torch.full((len(prompts),), float(self.device.type == "meta"))


def test_a_network_is_checked_where_it_is_told_to_run():
    assert set(check_reward(Placed).scores) == {0.0}
    assert set(check_reward(Placed, device="meta").scores) == {1.0}

import pytest
import torch
from torch import Tensor

from calibri.errors import RewardError
from calibri.rewards.reward import Reward
from calibri.rewards.shapes import ShapesReward
from calibri.shapes.render import render_batch
from calibri.shapes.scenes import Scene, Thing, caption, parse_caption, sample_prompts
from calibri.shapes.variations import DAMAGES, NEAR_MISSES


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return sample_prompts(200, 11, "held_out")


@pytest.fixture(scope="module")
def right(texts: list[str]) -> Tensor:
    scenes = [parse_caption(text) for text in texts]
    return render_batch(scenes, torch.Generator().manual_seed(0))


def test_it_is_a_reward() -> None:
    reward = ShapesReward()
    assert isinstance(reward, Reward)
    assert reward.info.name == "shapes"


def test_right_pictures_score_high_but_do_not_saturate(texts: list[str], right: Tensor) -> None:
    scores = ShapesReward().score(right, texts)
    assert 0.5 < scores.mean() < 0.9
    assert scores.min() > 0.3
    assert scores.max() < 1


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_right_ranks_above_a_scene_that_is_wrong_in_one_respect(
    name: str, texts: list[str], right: Tensor
) -> None:
    generator = torch.Generator().manual_seed(1)
    missed = [NEAR_MISSES[name](parse_caption(text), generator) for text in texts]
    rows = [i for i, scene in enumerate(missed) if scene is not None]
    wrong = render_batch([scene for scene in missed if scene is not None], generator)
    reward = ShapesReward()
    captions = [texts[i] for i in rows]
    ranked = reward.score(right[rows], captions) > reward.score(wrong, captions)
    assert ranked.float().mean() >= 0.98


@pytest.mark.parametrize("name", DAMAGES)
def test_right_ranks_above_a_damaged_picture(name: str, texts: list[str], right: Tensor) -> None:
    damaged = DAMAGES[name](right, torch.Generator().manual_seed(1))
    reward = ShapesReward()
    ranked = reward.score(right, texts) > reward.score(damaged, texts)
    assert ranked.float().mean() >= 0.98


def test_shuffled_captions_score_nearly_nothing(texts: list[str], right: Tensor) -> None:
    assert ShapesReward().score(right.roll(1, 0), texts).mean() < 0.05


def test_scores_stay_in_range_for_any_picture(texts: list[str]) -> None:
    generator = torch.Generator().manual_seed(0)
    flat = torch.arange(200).clamp(max=255).byte().view(-1, 1, 1, 1).expand(-1, 3, 24, 24)
    noise = torch.randint(256, (200, 3, 24, 24), generator=generator).byte()
    for images in (flat, noise):
        scores = ShapesReward().score(images, texts)
        assert scores.isfinite().all()
        assert ((scores >= 0) & (scores <= 1)).all()


def test_a_score_does_not_depend_on_the_batch(texts: list[str], right: Tensor) -> None:
    together = ShapesReward(batch_size=50).score(right, texts)
    apart = torch.cat([ShapesReward().score(right[i : i + 1], texts[i : i + 1]) for i in range(20)])
    torch.testing.assert_close(together[:20], apart, atol=1e-5, rtol=1e-4)


def test_the_score_is_continuous_in_damage(texts: list[str], right: Tensor) -> None:
    pictures = right.float() / 255
    noise = torch.randn(right.shape, generator=torch.Generator().manual_seed(0))
    means = [
        ShapesReward().score_float((pictures + level * noise).clamp(0, 1), texts).mean().item()
        for level in (0.0, 0.01, 0.02, 0.03, 0.05)
    ]
    assert means == sorted(means, reverse=True)
    assert means[1] > 0.5 * means[0]


def test_the_float_score_has_a_gradient_that_improves_it(texts: list[str], right: Tensor) -> None:
    reward = ShapesReward()
    generator = torch.Generator().manual_seed(0)
    noise = 0.02 * torch.randn(right.shape, generator=generator)
    images = (right / 255 + noise).clamp(0, 1).requires_grad_()
    before = reward.score_float(images, texts)
    (gradient,) = torch.autograd.grad(before.sum(), images)
    assert gradient.isfinite().all()
    assert (gradient.flatten(1).abs().amax(1) > 0).all()
    step = 0.05 * gradient / gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    after = reward.score_float(images + step, texts)
    assert (after > before).float().mean() > 0.95


def test_float_and_uint8_scores_agree(texts: list[str], right: Tensor) -> None:
    reward = ShapesReward()
    torch.testing.assert_close(
        reward.score(right, texts), reward.score_float(right.float() / 255, texts)
    )


def test_other_sizes_and_unknown_captions_are_refused() -> None:
    reward = ShapesReward()
    text = caption(Scene((Thing("small", "red", "circle"),)))
    with pytest.raises(RewardError, match="24 x 24"):
        reward.score(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), [text])
    with pytest.raises(RewardError, match="a photo of a dog"):
        reward.score(torch.zeros(1, 3, 24, 24, dtype=torch.uint8), ["a photo of a dog"])

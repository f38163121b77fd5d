"""The contract of a reward, as tests to import into a test module.

Give the three fixtures they ask for, and run pytest::

    from calibri.rewards.contract import *  # noqa: F403

    @pytest.fixture
    def reward():
        return MyReward()

    @pytest.fixture
    def images():  # uint8 (N, 3, H, W), N >= 4, not all alike
        ...

    @pytest.fixture
    def prompts():  # N texts; for a groupwise reward each at least twice, neighbours
        ...
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from calibri.errors import RewardError
from calibri.rewards.reward import PLAIN_NAME, Reward, RewardInfo

__all__ = [
    "test_info_says_what_a_number_means",
    "test_inputs_are_left_as_they_were",
    "test_more_images_than_prompts_are_refused",
    "test_no_images_give_no_scores",
    "test_scores_are_one_finite_float32_per_image_within_the_range",
    "test_scores_do_not_depend_on_the_neighbours_in_the_batch",
    "test_scores_follow_the_order_of_the_images",
    "test_scoring_twice_gives_the_same_scores",
]

# A kernel may take another path for another batch size; more than this is a fault.
_RTOL, _ATOL = 1e-3, 1e-4


def test_info_says_what_a_number_means(reward: Reward) -> None:
    """A plain name, a variant, a unit, and a range that is one."""
    info = reward.info
    assert isinstance(info, RewardInfo)
    assert PLAIN_NAME.fullmatch(info.name), f"'{info.name}' is no plain name"
    assert info.variant, "the variant must say what exactly makes the numbers"
    assert info.unit, "the unit must say how to read a number"
    assert info.range[0] < info.range[1]
    assert info.kind in ("pointwise", "groupwise", "corpus")


def test_scores_are_one_finite_float32_per_image_within_the_range(
    reward: Reward, images: Tensor, prompts: Sequence[str]
) -> None:
    """What ``score`` returns for good input."""
    scores = reward.score(images, prompts)
    assert scores.shape == (len(prompts),)
    assert scores.dtype == torch.float32
    assert scores.device.type == "cpu"
    assert torch.isfinite(scores).all()
    low, high = reward.info.range
    assert low <= float(scores.min())
    assert float(scores.max()) <= high


def test_scoring_twice_gives_the_same_scores(
    reward: Reward, images: Tensor, prompts: Sequence[str]
) -> None:
    """A search that is resumed relies on it."""
    assert torch.equal(reward.score(images, prompts), reward.score(images, prompts))


def test_scores_follow_the_order_of_the_images(
    reward: Reward, images: Tensor, prompts: Sequence[str]
) -> None:
    """Rows come back where they were put in, also from the last batch."""
    backward = reward.score(images.flip(0), prompts[::-1])
    forward = reward.score(images, prompts)
    torch.testing.assert_close(backward.flip(0), forward, rtol=_RTOL, atol=_ATOL)


def test_scores_do_not_depend_on_the_neighbours_in_the_batch(
    reward: Reward, images: Tensor, prompts: Sequence[str]
) -> None:
    """Candidates share batches, so an image's score must be its own, or its prompt's."""
    together = reward.score(images, prompts)
    alone = torch.empty_like(together)
    for rows in _parts(reward, prompts):
        alone[rows] = reward.score(images[rows], [prompts[i] for i in rows])
    torch.testing.assert_close(alone, together, rtol=_RTOL, atol=_ATOL)


def _parts(reward: Reward, prompts: Sequence[str]) -> list[list[int]]:
    if reward.info.kind == "groupwise":
        return [[i for i, p in enumerate(prompts) if p == one] for one in dict.fromkeys(prompts)]
    return [[i] for i in range(len(prompts))]


def test_inputs_are_left_as_they_were(
    reward: Reward, images: Tensor, prompts: Sequence[str]
) -> None:
    """The same images go to other rewards afterwards."""
    before, texts = images.clone(), list(prompts)
    reward.score(images, prompts)
    assert torch.equal(images, before)
    assert list(prompts) == texts


def test_no_images_give_no_scores(reward: Reward, images: Tensor) -> None:
    """Zero rows in, zero scores out."""
    assert reward.score(images[:0], []).shape == (0,)


def test_more_images_than_prompts_are_refused(
    reward: Reward, images: Tensor, prompts: Sequence[str]
) -> None:
    """Never a silent shift of scores to other images."""
    try:
        reward.score(images, prompts[:-1])
    except RewardError:
        return
    raise AssertionError("score() must raise RewardError when a prompt is missing")

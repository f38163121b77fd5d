import pytest
import torch

from calibri.rewards import contract
from calibri.rewards.reward import BatchedReward, RewardInfo

PROMPTS = ["a", "a", "b", "b", "c", "c"]
GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.randint(0, 256, (6, 3, 4, 4), generator=GENERATOR, dtype=torch.uint8)


class Good(BatchedReward):
    info = RewardInfo("good", "1", range=(0.0, 1.0), unit="brightness")

    def score_batch(self, images, prompts):
        return images.float().mean((1, 2, 3)) / 255


class Groups(Good):
    info = RewardInfo("groups", "1", range=(0.0, 1.0), unit="brightness", kind="groupwise")

    def score(self, images, prompts):
        self._check_inputs(images, prompts)
        values = images.float().mean((1, 2, 3)) / 255
        return torch.tensor(
            [values[[j for j, q in enumerate(prompts) if q == p]].mean() for p in prompts]
        )


class Nameless(Good):
    info = RewardInfo("two words", "1", unit="x")


class NoUnit(Good):
    info = RewardInfo("x", "1")


class OutOfRange(Good):
    def score_batch(self, images, prompts):
        return super().score_batch(images, prompts) + 1


class Nan(Good):
    def score_batch(self, images, prompts):
        return super().score_batch(images, prompts) * float("nan")


class Double(Good):
    def score(self, images, prompts):
        return super().score(images, prompts).double()


class Random(Good):
    generator = torch.Generator().manual_seed(0)

    def score_batch(self, images, prompts):
        return torch.rand(len(prompts), generator=self.generator)


class Sorted(Good):
    def score_batch(self, images, prompts):
        return super().score_batch(images, prompts).sort().values


class Standardised(Good):
    def score_batch(self, images, prompts):
        scores = super().score_batch(images, prompts)
        return (scores - scores.mean() + 1).clamp(0, 1)


class Overwriting(Good):
    def score_batch(self, images, prompts):
        scores = super().score_batch(images, prompts)
        images.zero_()
        return scores


class NotEmpty(Good):
    def score(self, images, prompts):
        return super().score(images, prompts) if prompts else torch.zeros(1)


class Lenient(Good):
    def score(self, images, prompts):
        return super().score(images[: len(prompts)], prompts)


CHECKS = {name: getattr(contract, name) for name in contract.__all__}


def failing(reward):
    wanted = {"images": lambda: IMAGES.clone(), "prompts": lambda: list(PROMPTS)}
    failed = set()
    for name, check in CHECKS.items():
        names = check.__code__.co_varnames[1 : check.__code__.co_argcount]
        try:
            check(reward, **{key: wanted[key]() for key in names})
        except AssertionError:
            failed.add(name.removeprefix("test_"))
    return failed


@pytest.mark.parametrize("make", [Good, Groups])
def test_a_good_reward_passes(make):
    assert failing(make()) == set()


@pytest.mark.parametrize(
    ("make", "check"),
    [
        (Nameless, "info_says_what_a_number_means"),
        (NoUnit, "info_says_what_a_number_means"),
        (OutOfRange, "scores_are_one_finite_float32_per_image_within_the_range"),
        (Nan, "scores_are_one_finite_float32_per_image_within_the_range"),
        (Double, "scores_are_one_finite_float32_per_image_within_the_range"),
        (Random, "scoring_twice_gives_the_same_scores"),
        (Sorted, "scores_follow_the_order_of_the_images"),
        (Standardised, "scores_do_not_depend_on_the_neighbours_in_the_batch"),
        (Overwriting, "inputs_are_left_as_they_were"),
        (NotEmpty, "no_images_give_no_scores"),
        (Lenient, "more_images_than_prompts_are_refused"),
    ],
)
def test_each_fault_is_found(make, check):
    assert check in failing(make())


def test_every_check_is_exported():
    assert set(contract.__all__) == {n for n in vars(contract) if n.startswith("test_")}

import pytest
import torch
from torch import nn

from calibri.errors import RewardError
from calibri.memory import is_out_of_memory
from calibri.rewards.reward import BatchedReward, ModelReward, PromptCache, Reward, RewardInfo


def pictures(count, size=4):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)


class Brightness(BatchedReward):
    info = RewardInfo("brightness", "mean of all channels", range=(0.0, 255.0))

    def __init__(self, batch_size=4, fits=10**9, error=None):
        super().__init__(batch_size)
        self.fits, self.error, self.calls = fits, error, []

    def score_batch(self, images, prompts):
        self.calls.append(len(prompts))
        if len(prompts) > self.fits:
            raise self.error
        return images.float().mean(dim=(1, 2, 3))


def expected(images):
    return torch.tensor([sum(i.flatten().tolist()) / i.numel() for i in images])


CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
CPU = RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes.")
LINUX = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.")


def test_the_protocol_is_satisfied():
    assert isinstance(Brightness(), Reward)
    assert not isinstance(object(), Reward)


@pytest.mark.parametrize("count", [0, 1, 4, 9])
def test_batches_give_one_score_per_image_in_order(count):
    reward, images = Brightness(batch_size=4), pictures(count)
    scores = reward.score(images, ["x"] * count)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, expected(images).float().reshape(count))
    assert sum(reward.calls) == count
    assert max(reward.calls, default=0) <= 4


@pytest.mark.parametrize("error", [CUDA, CPU, LINUX, MemoryError()], ids=lambda e: str(e)[:12])
@pytest.mark.parametrize("fits", [1, 2, 3, 5])
def test_a_batch_that_does_not_fit_is_halved_and_no_image_is_lost(error, fits):
    reward, images = Brightness(batch_size=16, fits=fits, error=error), pictures(21)
    torch.testing.assert_close(reward.score(images, ["x"] * 21), expected(images))
    assert 1 <= reward.batch_size <= fits
    reward.calls.clear()
    reward.score(images, ["x"] * 21)
    assert max(reward.calls) <= fits


def test_a_real_allocation_that_fails_counts_as_out_of_memory():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 55, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_one_image_that_does_not_fit_is_an_error_in_words():
    with pytest.raises(RewardError, match="a single image of 4 x 4"):
        Brightness(batch_size=8, fits=0, error=CUDA).score(pictures(5), ["x"] * 5)


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    reward = Brightness(batch_size=8, fits=2, error=RuntimeError("shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="multiplied"):
        reward.score(pictures(5), ["x"] * 5)
    assert reward.calls == [5]


@pytest.mark.parametrize(
    ("images", "prompts", "words"),
    [
        (pictures(3), ["x"] * 2, "3 images for 2 prompts"),
        (pictures(2).float(), ["x"] * 2, "torch.float32"),
        (pictures(2)[:, :1], ["x"] * 2, r"\(2, 1, 4, 4\)"),
        (pictures(2)[0], ["x"] * 3, r"\(3, 4, 4\)"),
    ],
)
def test_inputs_of_another_kind_are_refused_before_scoring(images, prompts, words):
    reward = Brightness()
    with pytest.raises(RewardError, match=words):
        reward.score(images, prompts)
    assert reward.calls == []


def test_a_reward_that_loses_images_is_refused():
    class Short(Brightness):
        def score_batch(self, images, prompts):
            return torch.zeros(len(prompts) - 1)

    with pytest.raises(RewardError, match=r"shape \(2,\) for 3 images"):
        Short().score(pictures(3), ["x"] * 3)


def test_scores_that_are_not_finite_pass_as_failed_images():
    class Failing(Brightness):
        def score_batch(self, images, prompts):
            return torch.tensor([float("nan"), 1.0])

    scores = Failing().score(pictures(2), ["x"] * 2)
    assert scores.isnan().tolist() == [True, False]


@pytest.mark.parametrize("size", [0, -1])
def test_a_batch_size_below_one_is_refused(size):
    with pytest.raises(RewardError, match="at least 1"):
        Brightness(batch_size=size)


class Linear(ModelReward):
    info = RewardInfo("linear", "1")
    loads = 0

    def load(self):
        self.loads += 1
        return nn.Linear(3, 1)

    def score_batch(self, images, prompts):
        assert torch.is_inference_mode_enabled()
        return self.model(images.to(self.dtype).mean((2, 3)))[:, 0]


def test_a_network_is_loaded_once_on_first_use_and_again_after_closing():
    reward = Linear(dtype=torch.float64)
    assert reward.loads == 0
    reward.score(pictures(5), ["x"] * 5)
    reward.score(pictures(5), ["x"] * 5)
    assert reward.loads == 1
    assert reward.model.weight.dtype == torch.float64
    assert not reward.model.training
    reward.close()
    reward.score(pictures(1), ["x"])
    assert reward.loads == 2


def test_weights_loaded_while_scoring_can_take_part_in_a_gradient():
    reward = Linear()
    reward.score(pictures(1), ["x"])
    x = torch.zeros(1, 3, requires_grad=True)
    reward.model(x).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, reward.model.weight)


def test_moving_before_loading_loads_there():
    assert Linear().to("meta").model.weight.device.type == "meta"


def test_prompts_are_encoded_once_each_and_alone():
    asked = []

    def encode(text):
        asked.append(text)
        return torch.tensor([float(len(text)), 1.0])

    cache = PromptCache(encode)
    assert cache(["a", "bbb", "a"]).tolist() == [[1, 1], [3, 1], [1, 1]]
    assert cache(["bbb", "cc"]).tolist() == [[3, 1], [2, 1]]
    assert asked == ["a", "bbb", "cc"]
    cache.clear()
    assert cache(["a"]).tolist() == [[1, 1]]
    assert asked == ["a", "bbb", "cc", "a"]


def test_the_cache_forgets_the_least_recently_used():
    asked = []

    def encode(text):
        asked.append(text)
        return torch.zeros(1)

    cache = PromptCache(encode, max_prompts=2)
    cache(["a", "b", "a", "c", "a", "b"])
    assert asked == ["a", "b", "c", "b"]


def test_cached_embeddings_are_no_inference_tensors():
    weight = torch.ones(2, requires_grad=True)
    cache = PromptCache(lambda text: weight * len(text))
    with torch.inference_mode():
        cache(["ab"])
    (cache(["ab"]) * weight).sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [2, 2]

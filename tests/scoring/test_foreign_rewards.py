"""Anybody's reward: what it may return, how it may fail, and that nothing wrong is recorded."""

import numpy as np
import pytest
import torch

from calibri.coefficients.space import SearchSpace
from calibri.config import validate_config
from calibri.errors import RewardError
from calibri.pipelines.loading import load_pipeline
from calibri.prompts.files import make_prompts
from calibri.results import DIVERSITY, FEATURES, Fidelity
from calibri.rewards.reward import RewardInfo
from calibri.sampling.sampler import Noise
from calibri.scoring.backends.executors import Alternating, InOrder, Overlapped
from calibri.scoring.backends.local import Local
from calibri.scoring.bench import Bench
from calibri.scoring.device_swap import share_device
from calibri.scoring.evaluator import Evaluator
from calibri.scoring.ledger import Ledger, MemoryRecords
from calibri.scoring.measures import Measures

A, B = make_prompts(["a red circle", "a blue square"])
NOISES = [Noise(A, 1), Noise(A, 2), Noise(B, 3), Noise(B, 4)]
FULL = Fidelity(num_inference_steps=2)


class Foreign:
    """A reward of another package: the mean brightness, or whatever a test makes of it."""

    def __init__(self, change=lambda scores: scores, kind="pointwise"):
        self.info = RewardInfo("foreign", "1", unit="brightness", kind=kind)
        self.change, self.seen = change, []

    def score(self, images, prompts):
        self.seen.append(images.clone())
        return self.change(images.float().mean(dim=(1, 2, 3)))

    def features(self, images):
        self.seen.append(images.clone())
        return images.float()[:, :, 0, 0]

    def reference_features(self, prompts, seed):
        return None


@pytest.fixture(scope="module")
def pipe():
    return load_pipeline("shapes", device="cpu")


@pytest.fixture
def bench_with(pipe):
    made = []

    def make(reward, policy="retry"):
        sampling = {"num_inference_steps": 2, "batch_size": 8}
        config = validate_config(
            {"device": "cpu", "sampling": sampling, "rewards": {"on_failure": policy}}
        )
        made.append(Bench(config, Measures({"foreign": reward}), pipe))
        return made[-1]

    yield make
    for bench in made:
        bench.close()


def executors(bench):
    swap = share_device(bench.pipe, [], torch.device("cpu"))
    return [InOrder(bench), Overlapped(bench), Alternating(bench, swap)]


def evaluator(bench, records, executor=None):
    return Evaluator(Local(bench, executor), 8, FULL, Ledger(records))


def candidates(bench, count=2):
    space = SearchSpace.build(bench.scaler.sites, "block")
    rng = np.random.default_rng(0)
    return [space.coefficients(space.start + 0.1 * rng.normal(size=7)) for _ in range(count)]


def quit_at_once(scores):
    raise SystemExit(0)


def divide_by_zero(scores):
    return scores / (1 // 0)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda scores: scores[:-1], r"shape \(7,\) for 8 images"),
        (lambda scores: torch.cat([scores, scores[:1]]), r"shape \(9,\) for 8 images"),
        (lambda scores: scores[:, None], r"shape \(8, 1\) for 8 images"),
        (lambda scores: scores[:, None].repeat(1, 2), r"shape \(8, 2\)"),
        (lambda scores: scores.mean(), r"shape \(\)"),
        (lambda scores: scores.tolist(), "returned list in place of 8 numbers"),
        (lambda scores: scores > 0, "returned torch.bool"),
        (lambda scores: scores.to(torch.complex64), "returned torch.complex64"),
        (lambda scores: None, "returned NoneType"),
        (divide_by_zero, "failed with ZeroDivisionError: .* a fault of the reward"),
        (quit_at_once, "failed with SystemExit: 0"),
    ],
)
@pytest.mark.parametrize("kind", [0, 1, 2], ids=["in order", "overlapped", "alternating"])
def test_what_is_no_score_is_refused_before_it_is_recorded(bench_with, change, says, kind):
    bench, records = bench_with(Foreign(change)), MemoryRecords()
    judge = evaluator(bench, records, executors(bench)[kind])
    with pytest.raises(RewardError, match=f"'foreign' .*{says}"):
        judge.score("search", 0, candidates(bench), NOISES, ("foreign",))
    assert records.records == []


def test_whole_numbers_and_half_precision_are_scores(bench_with):
    for dtype in (torch.int64, torch.float16, torch.float64):
        bench = bench_with(Foreign(lambda scores, dtype=dtype: scores.to(dtype)))
        judge = evaluator(bench, MemoryRecords())
        scores = judge.score("search", 0, candidates(bench), NOISES, ("foreign",))["foreign"]
        assert scores.dtype == np.float64
        assert np.isfinite(scores).all()
        bench.close()


class Overflowing:
    """A decoder whose images of one prompt and seed are not numbers."""

    def __init__(self, monkeypatch, bench, row):
        self.decode = bench.pipe.vae.decode
        self.row = row
        monkeypatch.setattr(bench.pipe.vae, "decode", self)

    def __call__(self, latents, **options):
        decoded = self.decode(latents, **options)
        decoded[0][self.row] = torch.nan
        return decoded


@pytest.mark.parametrize("kind", [0, 1, 2], ids=["in order", "overlapped", "alternating"])
def test_a_broken_image_is_a_failed_image_that_no_reward_sees(bench_with, monkeypatch, kind):
    reward = Foreign()
    bench, records = bench_with(reward, "drop"), MemoryRecords()
    judge = evaluator(bench, records, executors(bench)[kind])
    whole = judge.score("a", 0, candidates(bench, 1), NOISES, ("foreign", DIVERSITY, FEATURES))
    Overflowing(monkeypatch, bench, 1)
    reward.seen.clear()
    found = judge.score("b", 0, candidates(bench, 1), NOISES, ("foreign", DIVERSITY, FEATURES))
    # Its prompt's other image has nothing left to be compared with, so both are dropped.
    assert np.isnan(found["foreign"]).tolist() == [[True, True, False, False]]
    for name, values in found.items():
        np.testing.assert_array_equal(values[:, 2:], whole[name][:, 2:])
    assert [len(images) for images in reward.seen] == [3, 3]
    assert all((images > 0).flatten(1).any(dim=1).all() for images in reward.seen)


@pytest.mark.parametrize("policy", ["retry", "fail"])
def test_a_broken_image_stops_a_run_that_drops_nothing(bench_with, monkeypatch, policy):
    # Black would be the best picture there is.
    bench = bench_with(Foreign(lambda scores: -scores), policy)
    Overflowing(monkeypatch, bench, 0)
    records = MemoryRecords()
    with pytest.raises(RewardError, match="the image itself was not finite"):
        evaluator(bench, records).score("a", 0, candidates(bench), NOISES, ("foreign",))
    assert records.records == []


def test_a_candidate_of_which_every_image_is_broken_has_no_score(bench_with, monkeypatch):
    bench = bench_with(Foreign(), "drop")
    Overflowing(monkeypatch, bench, slice(None))
    with pytest.raises(RewardError, match="Each of the 4"):
        evaluator(bench, MemoryRecords()).score(
            "a", 0, candidates(bench, 1), NOISES, ("foreign", FEATURES)
        )


def test_scales_that_overflow_give_broken_images_and_not_black_ones(bench_with):
    bench = bench_with(Foreign(), "drop")
    space = SearchSpace.build(bench.scaler.sites, "block")
    huge = space.coefficients(np.full(space.size, 1e38))
    judge = evaluator(bench, MemoryRecords())
    with pytest.raises(RewardError, match="Each of the 4"):
        judge.score("a", 0, [huge], NOISES, ("foreign",))

"""What happens to images that a reward cannot score."""

import numpy as np
import pytest
import torch

from calibri.coefficients.space import SearchSpace
from calibri.errors import ConfigError, RewardError
from calibri.pipelines.loading import load_pipeline
from calibri.prompts.files import make_prompts
from calibri.results import Fidelity
from calibri.rewards.reward import BatchedReward, RewardInfo
from calibri.runs.calibrate import calibrate
from calibri.runs.journal import Journal
from calibri.runs.session import Session
from calibri.sampling.sampler import Noise
from calibri.scoring.backends.local import Local
from calibri.scoring.evaluator import Evaluator, complete
from calibri.scoring.ledger import Ledger, MemoryRecords
from calibri.scoring.measures import Grouped
from tests.fakes import FunctionMeasures, bench_of, brightness, corner
from tests.tiny import tiny_run

A, B, C = make_prompts(["a red circle", "a blue square", "a green cross"])
NOISES = [Noise(A, 5), Noise(B, 6), Noise(C, 7)]


@pytest.fixture(scope="module")
def setup():
    bench = bench_of(load_pipeline("shapes", device="cpu"))
    space = SearchSpace.build(bench.scaler.sites, "block")
    rng = np.random.default_rng(0)
    candidates = [space.coefficients(space.start + 0.3 * rng.normal(size=7)) for _ in range(3)]
    return bench, candidates


class Judge(Evaluator):
    """An evaluator whose measures are functions, under one policy."""

    def __init__(self, bench, policy, records=None, batch_size=64):
        rewards = bench.config.rewards.model_copy(update={"on_failure": policy})
        bench.config = bench.config.model_copy(update={"rewards": rewards})
        self.bench = bench
        ledger = Ledger(MemoryRecords() if records is None else records)
        super().__init__(Local(bench), batch_size, Fidelity(num_inference_steps=2), ledger)


def evaluator(setup, policy, records=None, batch_size=64):
    return Judge(setup[0], policy, records, batch_size)


class Flaky:
    """Fails on chosen rows of its first calls."""

    def __init__(self, rows, calls=1, value=float("nan"), measure=brightness):
        self.rows, self.calls, self.value, self.measure = rows, calls, value, measure
        self.sizes = []

    def __call__(self, images, prompts):
        scores = self.measure(images, prompts).clone()
        if len(self.sizes) < self.calls:
            scores[self.rows] = self.value
        self.sizes.append(len(prompts))
        return scores


def score(judge, candidates, measures, noises=NOISES):
    judge.bench.measures = FunctionMeasures(measures)
    return judge.score("search", 0, candidates, noises, tuple(measures))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_retry_scores_the_failed_rows_once_more_and_no_others(setup, value):
    expected = score(evaluator(setup, "fail"), setup[1], {"m": brightness})["m"]
    flaky = Flaky([4, 8], value=value)
    judge = evaluator(setup, "retry")
    found = score(judge, setup[1], {"m": flaky})["m"]
    np.testing.assert_allclose(found, expected, atol=0.05)
    assert flaky.sizes == [9, 2]
    assert judge.dropped == 0


def test_retry_gives_up_after_the_second_failure(setup):
    records = MemoryRecords()
    with pytest.raises(RewardError, match=r"'m' returned nan .* \(1 of 9"):
        score(evaluator(setup, "retry", records), setup[1], {"m": Flaky([0], calls=2)})
    assert records.records == []


def test_retry_covers_every_measure_of_the_row(setup):
    expected = score(evaluator(setup, "fail"), setup[1], {"m": brightness, "f": corner})
    measures = {"m": Flaky([2]), "f": Flaky([5], measure=corner)}
    found = score(evaluator(setup, "retry"), setup[1], measures)
    for name in measures:
        np.testing.assert_allclose(found[name], expected[name], atol=1.0)
    assert measures["m"].sizes == [9, 2]


def test_fail_does_not_try_again(setup):
    flaky = Flaky([4])
    with pytest.raises(RewardError, match="'a blue square'"):
        score(evaluator(setup, "fail"), setup[1], {"m": flaky})
    assert flaky.sizes == [9]


def test_drop_leaves_the_noise_out_for_all_candidates_and_measures(setup):
    measures = {"m": brightness, "f": corner}
    expected = score(evaluator(setup, "fail"), setup[1], measures)
    # Row 4 is candidate 1 on noise 1.
    judge = evaluator(setup, "drop")
    found = score(judge, setup[1], {"m": Flaky([4]), "f": corner})
    for name in measures:
        assert np.isnan(found[name][:, 1]).all()
        assert np.array_equal(found[name][:, [0, 2]], expected[name][:, [0, 2]])
    assert judge.dropped == 1


def test_dropping_everything_is_an_error(setup):
    with pytest.raises(RewardError, match="Each of the 3"):
        score(evaluator(setup, "drop"), setup[1], {"m": Flaky([0, 4, 8])})


def test_dropped_scores_are_read_back_from_the_journal(setup, tmp_path):
    path = tmp_path / "journal.jsonl"
    with Journal.open(path) as journal:
        measures = {"m": Flaky([4]), "f": Flaky([0], measure=corner)}
        first = score(evaluator(setup, "drop", journal), setup[1], measures)
    with Journal.open(path) as journal:
        again = evaluator(setup, "drop", journal)
        found = score(again, setup[1], {"m": None, "f": None})
    assert all(np.array_equal(first[n], found[n], equal_nan=True) for n in first)
    assert again.dropped == 2


def group_size(images, prompts):
    return torch.tensor([float(prompts.count(prompt)) for prompt in prompts])


def test_a_grouped_measure_sees_one_candidate_at_a_time(setup):
    noises = [Noise(A, 1), Noise(A, 2), Noise(B, 3)]
    grouped = score(evaluator(setup, "fail"), setup[1], {"g": Grouped(group_size)}, noises)["g"]
    assert grouped.tolist() == [[2, 2, 1]] * 3
    mixed = score(evaluator(setup, "fail"), setup[1], {"g": group_size}, noises)["g"]
    assert mixed.tolist() == [[6, 6, 3]] * 3


def test_a_retried_group_is_complete(setup):
    noises = [Noise(A, 1), Noise(A, 2), Noise(B, 3)]
    measure = Flaky([0], measure=group_size)
    found = score(evaluator(setup, "retry"), setup[1], {"g": Grouped(measure)}, noises)["g"]
    assert found.tolist() == [[2, 2, 1]] * 3
    assert measure.sizes == [3, 3, 3, 2]


def test_complete_keeps_paired_prompts():
    nan = np.nan
    a, b = complete(
        np.array([[1.0, 2], [3, nan], [5, 6], [7, 8]]),
        np.array([[1.0, 2], [3, 4], [nan, 6], [7, 8]]),
    )
    assert a.tolist() == b.tolist() == [[1, 2], [7, 8]]
    with pytest.raises(RewardError, match="1 of 2 prompts"):
        complete(np.array([1.0, nan]))


class Picky(BatchedReward):
    """Cannot score the pictures of some prompts."""

    info = RewardInfo("picky", "1", unit="brightness")

    def score_batch(self, images, prompts):
        scores = brightness(images, prompts)
        bad = torch.tensor([hash_of(prompt) % 5 == 0 for prompt in prompts])
        return torch.where(bad, torch.nan, scores)


def hash_of(text):
    return sum(map(ord, text))


TINY = {
    "sampling.batch_size": 16,
    "search.generations": 2,
    "search.bucket_size": 8,
    "search.num_validation_prompts": 16,
    "rewards.on_failure": "drop",
    "evaluation.num_prompts": 16,
}


def test_a_run_that_drops_counts_what_it_left_out(tmp_path):
    config = tiny_run(TINY)
    summary = calibrate(config, rewards=[Picky()], name="dropping", runs=tmp_path)
    session = Session(config)
    bad = [hash_of(p.text) % 5 == 0 for p in session.prompts.test]
    assert 0 < sum(bad) < 14
    assert summary.search.dropped > 0
    assert summary.evaluation.dropped == 2 * 2 * sum(bad)
    assert summary.evaluation.settings[0].scores["picky"].n == 16 - sum(bad)
    assert all(np.isfinite(g.mean) for g in summary.search.generations)


def test_options_of_a_reward_that_is_not_used_are_refused():
    config = tiny_run(rewards__options={"hpsv3": {"device": "cpu"}})
    with pytest.raises(ConfigError, match="options for hpsv3"):
        Session(config)


def test_options_reach_the_reward():
    config = tiny_run(rewards__options={"shapes": {"batch_size": 3}})
    assert Session(config).bench.measures.rewards["shapes"].batch_size == 3

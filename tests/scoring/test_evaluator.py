import numpy as np
import pytest
import torch

from calibri.coefficients.space import SearchSpace
from calibri.config import SamplingConfig
from calibri.errors import RewardError, RunError
from calibri.pipelines.loading import load_pipeline
from calibri.prompts.files import make_prompts
from calibri.results import Fidelity
from calibri.runs.journal import Journal
from calibri.sampling.sampler import Noise, Sampler
from calibri.sampling.scales.scaler import Scaler
from calibri.scoring.backends.local import InProcess
from calibri.scoring.evaluator import Evaluator, Ledger, MemoryRecords

FULL = Fidelity(num_inference_steps=2)
NOISES = [
    Noise(prompt, 5 + i)
    for i, prompt in enumerate(make_prompts(["a red circle", "a blue square", "a green cross"]))
]


def brightness(images, prompts):
    return images.float().mean(dim=(1, 2, 3))


def corner(images, prompts):
    return images.float()[:, :, 0, 0]


@pytest.fixture(scope="module")
def setup():
    pipe = load_pipeline("shapes", device="cpu")
    scaler = Scaler(pipe.transformer)
    space = SearchSpace.build(scaler.sites, "block")
    rng = np.random.default_rng(0)
    candidates = [space.coefficients(space.start + 0.3 * rng.normal(size=7)) for _ in range(3)]
    return pipe, scaler, candidates


def make(setup, records, batch_size=64, on_unit=lambda images, new: None):
    pipe, scaler, _ = setup
    config = SamplingConfig(num_inference_steps=2, batch_size=batch_size)
    backend = InProcess(Sampler(pipe, config), scaler, "retry")
    return Evaluator(backend, batch_size, FULL, Ledger(records), on_unit)


def score(evaluator, candidates, measures=None, noises=NOISES):
    return evaluator.score("search", 0, candidates, noises, measures or {"m": brightness})


def test_candidates_in_one_batch_equal_one_at_a_time(setup):
    _, scaler, candidates = setup
    together = score(make(setup, MemoryRecords()), candidates)["m"]
    assert together.shape == (3, 3)
    for row, candidate in enumerate(candidates):
        alone = score(make(setup, MemoryRecords(), batch_size=1), [candidate])["m"]
        np.testing.assert_allclose(alone[0], together[row], atol=0.05)
    assert np.ptp(together, axis=0).min() > 0.5


def test_feature_measures_keep_their_shape(setup):
    scores = score(make(setup, MemoryRecords(), batch_size=2), setup[2], {"f": corner})["f"]
    assert scores.shape == (3, 3, 3)


def test_finished_units_are_read_back_bit_for_bit_and_never_computed_again(setup, tmp_path):
    measures = {"m": brightness, "f": corner}
    with Journal.open(tmp_path / "journal.jsonl") as journal:
        first = score(make(setup, journal, batch_size=4), setup[2], measures)
    events = []
    with Journal.open(tmp_path / "journal.jsonl") as journal:
        again = make(setup, journal, 4, lambda images, new: events.append((images, new)))
        scores = score(again, setup[2], {"m": None, "f": None})
    assert events == [(4, False), (4, False), (1, False)]
    assert all(np.array_equal(first[name], scores[name]) for name in measures)
    assert again.images == 9


def test_only_missing_units_are_computed(setup):
    records = MemoryRecords()
    expected = score(make(setup, records, batch_size=4), setup[2])["m"]
    records.records.pop(1)
    events = []
    evaluator = make(setup, records, 4, lambda images, new: events.append(new))
    assert np.array_equal(score(evaluator, setup[2])["m"], expected)
    assert events == [False, False, True]  # what is known is counted first


def test_a_journal_of_other_candidates_is_refused(setup):
    records = MemoryRecords()
    score(make(setup, records), setup[2])
    with pytest.raises(RunError, match="other candidates"):
        score(make(setup, records), setup[2][::-1])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_scores_that_are_not_finite_stop_the_run_and_name_the_prompt(setup, bad):
    def broken(images, prompts):
        scores = brightness(images, prompts)
        scores[[i for i, p in enumerate(prompts) if p == "a blue square"]] = bad
        return scores

    records = MemoryRecords()
    with pytest.raises(RewardError, match=r"'broken' .* 'a blue square' \(3 of 9"):
        score(make(setup, records), setup[2], {"broken": broken})
    assert records.records == []


def test_units_finished_before_a_failure_are_kept(setup):
    def broken(images, prompts):
        return torch.full((len(prompts),), float("nan") if "a green cross" in prompts else 1.0)

    records = MemoryRecords()
    with pytest.raises(RewardError):
        score(make(setup, records, batch_size=2), setup[2], {"broken": broken})
    assert len(records.records) == 1

import numpy as np
import pytest
import torch

from calibri.coefficients.space import SearchSpace
from calibri.errors import RewardError, RunError
from calibri.pipelines.loading import load_pipeline
from calibri.results import Fidelity
from calibri.runs.journal import Journal
from calibri.scoring.backends.local import Local
from calibri.scoring.evaluator import Asked, Evaluator
from calibri.scoring.ledger import Ledger, MemoryRecords
from calibri.scoring.units import make_unit
from tests.fakes import Foresighted, FunctionMeasures, Idle, bench_of, brightness, corner
from tests.scoring.sample_units import NOISES

FULL = Fidelity(num_inference_steps=2)


@pytest.fixture(scope="module")
def setup():
    bench = bench_of(load_pipeline("shapes", device="cpu"))
    space = SearchSpace.build(bench.scaler.sites, "block")
    rng = np.random.default_rng(0)
    candidates = [space.coefficients(space.start + 0.3 * rng.normal(size=7)) for _ in range(3)]
    return bench, candidates


def make(setup, records, batch_size=64, on_unit=lambda images, new: None, **functions):
    bench, _ = setup
    bench.measures = FunctionMeasures({"m": brightness, "f": corner} | functions)
    return Evaluator(Local(bench), batch_size, FULL, Ledger(records), on_unit)


def score(evaluator, candidates, measures=("m",), noises=NOISES):
    return evaluator.score("search", 0, candidates, noises, measures)


def test_candidates_in_one_batch_equal_one_at_a_time(setup):
    _, candidates = setup
    together = score(make(setup, MemoryRecords()), candidates)["m"]
    assert together.shape == (3, 3)
    for row, candidate in enumerate(candidates):
        alone = score(make(setup, MemoryRecords(), batch_size=1), [candidate])["m"]
        np.testing.assert_allclose(alone[0], together[row], atol=0.05)
    assert np.ptp(together, axis=0).min() > 0.5


class Smaller:
    """A back-end on which fewer images fit with every unit."""

    def run(self, units, ahead=()):
        for number, (index, unit) in enumerate(units):
            scores = {name: [1.0] * len(unit.rows) for name in unit.measures}
            yield index, {"scores": scores, "batch_size": 2 - min(number, 1)}


def test_a_batch_that_does_not_fit_is_said_once_and_again_from_the_journal(setup):
    records, said = MemoryRecords(), []
    for backend in (Smaller(), Idle()):
        evaluator = Evaluator(backend, 3, FULL, Ledger(records), on_message=said.append)
        score(evaluator, setup[1])
        assert evaluator.batch_size == 1
    assert [text.split(" images")[0] for text in said] == ["Only 2", "Only 1"] * 2


def test_feature_measures_keep_their_shape(setup):
    scores = score(make(setup, MemoryRecords(), batch_size=2), setup[1], ("f",))["f"]
    assert scores.shape == (3, 3, 3)


def test_finished_units_are_read_back_bit_for_bit_and_never_computed_again(setup, tmp_path):
    measures = ("m", "f")
    with Journal.open(tmp_path / "journal.jsonl") as journal:
        first = score(make(setup, journal, batch_size=4), setup[1], measures)
    events = []
    with Journal.open(tmp_path / "journal.jsonl") as journal:
        again = make(setup, journal, 4, lambda images, new: events.append((images, new)))
        scores = score(again, setup[1], measures)
    assert events == [(4, False), (4, False), (1, False)]
    assert all(np.array_equal(first[name], scores[name]) for name in measures)
    assert again.images == 9


def test_only_missing_units_are_computed(setup):
    records = MemoryRecords()
    expected = score(make(setup, records, batch_size=4), setup[1])["m"]
    records.records.pop(1)
    events = []
    evaluator = make(setup, records, 4, lambda images, new: events.append(new))
    assert np.array_equal(score(evaluator, setup[1])["m"], expected)
    assert events == [False, False, True]  # what is known is counted first


def test_a_journal_of_other_candidates_is_refused(setup):
    records = MemoryRecords()
    score(make(setup, records), setup[1])
    with pytest.raises(RunError, match="other candidates"):
        score(make(setup, records), setup[1][::-1])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_scores_that_are_not_finite_stop_the_run_and_name_the_prompt(setup, bad):
    def broken(images, prompts):
        scores = brightness(images, prompts)
        scores[[i for i, p in enumerate(prompts) if p == "a blue square"]] = bad
        return scores

    records = MemoryRecords()
    with pytest.raises(RewardError, match=r"'broken' .* 'a blue square' \(3 of 9"):
        score(make(setup, records, broken=broken), setup[1], ("broken",))
    assert records.records == []


def test_units_finished_before_a_failure_are_kept(setup):
    def broken(images, prompts):
        return torch.full((len(prompts),), float("nan") if "a green cross" in prompts else 1.0)

    records = MemoryRecords()
    with pytest.raises(RewardError):
        score(make(setup, records, batch_size=2, broken=broken), setup[1], ("broken",))
    assert len(records.records) == 1


def test_images_to_look_at_come_through_the_same_backend_and_are_not_kept(setup):
    bench, candidates = setup
    records = MemoryRecords()
    evaluator = make(setup, records, batch_size=2)
    images = evaluator.sample(candidates[0], NOISES)
    unit = make_unit(candidates[:1], [(0, noise) for noise in NOISES], (), FULL, "images")
    assert torch.equal(images, bench.sample(unit, unit.rows).pixels)
    assert images.dtype == torch.uint8
    assert (records.records, evaluator.images) == ([], 0)


def test_an_evaluator_closes_its_backend():
    closed = []

    class Backend(Idle):
        def close(self):
            closed.append(True)

    with Evaluator(Backend(), 4, FULL, Ledger(MemoryRecords())):
        pass
    assert closed == [True]


class Telling:
    """A back-end of two workers, one of which is lost over the first unit; an image fails."""

    def run(self, units, ahead=()):
        for number, (index, unit) in enumerate(units):
            scores = {name: [1.0] * len(unit.rows) for name in unit.measures}
            how = {"worker": f"cuda:{number % 2}", "busy": 2.0}
            if number == 0:
                how |= {"attempts": 3, "retried": 1}
                scores["m"][0] = scores["f"][0] = scores["f"][1] = None
            yield index, {"scores": scores, **how}


def test_how_a_unit_was_computed_is_told_once_and_kept(setup):
    records, told = MemoryRecords(), []
    for backend in (Telling(), Idle()):
        evaluator = Evaluator(backend, 4, FULL, Ledger(records), on_computed=told.append)
        score(evaluator, setup[1], ("m", "f"))
    assert [unit.worker for unit in told] == ["cuda:0", "cuda:1", "cuda:0"]
    assert [unit.images for unit in told] == [4, 4, 1]
    assert [(unit.failed, unit.retries) for unit in told] == [(2, 3), (0, 0), (0, 0)]
    assert [record["worker"] for record in records.records] == [unit.worker for unit in told]


def test_one_worker_has_no_name(setup):
    told = []
    evaluator = make(setup, MemoryRecords())
    evaluator._on_computed = told.append
    score(evaluator, setup[1])
    assert [(unit.worker, unit.images, unit.retries) for unit in told] == [("", 9, 0)]


@pytest.mark.parametrize("spare", [0, 1, 3])
def test_what_is_expected_changes_no_score_no_count_and_no_journal_but_its_order(setup, spare):
    def play(backend, expects):
        records, units, new = MemoryRecords(), [], []

        def on_unit(images, is_new):
            new.append(is_new)

        evaluator = Evaluator(backend, 2, FULL, Ledger(records), on_unit, lambda text: None)
        requests = [Asked("search", i, setup[1][i:], NOISES, ("m",)) for i in range(3)]
        if expects:
            for request in requests[::-1]:
                evaluator.expect(request)
        for request in requests:
            table = evaluator.score(*request)["m"]
            units.append((table.tolist(), evaluator.images, evaluator.seconds > 0))
        assert all(new)
        kept = {
            (r["phase"], r["step"], r["unit"]): (r["digest"], r["scores"]) for r in records.records
        }
        assert len(kept) == len(records.records)
        early = [r for r in records.records if "ahead" in r]
        assert bool(early) == bool(expects and spare)
        return units, kept

    make(setup, MemoryRecords())  # gives the bench its measures
    backend = Foresighted(Local(setup[0]), lambda: spare)
    assert play(backend, True) == play(Local(setup[0]), False)
    assert len(set(backend.computed)) == len(backend.computed)

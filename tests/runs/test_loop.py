"""The loop as others drive it: generation by generation, with a method or a basis of their own."""

import numpy as np
import pytest

from calibri.errors import Interrupted
from calibri.progress import Progress
from calibri.runs.calibrate import calibrate, planned_images, resume
from calibri.runs.evaluate import evaluate
from calibri.runs.loop import SearchLoop, ValidatedSearch
from calibri.runs.session import Session
from calibri.scoring.ledger import Ledger, MemoryRecords
from calibri.search.method import MethodInfo
from calibri.search.methods.random import RandomSearch
from calibri.search.registry import method_info
from tests.fakes import Listening, StopAfter
from tests.tiny import tiny_run

TINY = {
    "rewards.objective": "jpeg-compressibility",
    "search.generations": 3,
    "search.popsize": 6,
    "search.bucket_size": 4,
    "search.validate_every": 2,
    "search.num_validation_prompts": 12,
    "evaluation.images_per_prompt": 1,
}


def tiny(**values):
    return tiny_run(TINY, **values)


@pytest.fixture(scope="module")
def session():
    return Session(tiny())


@pytest.fixture
def evaluator(session):
    with session.evaluator(Ledger(MemoryRecords())) as evaluator:
        yield evaluator


def test_it_gives_every_generation_and_ends_with_the_budget(session, evaluator):
    progress = Listening()
    loop = SearchLoop(session, evaluator, progress)
    first = next(loop)
    assert (first.generation.generation, first.images) == (0, evaluator.images)
    assert not loop.is_finished
    steps = [first, *loop]
    assert loop.is_finished
    assert [step.generation for step in steps] == loop.generations
    assert np.diff([step.images for step in steps]).min() > 0
    assert progress.heard == [("generation", i) for i in range(3)]
    assert all(step.vector.shape == (session.space.size,) for step in steps)
    with pytest.raises(StopIteration):
        next(loop)


def test_validation_takes_nothing_from_the_search(session, evaluator):
    plain = list(SearchLoop(session, evaluator, Progress()))
    with session.evaluator(Ledger(MemoryRecords())) as other:
        progress = Listening()
        search = ValidatedSearch(session, other, progress)
        steps = list(search)
        vector, result = search.result()
    for step, alone in zip(steps, plain, strict=True):
        np.testing.assert_array_equal(step.vector, alone.vector)
        assert step.generation.mean == alone.generation.mean
    kinds = [*(["generation"] * 2), "checkpoint", "generation", "checkpoint"]
    assert [kind for kind, _ in progress.heard] == kinds
    assert result.stopped == "the budget of 3 generations is used up"
    assert [checkpoint.generation for checkpoint in result.checkpoints] == [1, 2]
    candidates = [session.space.start, *(steps[c.generation].vector for c in result.checkpoints)]
    assert any(np.array_equal(vector, candidate) for candidate in candidates)
    assert result.coefficients == dict(session.space.named(vector))
    assert list(search) == []


def test_a_method_and_a_basis_can_be_given(session, evaluator):
    setups = []

    def make(setup):
        setups.append(setup)
        return RandomSearch(setup)

    basis = np.diag(np.arange(1.0, session.space.size + 1))
    method = MethodInfo("mine", make, popsize=lambda dimension: 9, plain_basis=True)
    config = session.config.search.model_copy(update={"popsize": None, "race_keep": 1.0})
    step = next(SearchLoop(session, evaluator, Progress(), config, method=method, basis=basis))
    SearchLoop(session, evaluator, Progress(), config, method=method)
    given, plain = setups
    np.testing.assert_array_equal(given.basis, basis)
    np.testing.assert_array_equal(plain.basis, np.eye(session.space.size))
    assert given.popsize == 9
    # 9 candidates and the original on 4 prompts.
    assert step.images == 10 * 4
    drawn = RandomSearch(given).ask()
    assert any(np.array_equal(step.vector, vector) for vector in drawn)


def test_a_given_method_wins_over_the_configured_one(evaluator):
    session = Session(tiny(search__method="reference"))
    step = next(SearchLoop(session, evaluator, Progress(), method=method_info("random")))
    assert step.generation.sigma == 0.25  # the paper's, of the configuration
    other = next(SearchLoop(session, evaluator, Progress()))
    assert other.generation.sigma != 0.25


def outcome(summary):
    generations = [g.model_dump(exclude={"seconds"}) for g in summary.search.generations]
    return summary.coefficients, generations, summary.search.checkpoints


def test_a_random_search_from_the_configuration_to_the_artifact(tmp_path):
    config = tiny(search__method="random")
    summary = calibrate(config, name="whole", runs=tmp_path)
    assert summary.config["search"]["method"] == "random"
    assert {g.sigma for g in summary.search.generations} == {config.search.sigma0}
    planned = planned_images(Session(config))
    assert planned["search"] + planned["validation"] == summary.search.images
    # Saved by compressing better, or the original.
    chosen = [c for c in summary.search.checkpoints if c.chosen]
    assert (summary.coefficients == summary.start) == (not chosen)
    calibration = tmp_path / "whole" / "calibration"
    found = evaluate(calibration, num_prompts=4, images_per_prompt=1, step_multiples=(1,))
    assert found.comparisons
    with pytest.raises(Interrupted):
        calibrate(config, name="part", runs=tmp_path, progress=StopAfter(2))
    assert outcome(resume(tmp_path / "part")) == outcome(summary)

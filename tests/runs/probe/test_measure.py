import dataclasses

import numpy as np
import pytest

from calibri.config import SearchConfig, load_config
from calibri.errors import ConfigError, RewardError
from calibri.planning.procedures import WORTHWHILE_IMAGES
from calibri.progress import Progress
from calibri.prompts.files import make_prompts
from calibri.prompts.sources import PromptSets
from calibri.results import FULL, Fidelity, FirstMeasurement
from calibri.runs.probe.measure import (
    SHARE,
    Design,
    check_probe,
    choose_design,
    measure_first,
    search_update,
)
from calibri.runs.session import Session
from calibri.scoring.ledger import Ledger, MemoryRecords
from tests.fakes import Listening
from tests.tiny import dotted


def steps_of(*counts):
    return tuple(Fidelity(num_inference_steps=count) for count in counts)


DESIGN = Design(candidates=4, prompts=3, seeds=2, fidelities=(steps_of(3, 2),), trials=2)


def configured(**values):
    base = {"device": "cpu", "sampling.workers": 1, "sampling.num_inference_steps": 4}
    return load_config(values=base | {"space.granularity": "block"} | dotted(values))


class TableEvaluator:
    """Scores by a formula instead of sampling."""

    def __init__(self, score):
        self.images = 0
        self._score = score
        self.asked = []

    def pin(self, name, step, vectors):
        return vectors

    def score(self, phase, step, candidates, noises, measures, fidelity=FULL):
        self.images += len(candidates) * len(noises)
        assert step == len(self.asked)
        self.asked.append(fidelity)
        return {"shapes": self._score(candidates, noises, fidelity)}


@pytest.fixture(scope="module")
def session():
    return Session(configured())


def effect(candidates):
    return np.array([sum(c.scales[0].values()) for c in candidates])[:, None]


def hardness(noises):
    return np.array([noise.seed % 97 for noise in noises])[None] / 97


def test_small_runs_are_not_measured_unless_asked_for():
    config = configured()
    assert design(config, WORTHWHILE_IMAGES - 1) is None
    assert design(config, WORTHWHILE_IMAGES) is not None
    assert design(configured(search__probe=True), 100) is not None
    assert design(configured(search__probe=False), 10**6) is None
    assert design(configured(search__method="reference"), 10**6) is None
    assert design(configured(search__probe=True), 10**6, 7) is None


KINDS = [steps_of(3, 2), (Fidelity(cache_interval=2), Fidelity(cache_interval=3))]


def design(config, planned, prompts=500, kinds=KINDS):
    return choose_design(config, planned, prompts, kinds)


@pytest.mark.parametrize("planned", [20_000, 33_333, 60_000, 10**6])
def test_measuring_takes_at_most_a_twentieth_of_a_run(planned):
    found = design(configured(), planned)
    assert found.images <= SHARE * planned
    assert 12 <= found.candidates <= 20
    assert 12 <= found.prompts <= 32
    assert 2 <= found.trials <= 5
    assert found.images == (found.candidates + 1) * found.prompts * 2 * (1 + found.trials)


def test_what_is_left_of_the_budget_is_for_more_fidelities():
    assert design(configured(), 10**6).trials == 5  # four, and two of them together
    assert design(configured(), 10**6, kinds=KINDS[:1]).trials == 2
    assert design(configured(), 10**6, kinds=[]).trials == 0
    at_least = (20 + 1) * 32 * 2 * 3 / SHARE
    assert design(configured(), at_least).trials == 2
    assert design(configured(), at_least * 4 / 3).trials == 3
    assert design(configured(search__probe=True), 100).trials == 2


def test_large_runs_are_measured_on_twenty_candidates_and_thirty_two_prompts():
    found = design(configured(), 10**6)
    assert (found.candidates, found.prompts, found.seeds) == (20, 32, 2)
    assert design(configured(), 10**6, 20).prompts == 20
    constrained = configured(search__images_per_prompt=4)
    assert design(constrained, 10**7).seeds == 4


def test_steps_that_rank_alike_are_accepted_and_the_cheapest_wins(session):
    def score(candidates, noises, fidelity):
        return effect(candidates) + hardness(noises) + 0.1 * (fidelity.num_inference_steps or 4)

    evaluator = TableEvaluator(score)
    found = measure_first(session, evaluator, Progress(), DESIGN)
    assert evaluator.asked == [FULL, *steps_of(3, 2)]
    assert [result.refused for result in found.fidelities] == ["", ""]
    assert [result.cost for result in found.fidelities] == [0.75, 0.5]
    assert [result.label for result in found.fidelities] == ["3 steps", "2 steps"]
    assert found.fidelity == Fidelity(num_inference_steps=2)
    assert found.reasons[-1].startswith("The generations are sampled at 2 steps; at full")
    assert found.reliability == pytest.approx(1.0)
    assert found.components.residual == pytest.approx(0.0, abs=1e-9)
    true = np.var(effect(evaluator_candidates(session)), ddof=1)
    assert found.components.candidate == pytest.approx(true)


ALL = (
    steps_of(3, 2),
    (Fidelity(cache_interval=2), Fidelity(cache_interval=3)),
)


def tried(session, bad, trials=5):
    """What is tried and chosen where some fidelities rank the other way round."""

    def score(candidates, noises, fidelity):
        sign = -1 if bad(fidelity) else 1
        return sign * effect(candidates) + hardness(noises)

    evaluator = TableEvaluator(score)
    design = dataclasses.replace(DESIGN, fidelities=ALL, trials=trials)
    found = measure_first(session, evaluator, Progress(), design)
    assert evaluator.asked[0] == FULL
    assert [result.fidelity for result in found.fidelities] == evaluator.asked[1:]
    return evaluator.asked[1:], found.fidelity


def test_kinds_take_turns_and_what_was_accepted_is_tried_together(session):
    (a, b), (c, d) = ALL
    everything = b.updated(d)
    assert tried(session, lambda f: False) == ([a, c, b, d, everything], everything)
    # Together is only accepted for a tau of its own; then the cheapest of the others is taken.
    assert tried(session, everything.__eq__) == ([a, c, b, d, everything], c)
    # A refused one ends its kind, and nothing is tried together with it.
    assert tried(session, lambda f: f.cache_interval) == ([a, c, b], b)
    partly = a.updated(d)
    assert tried(session, lambda f: f.num_inference_steps == 2) == ([a, c, b, d, partly], partly)
    assert tried(session, FULL.__ne__) == ([a, c], FULL)


def test_no_more_fidelities_are_tried_than_were_planned(session):
    (a, _), (c, _) = ALL
    assert tried(session, lambda f: False, trials=2) == ([a, c], c)
    assert tried(session, lambda f: False, trials=0) == ([], FULL)
    assert len(tried(session, lambda f: False, trials=4)[0]) == 4


def test_what_the_pipeline_or_a_reward_refuses_is_said_and_not_tried(session):
    """The reward of the shipped pipeline knows its images at one size."""
    smaller = Fidelity(height=16, width=16)
    design = dataclasses.replace(DESIGN, fidelities=((smaller,), steps_of(3)), trials=3)
    evaluator = TableEvaluator(lambda c, n, fidelity: effect(c) + hardness(n))
    found = measure_first(session, evaluator, Progress(), design)
    assert evaluator.asked == [FULL, *steps_of(3)]
    assert any("height 16, width 16 was not tried" in reason for reason in found.reasons)


def evaluator_candidates(session):
    seen = []

    def score(candidates, noises, fidelity):
        seen.extend(candidates[1:])
        return effect(candidates) + hardness(noises)

    measure_first(session, TableEvaluator(score), Progress(), dataclasses.replace(DESIGN, trials=0))
    return seen


def test_the_first_refused_number_of_steps_ends_the_trials(session):
    def score(candidates, noises, fidelity):
        return (effect(candidates) if fidelity == FULL else -effect(candidates)) + hardness(noises)

    evaluator = TableEvaluator(score)
    found = measure_first(session, evaluator, Progress(), DESIGN)
    assert evaluator.asked == [FULL, *steps_of(3)]
    assert "tau" in found.fidelities[0].refused
    assert found.fidelities[0].tau.mean == pytest.approx(-1.0)
    assert found.fidelity == FULL
    assert found.reasons[-1].startswith("The generations are sampled at full fidelity, like")
    assert found.images == 2 * 5 * 6


def test_steps_that_flatter_whatever_is_far_from_the_start_are_refused(session):
    start = effect([session.space.coefficients(session.space.start)])[0, 0]

    def score(candidates, noises, fidelity):
        value = effect(candidates)
        far = 5.0 * (value != start) * (fidelity != FULL)
        return value + hardness(noises) + far

    found = measure_first(session, TableEvaluator(score), Progress(), DESIGN)
    assert found.fidelities[0].tau.low == pytest.approx(1.0)
    assert "error changes" in found.fidelities[0].refused


def test_prompts_that_could_not_be_scored_are_left_out(session):
    def score(candidates, noises, fidelity):
        table = effect(candidates) + hardness(noises)
        table[:, 0] = np.nan
        return table

    found = measure_first(session, TableEvaluator(score), Progress(), DESIGN)
    assert found.num_prompts == 2

    def broken(candidates, noises, fidelity):
        table = score(candidates, noises, fidelity)
        table[:, :4] = np.nan
        return table

    with pytest.raises(RewardError, match="Only 1 of 3 prompts"):
        measure_first(session, TableEvaluator(broken), Progress(), DESIGN)


def split_of(**search):
    """Candidates and prompts of a generation that 16 prompts without noise of their own ask for."""
    prompts = make_prompts(f"prompt {i}" for i in range(16))
    session = Session(configured(search__bucket_size=16, **search), PromptSets(prompts, (), ()))
    evaluator = TableEvaluator(lambda c, n, fidelity: effect(c) + hardness(n))
    found = measure_first(session, evaluator, Progress(), DESIGN)
    return found.popsize, found.bucket_size


def test_a_population_that_was_named_is_kept():
    assert split_of() == (64, 6)
    assert split_of(search__popsize=12) == (12, 16)


def test_buckets_that_grow_stay_within_the_prompts():
    """A third of 16 prompts is less than the smallest bucket that is recommended."""
    assert split_of(search__bucket_growth=1) == (64, 6)
    assert split_of(search__bucket_growth=3) == (24, 16)


@pytest.mark.parametrize(
    ("values", "prompts", "says"),
    [
        ({"search__method": "reference"}, 500, "chooses for the method 'calibri'"),
        ({}, 7, "needs 8 training prompts, there are 7"),
    ],
)
def test_measuring_first_what_cannot_be_measured_is_refused(values, prompts, says):
    with pytest.raises(ConfigError, match=says):
        check_probe(configured(search__probe=True, **values), prompts)
    check_probe(configured(**values), prompts)


def test_what_was_chosen_is_put_into_the_search(session):
    found = measure_first(
        session,
        TableEvaluator(lambda c, n, fidelity: effect(c) + hardness(n)),
        Progress(),
        DESIGN,
    )
    updated = search_update(SearchConfig(generations=7), found)
    assert updated.generations == 7
    assert (updated.popsize, updated.bucket_size) == (found.popsize, found.bucket_size)
    assert updated.fidelity == Fidelity(num_inference_steps=2)
    assert SearchConfig.model_validate(updated.model_dump()) == updated


def test_a_measurement_is_journalled_told_and_read_back(session):
    records, listener = MemoryRecords(), Listening()
    with session.evaluator(Ledger(records), listener) as evaluator:
        found = measure_first(session, evaluator, listener, DESIGN)
    assert listener.new > 0
    assert listener.phases == [("measuring", DESIGN.images)]
    assert listener.messages == found.reasons
    assert FirstMeasurement.model_validate_json(found.model_dump_json()) == found
    again = Listening()
    with session.evaluator(Ledger(records), again) as evaluator:
        assert measure_first(session, evaluator, again, DESIGN) == found
    assert again.new == 0

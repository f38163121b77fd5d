import dataclasses

import numpy as np
import pytest

from calibri.config import SearchConfig, load_config
from calibri.engine import Engine
from calibri.errors import ConfigError, RewardError
from calibri.evaluator import Ledger, MemoryRecords
from calibri.measuring import (
    SHARE,
    Design,
    check_probe,
    choose_design,
    measure_first,
    search_update,
)
from calibri.procedures import WORTHWHILE_IMAGES
from calibri.progress import Progress
from calibri.results import FirstMeasurement

DESIGN = Design(candidates=4, prompts=3, seeds=2, steps=(3, 2))


def configured(**values):
    base = {"device": "cpu", "sampling.workers": 1, "sampling.num_inference_steps": 4}
    named = {name.replace("__", "."): value for name, value in values.items()}
    return load_config(values=base | {"space.granularity": "block"} | named)


class Listener(Progress):
    def __init__(self):
        self.phases, self.messages, self.new = [], [], 0

    def phase(self, name, images):
        self.phases.append((name, images))

    def message(self, text):
        self.messages.append(text)

    def unit(self, images, new):
        self.new += new


class TableEvaluator:
    """Scores by a formula instead of sampling."""

    def __init__(self, score):
        self.images = 0
        self._score = score
        self.steps = []

    def score(self, phase, step, candidates, noises, measures, num_inference_steps=None):
        self.images += len(candidates) * len(noises)
        self.steps.append(num_inference_steps)
        return {"shapes": self._score(candidates, noises, num_inference_steps)}


@pytest.fixture(scope="module")
def engine():
    return Engine(configured())


def effect(candidates):
    return np.array([sum(c.scales[0].values()) for c in candidates])[:, None]


def hardness(noises):
    return np.array([noise.seed % 97 for noise in noises])[None] / 97


def test_small_runs_are_not_measured_unless_asked_for():
    config = configured()
    assert choose_design(config, WORTHWHILE_IMAGES - 1, 500) is None
    assert choose_design(config, WORTHWHILE_IMAGES, 500) is not None
    assert choose_design(configured(search__probe=True), 100, 500) is not None
    assert choose_design(configured(search__probe=False), 10**6, 500) is None
    assert choose_design(configured(search__method="reference"), 10**6, 500) is None
    assert choose_design(configured(search__probe=True), 10**6, 7) is None


@pytest.mark.parametrize("planned", [20_000, 33_333, 60_000, 10**6])
def test_measuring_takes_at_most_a_twentieth_of_a_run(planned):
    config = configured(sampling__num_inference_steps=8)
    design = choose_design(config, planned, 500)
    assert design.images <= SHARE * planned
    assert design.steps == (6, 4)
    assert 12 <= design.candidates <= 20
    assert 12 <= design.prompts <= 32


def test_large_runs_are_measured_on_twenty_candidates_and_thirty_two_prompts():
    design = choose_design(configured(), 10**6, 500)
    assert (design.candidates, design.prompts, design.seeds) == (20, 32, 2)
    assert choose_design(configured(), 10**6, 20).prompts == 20
    constrained = configured(search__images_per_prompt=4)
    assert choose_design(constrained, 10**7, 500).seeds == 4


def test_one_step_cannot_become_fewer():
    config = configured(sampling__num_inference_steps=1, search__probe=True)
    assert choose_design(config, 10**6, 500).steps == ()


def test_steps_that_rank_alike_are_accepted_and_the_cheapest_wins(engine):
    def score(candidates, noises, steps):
        return effect(candidates) + hardness(noises) + 0.1 * steps

    evaluator = TableEvaluator(score)
    found = measure_first(engine, evaluator, Progress(), DESIGN)
    assert evaluator.steps == [4, 3, 2]
    assert [result.refused for result in found.fidelities] == ["", ""]
    assert found.num_inference_steps == 2
    assert found.reliability == pytest.approx(1.0)
    assert found.components.residual == pytest.approx(0.0, abs=1e-9)
    true = np.var(effect(evaluator_candidates(engine)), ddof=1)
    assert found.components.candidate == pytest.approx(true)


def evaluator_candidates(engine):
    seen = []

    def score(candidates, noises, steps):
        seen.extend(candidates[1:])
        return effect(candidates) + hardness(noises)

    measure_first(engine, TableEvaluator(score), Progress(), dataclasses.replace(DESIGN, steps=()))
    return seen


def test_the_first_refused_number_of_steps_ends_the_trials(engine):
    def score(candidates, noises, steps):
        return (effect(candidates) if steps == 4 else -effect(candidates)) + hardness(noises)

    evaluator = TableEvaluator(score)
    found = measure_first(engine, evaluator, Progress(), DESIGN)
    assert evaluator.steps == [4, 3]
    assert "tau" in found.fidelities[0].refused
    assert found.fidelities[0].tau.mean == pytest.approx(-1.0)
    assert found.num_inference_steps is None
    assert found.images == 2 * 5 * 6


def test_steps_that_flatter_whatever_is_far_from_the_start_are_refused(engine):
    start = effect([engine.space.coefficients(engine.space.start)])[0, 0]

    def score(candidates, noises, steps):
        value = effect(candidates)
        far = 5.0 * (value != start) * (steps != 4)
        return value + hardness(noises) + far

    found = measure_first(engine, TableEvaluator(score), Progress(), DESIGN)
    assert found.fidelities[0].tau.low == pytest.approx(1.0)
    assert "error changes" in found.fidelities[0].refused


def test_prompts_that_could_not_be_scored_are_left_out(engine):
    def score(candidates, noises, steps):
        table = effect(candidates) + hardness(noises)
        table[:, 0] = np.nan
        return table

    found = measure_first(engine, TableEvaluator(score), Progress(), DESIGN)
    assert found.num_prompts == 2

    def broken(candidates, noises, steps):
        table = score(candidates, noises, steps)
        table[:, :4] = np.nan
        return table

    with pytest.raises(RewardError, match="Only 1 of 3 prompts"):
        measure_first(engine, TableEvaluator(broken), Progress(), DESIGN)


def test_buckets_that_grow_stay_within_the_prompts(monkeypatch):
    asked = {}

    def split(components, **given):
        asked.update(given)
        return given["popsize"], given["bucket_size"]

    monkeypatch.setattr("calibri.measuring.recommend", split)
    engine = Engine(configured(search__bucket_growth=3))
    measure_first(
        engine, TableEvaluator(lambda c, n, steps: effect(c) + hardness(n)), Progress(), DESIGN
    )
    assert 0 <= len(engine.prompts.train) - 3 * asked["num_prompts"] < 3


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


def test_what_was_chosen_is_put_into_the_search(engine):
    found = measure_first(
        engine,
        TableEvaluator(lambda c, n, steps: effect(c) + hardness(n)),
        Progress(),
        DESIGN,
    )
    updated = search_update(SearchConfig(generations=7), found)
    assert updated.generations == 7
    assert (updated.popsize, updated.bucket_size) == (found.popsize, found.bucket_size)
    assert updated.num_inference_steps == 2
    assert SearchConfig.model_validate(updated.model_dump()) == updated


def test_a_measurement_is_journalled_told_and_read_back(engine):
    records, listener = MemoryRecords(), Listener()
    with engine.evaluator(Ledger(records), listener.unit) as evaluator:
        found = measure_first(engine, evaluator, listener, DESIGN)
    assert listener.new > 0
    assert listener.phases == [("measuring", DESIGN.images)]
    assert listener.messages == found.reasons
    assert FirstMeasurement.model_validate_json(found.model_dump_json()) == found
    again = Listener()
    with engine.evaluator(Ledger(records), again.unit) as evaluator:
        assert measure_first(engine, evaluator, again, DESIGN) == found
    assert again.new == 0

"""Mixtures, constraints and the guard, in whole small runs."""

import numpy as np
import pytest
import torch

from calibri.config import validate_config
from calibri.errors import ConfigError, Interrupted
from calibri.results import DIVERSITY, Checkpoint, Figure
from calibri.rewards.mixing import used_rewards
from calibri.rewards.reward import BatchedReward, RewardInfo
from calibri.runs.calibrate import calibrate, planned_images, resume
from calibri.runs.checkpoints import guard_reason
from calibri.runs.evaluate import evaluate
from calibri.runs.session import Session
from tests.fakes import StopAfter
from tests.tiny import FEW_PROMPTS, tiny_run

TINY = FEW_PROMPTS | {
    "sampling.batch_size": 16,
    "search.generations": 4,
    "search.bucket_size": 4,
    "search.validate_every": 1,
    "search.num_validation_prompts": 12,
    "search.sigma0": 0.3,
    "rewards.objective": "red",
}


class Red(BatchedReward):
    """Easily gamed: the mean of the red channel."""

    channel, sign = 0, 1.0

    def __init__(self, name="red"):
        super().__init__()
        self.info = RewardInfo(name, "mean of a channel", unit="0 to 255")

    def score_batch(self, images, prompts):
        return self.sign * images[:, self.channel].float().mean((1, 2))


class AntiRed(Red):
    """Falls whenever red rises."""

    sign = -1.0


class Blue(Red):
    channel = 2


class Spread(Red):
    """Compares the images of a prompt."""

    def __init__(self, name):
        super().__init__(name)
        self.info = RewardInfo(name, "spread", unit="0 to 255", kind="groupwise")
        self.seen = []

    def score_batch(self, images, prompts):
        means = super().score_batch(images, prompts)
        self.seen.append([prompts.count(prompt) for prompt in prompts])
        groups = [means[[q == p for q in prompts]] for p in prompts]
        return torch.stack([group.max() - group.min() for group in groups])


MAKERS = {"red": Red, "anti-red": AntiRed, "blue": Blue, "spread": Spread}


def rewards_of(config):
    names = [name for name in used_rewards(config) if name != DIVERSITY]
    return {name: MAKERS[name](name) for name in names}


def session_of(config):
    return Session(config, rewards=rewards_of(config))


def tiny(**values):
    return tiny_run(TINY, **values)


def run(tmp_path, name="run", progress=None, **values):
    config = tiny(**values)
    rewards = [*rewards_of(config).values()]
    return calibrate(config, rewards=rewards, name=name, runs=tmp_path, progress=progress)


def changed(summary):
    return not np.allclose(list(summary.coefficients.values()), list(summary.start.values()))


UNGUARDED = {"rewards__guard": "off", "rewards__held_out": ("anti-red",)}


@pytest.fixture(scope="module")
def gamed(tmp_path_factory):
    return run(tmp_path_factory.mktemp("gamed"), **UNGUARDED)


def test_without_a_guard_the_gamed_reward_wins(gamed):
    assert changed(gamed)
    assert all(c.held_out == {} and c.vetoed_by == [] for c in gamed.search.checkpoints)
    gains = {c.reward: c.difference.mean for c in gamed.evaluation.comparisons}
    assert gains["red"] > 0 > gains["anti-red"]


def test_a_veto_keeps_what_harms_a_held_out_reward_from_being_returned(tmp_path):
    summary = run(tmp_path, rewards__held_out=("anti-red", "blue"))
    vetoed = [c for c in summary.search.checkpoints if c.held_out["anti-red"].high < 0]
    assert vetoed
    assert all("anti-red" in c.vetoed_by and not c.chosen for c in vetoed)
    assert len(summary.search.generations) == 4
    for checkpoint in summary.search.checkpoints:
        harmed = [name for name, figure in checkpoint.held_out.items() if figure.high < 0]
        assert checkpoint.vetoed_by == harmed
        assert checkpoint.held_out["anti-red"].mean == pytest.approx(-checkpoint.difference.mean)


def test_a_stop_ends_the_search_after_two_vetoes(tmp_path):
    summary = run(tmp_path, rewards__held_out=("anti-red",), rewards__guard="stop")
    assert (
        "two checkpoints in a row were surely worse than the original in anti-red"
        in summary.search.stopped
    )
    assert len(summary.search.generations) < 4
    assert all(c.vetoed_by for c in summary.search.checkpoints[-2:])


def checkpoint(*vetoed_by):
    return Checkpoint(
        generation=0, difference=Figure(mean=1, low=0, high=2, n=3), vetoed_by=list(vetoed_by)
    )


@pytest.mark.parametrize(
    ("guard", "checkpoints", "stops"),
    [
        ("stop", [checkpoint("a"), checkpoint("b")], True),
        ("veto", [checkpoint("a"), checkpoint("b")], False),
        ("stop", [checkpoint("a")], False),
        ("stop", [checkpoint("a"), checkpoint(), checkpoint("a")], False),
        ("stop", [checkpoint("a"), checkpoint("a"), checkpoint()], False),
    ],
)
def test_only_two_in_a_row_stop(guard, checkpoints, stops):
    assert bool(guard_reason(checkpoints, tiny(rewards__guard=guard).rewards)) == stops


def test_a_mixture_is_searched_and_reported_with_its_parts(tmp_path):
    spec = "red:0.7,blue:0.3"
    summary = run(tmp_path, rewards__objective=spec)
    scores = summary.evaluation.settings[0].scores
    assert list(scores) == [spec, "red", "blue"]
    assert list(summary.evaluation.variants) == [spec, "red", "blue"]
    original = summary.evaluation.setting(calibrated=False, num_inference_steps=2)
    assert original.scores[spec].mean == pytest.approx(0, abs=1e-9)
    config = validate_config(summary.config)
    plan = planned_images(session_of(config))
    assert plan["search"] + plan["validation"] == summary.search.images
    rewards = [spec, Red("red"), Blue("blue")]
    folder = tmp_path / "run" / "calibration"
    again = evaluate(folder, rewards=rewards, num_prompts=4, step_multiples=(1,))
    assert (again.objective, again.held_out_rewards) == (spec, [])


def outcome(summary):
    generations = [g.model_dump(exclude={"seconds"}) for g in summary.search.generations]
    return summary.search.coefficients, generations, summary.search.checkpoints


MIXED = {
    "rewards__objective": "red,blue",
    "rewards__held_out": ("anti-red",),
    "search__generations": 2,
}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    return run(tmp_path_factory.mktemp("mixed"), **MIXED)


@pytest.mark.parametrize("units", [1, 7])
def test_an_interrupted_mixture_resumes_with_the_same_scales(mixed, tmp_path, units):
    with pytest.raises(Interrupted):
        run(tmp_path, "part", progress=StopAfter(units), **MIXED)
    rewards = [*rewards_of(tiny(**MIXED)).values()]
    assert outcome(resume(tmp_path / "part", rewards=rewards)) == outcome(mixed)


@pytest.mark.parametrize("mixing", ["rank", "min"])
def test_other_ways_of_mixing_run(tmp_path, mixing):
    values = {"rewards__mixing": mixing, "search__generations": 2}
    summary = run(tmp_path, rewards__objective="red,blue", **values)
    assert all(np.isfinite(g.mean) for g in summary.search.generations)
    if mixing == "rank":
        assert all(0 <= g.mean <= 2 for g in summary.search.generations)


def test_a_constraint_outweighs_what_it_forbids(gamed, tmp_path):
    bound = run(tmp_path, rewards__constraints=("anti-red >= 1 of baseline",), **UNGUARDED)
    assert changed(gamed)
    assert not changed(bound)


def test_diversity_can_be_constrained(tmp_path):
    values = {"rewards__constraints": ("diversity >= 0.95 of baseline",)}
    with pytest.raises(ConfigError, match="search.images_per_prompt is 1"):
        run(tmp_path, "one", **values)
    summary = run(tmp_path, "two", search__images_per_prompt=2, search__generations=2, **values)
    assert len(summary.search.generations) == 2
    plan = planned_images(session_of(validate_config(summary.config)))
    assert plan["search"] + plan["validation"] == summary.search.images


def test_groupwise_rewards_get_whole_groups_of_one_candidate(tmp_path):
    spread = Spread("spread")
    config = tiny(
        rewards__objective="spread",
        search__images_per_prompt=2,
        search__generations=1,
        sampling__batch_size=7,
    )
    calibrate(config, rewards=[spread], name="run", runs=tmp_path)
    assert {count for call in spread.seen for count in call} == {2}


def test_a_groupwise_guard_needs_groups(tmp_path):
    summary = run(tmp_path, rewards__held_out=("spread",), search__generations=1)
    assert summary.search.checkpoints[0].held_out == {}
    with pytest.raises(ConfigError, match="evaluation.images_per_prompt is 1"):
        run(tmp_path, "b", rewards__held_out=("spread",), evaluation__images_per_prompt=1)


def test_a_malformed_mixture_is_refused_before_a_run_exists(tmp_path):
    with pytest.raises(ConfigError, match="positive weight"):
        run(tmp_path, rewards__objective="red:x")
    assert list(tmp_path.iterdir()) == []

"""Whole searches by gradients, on a reward that is easy to raise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from calibri.config import load_config
from calibri.planning import updates_per_generation
from calibri.progress import Progress
from calibri.rewards.mixing import used_rewards
from calibri.rewards.pickscore import PickScore
from calibri.rewards.reward import BatchedReward, RewardInfo
from calibri.rewards.weights import Checkpoint
from calibri.runs.calibrate import calibrate, planned_images
from calibri.runs.feedback import scale_prompts
from calibri.runs.journal import read_journal
from calibri.runs.loop import SearchLoop, ValidatedSearch
from calibri.runs.session import Session
from calibri.scoring.ledger import Ledger, MemoryRecords
from tests.fakes import StopAfter
from tests.rewards.tiny_models import clip_tensors, save, save_clip_tokenizer, tiny_clip
from tests.tiny import FEW_PROMPTS, dotted, tiny_run

TINY = FEW_PROMPTS | {
    "rewards.objective": "red",
    "search.method": "gradient",
    "search.generations": 2,
    "search.popsize": 9,
    "search.bucket_size": 4,
    "search.bucket_growth": 1,
    "search.race_keep": 1,
    "search.validate_every": 1,
    "search.num_validation_prompts": 12,
}


class Channel(BatchedReward):
    """The mean of a channel, up or down."""

    def __init__(self, name):
        super().__init__()
        self.sign = -1.0 if name.startswith("anti") else 1.0
        self.channel = 2 if name.endswith("blue") else 0
        self.info = RewardInfo(name, "mean of a channel", unit="0 to 1", differentiable=True)

    def score_batch(self, images, prompts):
        return self.score_float(images.float() / 255, prompts)

    def score_float(self, images, prompts):
        return self.sign * images[:, self.channel].mean((1, 2))


def rewards_of(config):
    return {name: Channel(name) for name in used_rewards(config)}


def session_of(values):
    config = tiny_run(TINY | values)
    return Session(config, rewards=rewards_of(config))


def search(records=None, progress=None, **values):
    progress = progress or Progress()
    session = session_of(dotted(values))
    ledger = Ledger(MemoryRecords() if records is None else records)
    evaluator = session.evaluator(ledger, progress)
    return session, *ValidatedSearch(session, evaluator, progress).run()


def updates_of(config):
    return updates_per_generation(config.search, 23)


def test_a_reward_rises_and_the_record_says_by_how_much():
    session, vector, result = search()
    assert updates_of(session.config) == 3
    chosen = [checkpoint for checkpoint in result.checkpoints if checkpoint.chosen]
    assert len(chosen) == 1
    assert chosen[0].difference.low > 0
    assert [generation.generation for generation in result.generations] == [0, 1]
    first, last = (generation.mean - generation.baseline for generation in result.generations)
    assert last > first > 0
    assert all(generation.sigma == 0.02 for generation in result.generations)
    assert result.coefficients == dict(session.space.named(vector))
    # 3 updates and the original on one bucket, twice; two checkpoints and the original's.
    assert result.images == 2 * (3 * 3 + 1) * 4 + 3 * 12
    assert result.images == sum(planned_images(session)[p] for p in ("search", "validation"))
    assert result.stopped == "the budget of 2 generations is used up"


def test_a_search_that_was_killed_ends_like_one_that_was_not():
    _, expected, result = search()
    records = MemoryRecords()
    with pytest.raises(KeyboardInterrupt):
        search(records, StopAfter(4))
    assert 4 <= sum(r["kind"] == "unit" for r in records.records) <= 5
    _, vector, again = search(records)
    assert np.array_equal(vector, expected)
    ignored = {"seconds"}
    for ours, theirs in zip(again.generations, result.generations, strict=True):
        assert ours.model_dump(exclude=ignored) == theirs.model_dump(exclude=ignored)
    assert again.checkpoints == result.checkpoints


def test_members_of_an_ensemble_part_with_the_first_update():
    session = session_of({"space.members": 2})
    evaluator = session.evaluator(Ledger(MemoryRecords()))
    step = next(SearchLoop(session, evaluator, Progress()))
    first, second = session.space.coefficients(step.vector).members
    apart = [first.scales[0][name] - second.scales[0][name] for name in session.space.names]
    assert np.abs(apart).min() > 0.01
    assert second.output_weights[0] < 0
    assert step.generation.mean > step.generation.baseline


def test_a_guard_vetoes_what_harms_a_held_out_reward():
    session, vector, result = search(rewards__held_out=("anti-red",))
    assert all(checkpoint.vetoed_by == ["anti-red"] for checkpoint in result.checkpoints)
    assert np.array_equal(vector, session.space.start)


def test_a_mixture_follows_its_weighted_scaled_slopes():
    # Red counts nothing beside blue, so that red has to fall with blue's opposite or stay.
    _, mixed, _ = search(rewards__objective="red:0.0001,blue:1", search__generations=1)
    _, alone, _ = search(rewards__objective="blue", search__generations=1)
    np.testing.assert_allclose(mixed, alone, atol=2e-3)
    _, other, _ = search(rewards__objective="red:1,blue:0.0001", search__generations=1)
    assert np.abs(other - alone).max() > 1e-2


def test_the_lowest_of_a_mixture_is_raised():
    _, _, result = search(rewards__objective="red,blue", rewards__mixing="min")
    assert max(checkpoint.difference.low for checkpoint in result.checkpoints) > 0


def test_a_constraint_turns_a_search_that_breaks_it():
    free, vector, _ = search(rewards__objective="red", search__generations=2)
    session, held, result = search(
        rewards__objective="red",
        rewards__constraints=("anti-red >= 1 of baseline",),
        search__generations=2,
    )
    start = free.space.start
    assert np.abs(held - start).max() < 0.5 * np.abs(vector - start).max()
    # The original is scored on every bucket, not on that of a generation's last update alone, so
    # that there are fewer updates.
    assert result.images == scale_prompts(session) + 2 * 2 * (3 * 4 + 4) + 3 * 12


@pytest.mark.parametrize("constraints", [(), ("anti-red >= 0.5 of baseline",)])
@pytest.mark.parametrize("shift", [False, True])
def test_a_generation_costs_no_more_than_the_candidates_of_a_race(shift, constraints):
    values = {
        "space__shift": shift,
        "rewards__constraints": constraints,
        "search__generations": 1,
        "search__popsize": 18,
    }
    session, _, result = search(**values)
    assert result.images == planned_images(session)["search"] + 2 * 12
    sampled = result.images - scale_prompts(session) - 2 * 12
    updates = 18 // (3 + 2 * shift + len(constraints))
    assert sampled == 4 * (updates * (3 + 2 * shift + len(constraints)) + (not constraints))
    assert sampled <= 4 * (18 + 1)


def test_a_search_of_the_shift_moves_it_and_resumes_bit_for_bit():
    values = {"space__shift": True, "search__generations": 1}
    session, expected, result = search(**values)
    assert session.space.labels[-1] == "shift"
    assert abs(expected[-1] - 1) > 0.01
    records = MemoryRecords()
    with pytest.raises(KeyboardInterrupt):
        search(records, StopAfter(2), **values)
    assert [r["phase"] for r in records.records if r["kind"] == "unit"][1] == "shift"
    _, vector, again = search(records, **values)
    assert np.array_equal(vector, expected)
    assert again.images == result.images


def test_vectors_stay_within_their_bounds():
    _, vector, _ = search(
        search__learning_rate=0.5,
        search__scale_bounds=(0.9, 1.1),
        search__output_bounds=(1, 1.2),
    )
    assert vector.min() >= 0.9
    assert vector.max() <= 1.2
    assert torch.is_grad_enabled()


def test_a_generation_costs_about_what_a_race_costs():
    values = {"search.popsize": 64, "search.bucket_size": 8, "search.bucket_growth": 2}
    race = {"search.race_first": 0.25, "search.race_keep": 0.5}
    config = tiny_run(TINY | values | race)
    # 64 candidates on 4 prompts and 32 on the other 12, three images for one with a gradient.
    assert updates_of(config) == (64 * 4 + 32 * 12) // (3 * 16)
    # Two updates of 12 images for 32 of candidates; the original is scored in both searches.
    assert updates_of(tiny_run(TINY, search__popsize=8)) == 2
    # A black-box search is told once, whatever it costs.
    assert updates_of(tiny_run(TINY, search__method="random")) == 1


def test_the_page_says_how_many_updates_a_default_generation_has():
    default = load_config(values={"search.method": "gradient"})
    page = Path(__file__).parents[2] / "docs" / "gradient.md"
    expected = f"({updates_of(default)} with the default settings"
    assert expected in page.read_text(encoding="utf-8")


def test_the_configuration_chooses_it(tmp_path):
    config = tiny_run(TINY, search__generations=1, search__last_steps=1)
    rewards = [*rewards_of(config).values()]
    summary = calibrate(config, rewards=rewards, name="run", runs=tmp_path)
    assert summary.search.generations[0].sigma == 0.02
    records = read_journal(tmp_path / "run" / "journal.jsonl")
    assert [r["phase"] for r in records if r["kind"] == "unit"].count("gradient") == 3


def tiny_pickscore(folder: Path) -> PickScore:
    """PickScore with small random weights."""
    save(folder, "model.safetensors", clip_tensors(tiny_clip("gelu", 32)))
    save_clip_tokenizer(folder)
    return PickScore(Checkpoint("unused", folder=folder), config=lambda: tiny_clip("gelu", 32))


def test_a_whole_run_with_a_network_that_sees_resized_images(tmp_path):
    config = tiny_run(
        TINY | {"rewards.objective": "pickscore", "rewards.held_out": ("red",)},
        rewards__constraints=("diversity >= 0.9 of baseline",),
        search__images_per_prompt=2,
        evaluation__images_per_prompt=2,
    )
    rewards = [tiny_pickscore(tmp_path), Channel("red")]
    summary = calibrate(config, rewards=rewards, name="run", runs=tmp_path)
    differences = [g.mean - g.baseline for g in summary.search.generations]
    assert differences[-1] > differences[0]
    records = read_journal(tmp_path / "run" / "journal.jsonl")
    units = [r for r in records if r["kind"] == "unit" and r["phase"] == "gradient"]
    assert units
    assert all(set(unit["gradients"]) == {"pickscore", "diversity"} for unit in units)

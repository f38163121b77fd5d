"""Gradients of rewards through the sampler, against finite differences of the same sampler."""

from __future__ import annotations

import functools
import inspect
import json

import numpy as np
import pytest
import torch
from torch import Tensor

from calibri.coefficients.space import SearchSpace
from calibri.errors import ConfigError, RewardError, RunError, UnsupportedModelError
from calibri.planning import images_beside
from calibri.progress import Progress
from calibri.results import DIVERSITY
from calibri.rewards.mixing import used_rewards
from calibri.rewards.registry import make_reward
from calibri.rewards.reward import BatchedReward, DifferentiableReward, RewardInfo
from calibri.runs.gradients import Gradients, jacobian
from calibri.runs.session import Session
from calibri.sampling.shift import changed_shift
from calibri.scoring.ledger import Ledger, MemoryRecords
from calibri.scoring.recomputation import Recomputation
from calibri.shapes.render import render_batch
from calibri.shapes.scenes import parse_caption
from tests.tiny import dotted, tiny_run

TINY = {
    "search.method": "gradient",
    "sampling.num_inference_steps": 3,
    "space.granularity": "gate",
    "rewards.objective": "weighing",
}
# Small, since where a pixel clips to black or white the reward has a kink.
STEP = 2.0**-12


class Weighing(BatchedReward):
    """A sum of pixels, each with a weight of its own: its gradient is the same for any image."""

    def __init__(self, name="weighing"):
        super().__init__()
        seed = {"weighing": 0, "other": 1}.get(name, 2)
        weights = torch.randn(3, 24, 24, generator=torch.Generator().manual_seed(seed))
        self.weights = weights / weights.abs().sum()
        self.info = RewardInfo(name, "linear", unit="any", differentiable=name != "opaque")

    def score_batch(self, images, prompts):
        return self.score_float(images.float() / 255, prompts)

    def score_float(self, images, prompts):
        return (images * self.weights).sum((1, 2, 3))


def reward_called(name):
    if name == "blind":
        return Scored(Weighing(name))
    return make_reward(name) if name == "shapes" else Weighing(name)


class Scored:
    """The scores of another reward, without its gradient."""

    def __init__(self, reward):
        self.info, self.score = reward.info, reward.score


def make_session(**values):
    return session_of(dotted(values))


def session_of(values):
    config = tiny_run(TINY | values)
    names = [name for name in used_rewards(config) if name != DIVERSITY]
    return Session(config, rewards={name: reward_called(name) for name in names})


@pytest.fixture(scope="module")
def plain():
    return make_session()


class Counting(Progress):
    def __init__(self):
        self.units = []

    def unit(self, images, new):
        self.units.append((images, new))


def gradients_of(session, last_steps=None, records=None, progress=None):
    ledger = Ledger(MemoryRecords() if records is None else records)
    evaluator = session.evaluator(ledger, progress)
    return Gradients(session, evaluator, last_steps), evaluator


def noises_of(session, count=3):
    return session.noises("test", 0, session.prompts.train[:count])


def somewhere(session, seed=0):
    rng = np.random.default_rng(seed)
    return session.space.start + 0.1 * rng.normal(size=session.space.size)


def images_at(session, vector, noises) -> Tensor:
    """Float images, by a call of the pipeline that Gradients does not make."""
    coefficients = session.space.coefficients(vector)
    table = torch.from_numpy(coefficients.site_scales(session.bench.scaler.sites))
    session.bench.scaler.set(table[None], coefficients.member_branches)
    with torch.no_grad(), changed_shift(session.bench.pipe, coefficients.shift):
        return session.bench.pipe(**session.bench.sampler.arguments(noises)).images


def slope(function, vector, direction):
    return (function(vector + STEP * direction) - function(vector - STEP * direction)) / (2 * STEP)


CASES = {
    "without guidance": {},
    "block": {"space__granularity": "block", "space__output_weights": False},
    "guidance, shared": {"sampling__guidance_scale": 3.0, "space__output_knots": 1},
    "guidance, separate": {"sampling__guidance_scale": 3.0, "space__branches": "separate"},
    "knots": {"space__knots": 3},
    "shift": {"space__shift": True},
    "ensemble": {"space__members": 2},
    "ensemble, guided": {
        "sampling__guidance_scale": 3.0,
        "space__branches": "separate",
        "space__members": 2,
        "space__output_knots": 2,
    },
}


@pytest.mark.parametrize("case", CASES)
def test_a_gradient_is_the_finite_difference_of_the_mean_reward(case):
    session = make_session(**CASES[case])
    noises, vector = noises_of(session), somewhere(session)
    found = gradients_of(session)[0]("gradient", 0, vector, noises)["weighing"]
    weights = session.bench.measures.rewards["weighing"].weights

    def mean(at):
        return float((images_at(session, at, noises).double() * weights).sum((1, 2, 3)).mean())

    rng = np.random.default_rng(1)
    directions = rng.choice([-1.0, 1.0], size=(4, session.space.size))
    directions *= [name not in session.space.factors for name in session.space.labels]
    exact = [slope(mean, vector, direction) for direction in directions]
    np.testing.assert_allclose(directions @ found.gradient, exact, rtol=0.02, atol=2e-5)
    assert np.abs(exact).max() > 1e-3


def mean_at(session, noises):
    """Mean of the scores of bytes at a vector, sampled and weighed outside of Gradients."""
    weights = session.bench.measures.rewards["weighing"].weights.double()

    def mean(vector):
        pixels = (images_at(session, vector, noises) * 255).round().double() / 255
        return float((pixels * weights).sum((1, 2, 3)).mean())

    return mean


@pytest.mark.parametrize("shift", [0.2, 1.0, 4.0])
def test_the_slope_along_the_shift_is_that_of_the_mean_reward_around_it(shift):
    session = make_session(space__shift=True)
    noises, vector = noises_of(session), somewhere(session)
    vector[-1] = shift
    gradients, evaluator = gradients_of(session)
    found = gradients("gradient", 0, vector, noises)["weighing"]
    mean, toward = mean_at(session, noises), np.eye(session.space.size)[-1]
    ends = [max(0.2, shift - 0.1), shift + 0.1]
    low, high = (mean(vector + (end - shift) * toward) for end in ends)
    assert found.gradient[-1] == pytest.approx((high - low) / (ends[1] - ends[0]), abs=1e-6)
    assert abs(found.gradient[-1]) > 1e-5
    np.testing.assert_allclose(found.scores.mean(), mean(vector), atol=1e-6)
    # Both sides are images like any others.
    assert evaluator.images == (3 + 2) * len(noises)
    assert images_beside(session.config) == 2


def test_the_gradient_of_the_shapes_reward_agrees_with_finite_differences():
    # It chooses the best place of a template, so it is smooth only between such choices.
    session = make_session(rewards__objective="shapes")
    noises, vector = noises_of(session, 8), session.space.start
    found = gradients_of(session)[0]("gradient", 0, vector, noises)["shapes"]
    texts = [noise.prompt.text for noise in noises]

    def mean(at):
        images = images_at(session, at, noises)
        return float(
            session.bench.measures.rewards["shapes"].score_float(images, texts).double().mean()
        )

    directions = np.random.default_rng(1).choice([-1.0, 1.0], size=(6, session.space.size))
    exact = np.array([slope(mean, vector, direction) for direction in directions])
    assert np.corrcoef(directions @ found.gradient, exact)[0, 1] > 0.95


def gradient_of(session, vector, noises, **options):
    (found,) = gradients_of(session, **options)[0]("gradient", 0, vector, noises).values()
    return found


def test_scores_are_those_of_the_black_box(plain):
    noises, vector = noises_of(plain, 5), somewhere(plain)
    gradients, evaluator = gradients_of(plain)
    found = gradients("gradient", 0, vector, noises)["weighing"]
    scores = evaluator.score(
        "search", 0, [plain.space.coefficients(vector)], noises, plain.objective
    )
    np.testing.assert_allclose(found.scores, scores["weighing"][0], atol=1e-7)
    # One with its gradient is counted as three.
    assert evaluator.images == 5 * (3 + 1)


@pytest.mark.parametrize("values", [{"knots": 1}, {"knots": 2}, {"output_weights": False}])
def test_scales_of_sites_are_linear_in_the_vector(plain, values):
    engine_space = SearchSpace.build(
        plain.bench.scaler.sites,
        "layer",
        guidance_scale=3.0,
        branches="separate",
        search_output=values.get("output_weights", True),
        knots=values.get("knots", 1),
    )
    slopes = jacobian(engine_space, plain.bench.scaler.sites)
    start = engine_space.start
    vector = np.random.default_rng(0).normal(size=engine_space.size)
    moved, origin = (
        engine_space.coefficients(at).site_scales(plain.bench.scaler.sites)
        for at in (vector, start)
    )
    expected = origin + np.tensordot(vector - start, slopes, axes=1)
    np.testing.assert_allclose(moved, expected, atol=1e-12)


def test_the_last_of_all_steps_are_all_steps(plain):
    noises, vector = noises_of(plain), somewhere(plain)
    full, last = (gradient_of(plain, vector, noises, last_steps=k) for k in (None, 3))
    assert np.array_equal(full.gradient, last.gradient)


def test_the_last_steps_are_differentiated_with_the_others_held(plain):
    noises, vector = noises_of(plain), somewhere(plain)
    found = gradient_of(plain, vector, noises, last_steps=2)
    weights = plain.bench.measures.rewards["weighing"].weights

    def table_of(at):
        return torch.from_numpy(plain.space.coefficients(at).site_scales(plain.bench.scaler.sites))[
            None
        ]

    def mean(at):
        def switch(pipe, index, timestep, tensors):
            if index == 0:  # the first of three steps is done
                plain.bench.scaler.set(table_of(at))
            return tensors

        plain.bench.scaler.set(table_of(vector))
        arguments = plain.bench.sampler.arguments(noises)
        with torch.no_grad():
            images = plain.bench.pipe(**arguments, callback_on_step_end=switch).images
        return float((images.double() * weights).sum((1, 2, 3)).mean())

    directions = np.random.default_rng(2).choice([-1.0, 1.0], size=(3, plain.space.size))
    exact = [slope(mean, vector, direction) for direction in directions]
    np.testing.assert_allclose(directions @ found.gradient, exact, rtol=0.02, atol=2e-5)
    full = gradient_of(plain, vector, noises).gradient
    assert np.abs(directions @ full - exact).max() > 0.1 * np.abs(exact).max()


def test_fewer_rows_at_once_give_the_same_gradient(plain, monkeypatch):
    noises, vector = noises_of(plain, 5), somewhere(plain)
    expected = gradient_of(plain, vector, noises)
    sample, sizes = plain.bench.sampler.sample_with_gradient, []

    def little_memory(rows, *how):
        sizes.append(len(rows))
        if len(rows) > 2:
            raise torch.OutOfMemoryError("no memory")
        return sample(rows, *how)

    monkeypatch.setattr(plain.bench.sampler, "sample_with_gradient", little_memory)
    found = gradient_of(plain, vector, noises)
    assert sizes == [5, 2, 2, 1]
    np.testing.assert_allclose(found.gradient, expected.gradient, rtol=1e-4, atol=1e-7)

    def none_at_all(rows, *how):
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(plain.bench.sampler, "sample_with_gradient", none_at_all)
    with pytest.raises(RunError, match="one image alone"):
        gradient_of(plain, vector, noises)


PAIRED = {"rewards__objective": "diversity", "search__images_per_prompt": 2}


def pairs_of(session, count=2):
    return session.noises("test", 0, session.prompts.train[:count], 2)


def test_images_that_are_compared_have_the_gradient_of_their_difference():
    session = make_session(**PAIRED)
    noises, vector = pairs_of(session), somewhere(session)
    found = gradients_of(session)[0]("gradient", 0, vector, noises)["diversity"]

    def mean(at):
        pixels = images_at(session, at, noises).double().view(2, 2, -1)
        return float((pixels[:, 0] - pixels[:, 1]).square().mean(-1).sqrt().mean())

    directions = np.random.default_rng(3).choice([-1.0, 1.0], size=(4, session.space.size))
    exact = [slope(mean, vector, direction) for direction in directions]
    np.testing.assert_allclose(directions @ found.gradient, exact, rtol=0.05, atol=2e-5)
    assert np.abs(exact).max() > 1e-4
    scores = session.bench.measures["diversity"](
        (images_at(session, vector, noises) * 255).round().byte(), [n.prompt.text for n in noises]
    )
    np.testing.assert_allclose(found.scores, scores, atol=1e-6)


def test_images_that_are_compared_stay_together_in_little_memory(monkeypatch):
    session = make_session(**PAIRED, sampling__batch_size=6)
    noises, vector = pairs_of(session, 3), somewhere(session)
    expected = gradient_of(session, vector, noises)
    sample, seen = session.bench.sampler.sample_with_gradient, []

    def little_memory(rows, *how):
        seen.append([noise.prompt.id for noise in rows])
        if len(rows) > 3:
            raise torch.OutOfMemoryError("no memory")
        return sample(rows, *how)

    monkeypatch.setattr(session.bench.sampler, "sample_with_gradient", little_memory)
    found = gradient_of(session, vector, noises)
    assert [len(rows) for rows in seen] == [6, 2, 2, 2]
    assert all(first == second for first, second in seen[1:])
    np.testing.assert_allclose(found.gradient, expected.gradient, rtol=1e-4, atol=1e-7)


def test_a_reward_is_given_as_many_images_as_it_takes(plain, monkeypatch):
    noises, vector = noises_of(plain, 5), somewhere(plain)
    expected = gradient_of(plain, vector, noises)
    weighing, sizes = plain.bench.measures.rewards["weighing"], []
    score = weighing.score_float

    def counted(images, prompts):
        sizes.append(len(images))
        return score(images, prompts)

    monkeypatch.setattr(weighing, "score_float", counted)
    monkeypatch.setattr(weighing, "batch_size", 2)
    found = gradient_of(plain, vector, noises)
    assert sizes == [2, 2, 1]
    np.testing.assert_array_equal(found.scores, expected.scores)
    np.testing.assert_allclose(found.gradient, expected.gradient, rtol=1e-5, atol=1e-8)


def with_little_memory(session, monkeypatch, refused):
    """Have a number of images find no memory, one by one."""
    sample, left = session.bench.sampler.sample_with_gradient, [refused]

    def little_memory(rows, *how):
        if len(rows) > 1 or left[0] > 0:
            left[0] -= len(rows) == 1
            raise torch.OutOfMemoryError("no memory")
        return sample(rows, *how)

    monkeypatch.setattr(session.bench.sampler, "sample_with_gradient", little_memory)


@pytest.mark.parametrize("refused", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_what_is_computed_again_gives_the_same_gradient(case, refused, monkeypatch):
    session = make_session(**CASES[case])
    noises, vector = noises_of(session, 2), somewhere(session)
    expected = gradient_of(session, vector, noises)
    with_little_memory(session, monkeypatch, refused)
    forwards = []
    transformer = session.bench.scaler.transformer
    block = next(iter(transformer.transformer_blocks))
    handle = block.register_forward_pre_hook(lambda *_: forwards.append(1))
    found = gradient_of(session, vector, noises)
    handle.remove()
    # Each of 3 steps once, once more in the backward, and once more there for the block itself;
    # with guidance in the same forward. Both sides of a factor are sampled once.
    sides = 2 * len(session.space.factors)
    assert len(forwards) == 3 * (2 * (refused + 1) + sides)
    np.testing.assert_array_equal(found.scores, expected.scores)
    np.testing.assert_allclose(found.gradient, expected.gradient, rtol=1e-4, atol=1e-7)
    assert not transformer.is_gradient_checkpointing
    assert not session.bench.pipe.vae.is_gradient_checkpointing


def kept_bytes(steps, level):
    """What is held for the backward of one image, weights not counted."""
    session = make_session(sampling__num_inference_steps=steps)
    bench, held = session.bench, {}
    recomputation = Recomputation(bench)
    for _ in range(level):
        assert recomputation.more()

    def hold(tensor):
        held[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    def arguments(module, args, kwargs):
        for value in (*args, *kwargs.values()):
            if isinstance(value, Tensor):
                hold(value)

    table = session.space.coefficients(session.space.start).site_scales(bench.scaler.sites)
    scales = torch.from_numpy(table).float()[None].requires_grad_()
    handle = bench.scaler.transformer.register_forward_pre_hook(arguments, with_kwargs=True)
    with recomputation.active(), torch.autograd.graph.saved_tensors_hooks(hold, lambda x: x):
        bench.scaler.set(scales)
        images = bench.sampler.sample_with_gradient(noises_of(session, 1))
    handle.remove()
    assert images.requires_grad
    modules = [part for part in bench.pipe.components.values() if isinstance(part, torch.nn.Module)]
    for parameter in (p for module in modules for p in module.parameters()):
        held.pop(parameter.untyped_storage().data_ptr(), None)
    return sum(tensor.untyped_storage().nbytes() for tensor in held.values())


def test_what_is_kept_does_not_grow_with_the_steps():
    a_step = (kept_bytes(6, 0) - kept_bytes(2, 0)) / 4
    thrifty = (kept_bytes(6, 1) - kept_bytes(2, 1)) / 4
    assert thrifty < 0.02 * a_step
    assert kept_bytes(2, 1) < kept_bytes(2, 0) - 1.9 * a_step


OBJECTIVES = {
    "one": {},
    "a mixture": {"rewards__objective": "weighing,other"},
    "compared": PAIRED,
    "factors": {"space__shift": True},
}


@pytest.mark.parametrize("values", OBJECTIVES.values(), ids=OBJECTIVES)
def test_networks_that_take_turns_give_the_same_gradient(values, monkeypatch):
    values = values | {"sampling__batch_size": 4}
    plain = make_session(**values)
    noises, vector = pairs_of(plain, 4), somewhere(plain)
    if plain.space.factors:
        vector[-1] = 1.5
    expected = gradients_of(plain)[0]("gradient", 0, vector, noises)
    session = make_session(rewards__offload=True, **values)
    bench, here = session.bench, []

    def note(owner, name):
        method = getattr(owner, name)

        def noted(*args, **kwargs):
            here.append((name, bench.swap.here))
            return method(*args, **kwargs)

        monkeypatch.setattr(owner, name, noted)

    note(bench.sampler, "sample_with_gradient")
    note(bench.measures, "differentiable")
    found = gradients_of(session)[0]("gradient", 0, vector, noises)
    assert found.keys() == expected.keys()
    for name in found:
        np.testing.assert_array_equal(found[name].scores, expected[name].scores)
        np.testing.assert_allclose(found[name].gradient, expected[name].gradient, rtol=1e-12)
    # Two units: both sampled, both measured, both differentiated.
    rewards = 2 * len(found)
    assert (
        here
        == [("differentiable", "rewards")] * rewards + [("sample_with_gradient", "pipeline")] * 2
    )


def test_a_broken_image_fails_though_it_was_measured_as_bytes(monkeypatch):
    session = make_session(rewards__offload=True, rewards__on_failure="drop")
    noises, vector = noises_of(session), somewhere(session)
    sample = session.bench.sampler.sample_checked

    def broken(*args):
        images, _ = sample(*args)
        return images, torch.tensor([False, True, False])

    monkeypatch.setattr(session.bench.sampler, "sample_checked", broken)
    found = gradient_of(session, vector, noises)
    assert np.isnan(found.scores).tolist() == [False, True, False]
    assert np.isfinite(found.gradient).all()


def test_units_in_the_journal_are_not_computed_again(plain, monkeypatch):
    noises, vector, records = noises_of(plain, 4), somewhere(plain), MemoryRecords()
    expected = gradient_of(plain, vector, noises, records=records)
    stored = json.loads(json.dumps(records.records, allow_nan=False))
    records.records = stored
    monkeypatch.setattr(plain.bench.sampler, "sample_with_gradient", None)
    progress = Counting()
    found = gradient_of(plain, vector, noises, records=records, progress=progress)
    assert progress.units == [(3 * 4, False)]
    assert np.array_equal(found.gradient, expected.gradient)
    assert np.array_equal(found.scores, expected.scores)
    with pytest.raises(RunError, match="other candidates"):
        gradient_of(plain, vector, noises, records=records, last_steps=1)


def spoil(plain, monkeypatch, prompt):
    weighing = plain.bench.measures.rewards["weighing"]
    score = weighing.score_float

    def spoiled(images, prompts):
        bad = torch.tensor([text == prompt for text in prompts])
        return score(images, prompts).masked_fill(bad, torch.nan)

    monkeypatch.setattr(weighing, "score_float", spoiled)


def test_an_image_that_cannot_be_scored_stops_the_search(plain, monkeypatch):
    noises = noises_of(plain)
    spoil(plain, monkeypatch, noises[1].prompt.text)
    with pytest.raises(RewardError, match=r"not finite .*1 of 3 images"):
        gradient_of(plain, somewhere(plain), noises)


def test_an_image_that_is_dropped_leaves_the_mean_of_the_others(monkeypatch):
    session = make_session(rewards__on_failure="drop")
    noises, vector = noises_of(session), somewhere(session)
    expected = gradient_of(session, vector, [noises[0], noises[2]])
    spoil(session, monkeypatch, noises[1].prompt.text)
    gradients, evaluator = gradients_of(session)
    found = gradients("gradient", 0, vector, noises)["weighing"]
    np.testing.assert_allclose(found.gradient, expected.gradient, rtol=1e-4, atol=1e-7)
    assert np.isnan(found.scores).tolist() == [False, True, False]
    assert evaluator.dropped == 1
    with pytest.raises(RewardError, match="Each of the 1 images"):
        gradients("gradient", 1, vector, noises[1:2])


def test_frames_of_a_video_are_scored_as_images(monkeypatch):
    session = make_session()
    noises, vector = noises_of(session), somewhere(session)
    expected = gradient_of(session, vector, noises)
    sample = session.bench.sampler.sample_with_gradient
    monkeypatch.setattr(
        session.bench.sampler,
        "sample_with_gradient",
        lambda *args: sample(*args).unsqueeze(1).repeat(1, 2, 1, 1, 1),
    )
    found = gradient_of(session, vector, noises)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-5)
    np.testing.assert_allclose(found.gradient, expected.gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("values", "last_steps", "says"),
    [
        ({"rewards.objective": "opaque"}, None, "'opaque' has no gradient"),
        ({"rewards.objective": "blind"}, None, "'blind' has no gradient"),
        ({"rewards.objective": "weighing,opaque"}, None, "'opaque' has no gradient"),
        ({"rewards.objective": "weighing,other", "rewards.mixing": "rank"}, None, "'rank' has"),
        ({"rewards.constraints": ("opaque >= 0.9 of baseline",)}, None, "'opaque' has no gradient"),
        ({"space.members": 3}, None, "one further member"),
        ({"space.members": 2, "space.output_weights": False}, None, "one further member"),
        ({"search.fidelity.num_inference_steps": 2}, None, "as in sampling; .* 2 steps"),
        ({}, 4, "last 4 steps .* there are 3 steps"),
        ({}, 0, "last 0 steps"),
    ],
)
def test_what_has_no_gradient_is_refused_before_any_work(values, last_steps, says):
    session = session_of(values)
    with pytest.raises(ConfigError, match=says):
        gradients_of(session, last_steps)


def without_callback(call):
    """A call that differs in that it takes no callback."""

    @functools.wraps(call)
    def other(*args, **kwargs):
        return call(*args, **kwargs)

    known = inspect.signature(call)
    kept = [p for name, p in known.parameters.items() if name != "callback_on_step_end"]
    other.__signature__ = known.replace(parameters=kept)
    return other


def test_pipelines_that_cannot_be_differentiated_are_refused(plain, monkeypatch):
    pipeline = type(plain.bench.pipe)
    call = pipeline.__call__
    monkeypatch.setattr(pipeline, "__call__", without_callback(call))
    with pytest.raises(UnsupportedModelError, match="no callback_on_step_end"):
        gradients_of(make_session(), 2)
    monkeypatch.setattr(pipeline, "__call__", call.__wrapped__)
    with pytest.raises(UnsupportedModelError, match="is not one that"):
        gradients_of(plain)

    def with_a_no_grad_of_its_own(pipe, **arguments):
        return call(pipe, **arguments)

    monkeypatch.setattr(pipeline, "__call__", torch.no_grad()(with_a_no_grad_of_its_own))
    with pytest.raises(UnsupportedModelError, match="have no gradient"):
        gradient_of(plain, somewhere(plain), noises_of(plain))


def test_only_the_scales_ask_for_gradients(plain):
    gradient_of(plain, somewhere(plain), noises_of(plain, 1))
    modules = [
        part for part in plain.bench.pipe.components.values() if isinstance(part, torch.nn.Module)
    ]
    assert modules
    assert not any(p.requires_grad or p.grad is not None for m in modules for p in m.parameters())


@pytest.mark.parametrize("name", ["shapes", "shapes-judge"])
def test_shipped_rewards_score_floats_as_they_score_bytes(name):
    texts = ["a red circle", "a small blue square above a green cross", "two yellow triangles"]
    scenes = [parse_caption(text) for text in texts]
    images = render_batch(scenes, torch.Generator().manual_seed(0))
    reward = make_reward(name)
    assert isinstance(reward, DifferentiableReward)
    assert reward.info.differentiable
    pixels = (images.float() / 255).requires_grad_()
    scores = reward.score_float(pixels, texts)
    torch.testing.assert_close(scores.detach(), reward.score(images, texts), rtol=1e-5, atol=1e-6)
    scores.sum().backward()
    assert (pixels.grad.flatten(1).abs().amax(1) > 0).all()

import pytest
import torch

from calibri.artifact.calibration import Calibration
from calibri.pipelines.loading import load_pipeline
from calibri.results import Checkpoint, Comparison, Evaluation, Figure, SettingResult
from calibri.rewards.registry import make_reward
from calibri.runs.calibrate import calibrate
from calibri.runs.comparison import verdict
from calibri.runs.evaluate import evaluate
from calibri.scoring.image_sets import frechet_distance
from calibri.shapes.render import render_batch
from calibri.shapes.scenes import parse_caption, sample_prompts
from tests.tiny import scaled_calibration


def comparison(reward, steps, mean, half=0.01):
    difference = Figure(mean=mean, low=mean - half, high=mean + half, n=8)
    against = f"original, {steps} steps"
    return Comparison(
        reward=reward, against=against, num_inference_steps=steps, difference=difference
    )


def evaluation(*comparisons, held_out=("judge",)):
    return Evaluation(
        objective="objective",
        held_out_rewards=list(held_out),
        variants={},
        num_prompts=8,
        images_per_prompt=2,
        seed=0,
        settings=[],
        comparisons=list(comparisons),
    )


def test_the_verdict_names_the_most_steps_that_are_reached():
    text = verdict(
        evaluation(
            comparison("objective", 6, 0.05),
            comparison("judge", 6, 0.2),
            comparison("judge", 12, 0.05),
            comparison("judge", 18, 0.005),
        )
    )
    assert "better on every reward" in text
    assert "On judge it is not distinguishable from the original at 18 steps, 3 times" in text


@pytest.mark.parametrize(
    ("objective", "judge", "words"),
    [(-0.05, -0.05, "worse on every reward"), (0.05, 0.0, "not every reward")],
)
def test_the_verdict_does_not_claim_what_intervals_do_not_show(objective, judge, words):
    text = verdict(evaluation(comparison("objective", 6, objective), comparison("judge", 6, judge)))
    assert words in text


def test_the_verdict_says_when_more_steps_are_not_reached():
    text = verdict(evaluation(comparison("judge", 6, 0.1), comparison("judge", 12, -0.1)))
    assert "does not reach the original at 12 steps" in text


def test_the_verdict_on_the_original_itself():
    same = comparison("objective", 6, 0.0, half=0.0)
    assert "nothing better" in verdict(evaluation(same, held_out=()))


@pytest.mark.parametrize(("low", "vetoed"), [(0.1, True), (-0.1, False)])
def test_the_verdict_says_when_a_veto_left_the_original(low, vetoed):
    same = comparison("objective", 6, 0.0, half=0.0)
    figure = Figure(mean=0.2, low=low, high=0.5, n=8)
    refused = Checkpoint(generation=5, difference=figure, vetoed_by=["judge"])
    text = verdict(evaluation(same), [refused])
    assert ("worse in judge" in text) == vetoed
    assert ("nothing better" in text) != vetoed


def test_the_original_against_itself_differs_by_nothing(shipped):
    made = scaled_calibration(shipped)
    identity = made.model_copy(update={"coefficients": made.coefficients.with_strength(0.0)})
    result = evaluate(identity, num_prompts=4, rewards=["shapes"], step_multiples=(1, 2))
    same = [c.difference for c in result.comparisons if c.num_inference_steps == 3]
    assert [(d.mean, d.low, d.high, d.n) for d in same] == [(0.0, 0.0, 0.0, 4)]
    labels = [setting.label for setting in result.settings]
    assert labels == [
        "calibrated, 3 steps",
        "calibrated, 6 steps",
        "original, 3 steps",
        "original, 6 steps",
    ]
    ours = result.setting(calibrated=True, num_inference_steps=6)
    theirs = result.setting(calibrated=False, num_inference_steps=6)
    assert isinstance(ours, SettingResult)
    assert ours.scores == theirs.scores
    assert ours.diversity == theirs.diversity
    assert ours.diversity > 0


def test_images_that_are_not_scored_together_have_no_diversity(shipped):
    made = scaled_calibration(shipped)
    result = evaluate(made, num_prompts=2, rewards=["shapes"], step_multiples=(1,), batch_size=1)
    assert [setting.diversity for setting in result.settings] == [None, None]


def test_a_change_shows_in_the_paired_difference(shipped):
    made = scaled_calibration(shipped)
    result = evaluate(made, num_prompts=4, rewards=["shapes"], step_multiples=(1,))
    (only,) = result.comparisons
    means = {s.calibrated: s.scores["shapes"].mean for s in result.settings}
    assert only.difference.mean == pytest.approx(means[True] - means[False])
    assert only.difference.mean != 0


def test_the_judge_gives_a_frechet_distance_that_damage_raises():
    judge = make_reward("shapes-judge")
    texts = sample_prompts(96, 3, "held_out")
    real = judge.reference_features(texts, 0).double().numpy()
    others = render_batch([parse_caption(text) for text in texts], torch.Generator().manual_seed(1))
    noise = torch.randint(0, 60, others.shape, generator=torch.Generator().manual_seed(2))
    damaged = (others.int() + noise).clamp(0, 255).to(torch.uint8)
    near = frechet_distance(judge.features(others).double().numpy(), real)
    far = frechet_distance(judge.features(damaged).double().numpy(), real)
    assert far > 3 * near


def test_an_evaluation_with_the_judge_has_a_frechet_distance(shipped):
    made = scaled_calibration(shipped)
    result = evaluate(made, num_prompts=4, rewards=["shapes-judge"], step_multiples=(1,))
    assert all(s.frechet is not None and s.frechet > 0 for s in result.settings)


def test_a_search_and_its_evaluation_use_one_negative_prompt(tmp_path):
    pipe, texts = load_pipeline("shapes", device="cpu"), []
    encode = pipe.encode_prompt

    def watched(**arguments):
        if arguments["prompt"] is not None:  # a call with embeddings passes them through
            texts.append(arguments["negative_prompt"])
        return encode(**arguments)

    pipe.encode_prompt = watched
    values = {
        "sampling": {"num_inference_steps": 2, "guidance_scale": 3.0, "negative_prompt": "blue"},
        "search": {
            "generations": 1,
            "popsize": 4,
            "bucket_size": 2,
            "num_validation_prompts": 5,
        },
        "evaluation": {"num_prompts": 5, "num_samples": 1},
        "rewards": {"held_out": []},
    }
    calibrate(values, pipeline=pipe, name="guided", runs=tmp_path)
    made = Calibration.from_pretrained(tmp_path / "guided")
    assert made.sampling.negative_prompt == "blue"
    assert set(texts) == {"blue"}
    texts.clear()
    evaluate(made, pipeline=pipe, num_prompts=2, step_multiples=(1,))
    assert set(texts) == {"blue"}

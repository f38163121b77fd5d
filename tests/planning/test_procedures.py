from functools import cache

import pytest

from calibri.config import load_config
from calibri.planning.costs import plan
from calibri.planning.procedures import OVERHEAD

pytestmark = pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")

HOUR = 3600


@cache
def planned_as_in_the_paper(pipeline):
    return plan(pipeline=pipeline, tflops=151.0)


@pytest.fixture
def flux():
    return planned_as_in_the_paper("flux.1-dev")


# Table 5 of the paper (spec section 4) and counts made by hand.
@pytest.mark.parametrize(
    ("pipeline", "size", "popsize", "image", "candidate", "generation"),
    [
        ("flux.1-dev", 58, 16, 339, 5.42, 86.8),
        ("sd3.5-medium", 216, 20, 90, 1.44, 28.9),
        ("qwen-image", 482, 22, 464, 7.42, 163.2),
    ],
)
def test_the_papers_searches_cost_what_was_counted(
    pipeline, size, popsize, image, candidate, generation
):
    planned = planned_as_in_the_paper(pipeline)
    paper = planned.procedures[0]
    assert (paper.parameters, paper.popsize, paper.bucket_size) == (size, popsize, 16)
    tera = sum(planned.image_teraflop.values())
    assert tera == pytest.approx(image, rel=0.01)
    assert 16 * tera / 1e3 == pytest.approx(candidate, rel=0.01)
    assert popsize * 16 * tera / 1e3 == pytest.approx(generation, rel=0.01)


def test_the_published_hours_imply_the_efficiency_that_was_found(flux):
    paper = flux.procedures[0]
    assert paper.images == {"search": 51_200, "validation": 10_416}
    assert paper.published_hours == 32
    tera = sum(flux.image_teraflop.values())
    assert tera * 51_200 / (32 * HOUR) == pytest.approx(151, rel=0.01)
    whole = 1e3 * sum(paper.petaflop.values())
    assert whole / (32 * HOUR) == pytest.approx(181, rel=0.01)


def test_hours_are_flops_by_throughput(flux):
    for procedure in flux.procedures:
        (hours,) = procedure.hours
        whole = 1e3 * sum(procedure.petaflop.values())
        assert hours.low * HOUR * 151.0 == pytest.approx(whole)
        assert hours.high == pytest.approx(OVERHEAD * hours.low)


TINY = {
    "sampling.num_inference_steps": 2,
    "search.generations": 3,
    "search.popsize": None,
    "search.bucket_size": 3,
    "search.validate_every": 2,
    "search.num_validation_prompts": 5,
    "search.images_per_prompt": 2,
    "evaluation.num_prompts": 5,
    "evaluation.step_multiples": (2, 4),
}


def test_a_run_evaluates_the_transformer_as_often_as_planned():
    planned = plan(load_config(values=TINY))
    ours = planned.procedures[1]
    evaluations = 1e3 * ours.petaflop["transformer"] / planned.forward_teraflop
    # Search and validation at 2 steps; the calibrated model at 2 and 4 steps, the original at 2, 4
    # and 8, on 5 prompts with 2 images each.
    expected = 2 * (ours.images["search"] + ours.images["validation"]) + 10 * (2 + 4 + 2 + 4 + 8)
    assert evaluations == pytest.approx(expected)


def test_a_cheaper_search_is_counted_at_its_own_fidelity(flux):
    fidelity = {"num_inference_steps": 11, "cache_interval": 2, "max_sequence_length": 128}
    fidelity |= {"height": 448, "width": 448}
    cheap = plan(pipeline="flux.1-dev", search={"fidelity": fidelity})
    (paper, before), (same_paper, after) = flux.procedures, cheap.procedures
    assert (same_paper.petaflop, after.images) == (paper.petaflop, before.images)
    assert cheap.image_teraflop == flux.image_teraflop
    # 6 of 15 evaluations, at 12.37 of 21.5 TFLOP each; checkpoints and final figures as before.
    saved = before.petaflop["transformer"] - after.petaflop["transformer"]
    expected = before.images["search"] * (15 * 21.50 - 6 * 12.37) / 1e3
    assert saved == pytest.approx(expected, rel=1e-3)
    decoded = before.petaflop["VAE"] - after.petaflop["VAE"]
    share = 1 - (448 / 512) ** 2
    one = flux.image_teraflop["VAE"] / 1e3
    assert decoded == pytest.approx(before.images["search"] * share * one, rel=0.02)
    assert 0 < after.petaflop["text encoders"] < before.petaflop["text encoders"]
    assert any("sampled at 11 steps, height 448" in note for note in cheap.notes)
    assert not any("The generations are sampled" in note for note in flux.notes)


def test_prompts_are_encoded_once_here_and_for_every_image_in_the_paper():
    search = {"generations": 2, "bucket_size": 3, "bucket_growth": 1.0}
    planned = plan(search=search)
    paper, ours = planned.procedures
    text = planned.image_teraflop["text encoders"] / 1e3
    assert paper.petaflop["text encoders"] == pytest.approx(sum(paper.images.values()) * text)
    assert ours.petaflop["text encoders"] == pytest.approx((2 * 3 + 192 + 256) * text)


def test_a_guard_scores_the_checkpoints_too():
    rewards = {"objective": "hpsv3", "held_out": ("pickscore",)}
    cost = {
        guard: plan(pipeline="shapes", rewards=rewards | {"guard": guard}).procedures[1]
        for guard in ("off", "veto")
    }
    more = cost["veto"].petaflop["reward"] - cost["off"].petaflop["reward"]
    assert more == pytest.approx(cost["off"].images["validation"] * 0.38 / 1e3)

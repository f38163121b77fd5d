import pytest

from calibri.config import load_config
from calibri.errors import ConfigError
from calibri.pipelines.blueprints import find_geometry
from calibri.planning.costs import Plan, plan, with_defaults

pytestmark = pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")


def test_what_a_configuration_says_wins_over_the_papers_settings():
    values = {
        "pipeline": "flux.1-dev",
        "sampling.num_inference_steps": 30,
        "space.branches": "separate",
        "dtype": "float32",
    }
    config = with_defaults(load_config(values=values), find_geometry("flux.1-dev"))
    assert config.dtype == "float32"
    assert config.space.branches == "separate"
    assert config.space.granularity == "block"
    sampling = config.sampling
    assert (sampling.num_inference_steps, sampling.height, sampling.guidance_scale) == (
        30,
        512,
        3.5,
    )


def test_nothing_is_filled_in_for_other_pipelines():
    config = load_config(values={"sampling.num_inference_steps": 4})
    assert with_defaults(config, find_geometry("shapes")) == config


def test_guidance_and_members_multiply_the_evaluations():
    nfe = {}
    for guidance, members in ((1.0, 1), (3.0, 1), (1.0, 3), (3.0, 2)):
        branches = "separate" if guidance > 1 and members > 1 else "shared"
        space = {"members": members, "branches": branches}
        nfe[guidance, members] = plan(sampling={"guidance_scale": guidance}, space=space).nfe
    assert nfe == {(1.0, 1): 8, (3.0, 1): 16, (1.0, 3): 24, (3.0, 2): 32}


def test_memory_is_that_of_the_weights_and_of_the_reward():
    rewards = {"objective": "hpsv3"}
    planned = plan(rewards=rewards, dtype="bfloat16")
    sizes = {c.name: c.gigabytes for c in planned.components}
    assert sizes["transformer"] == pytest.approx(2 * 0.001977648)
    assert sizes["reward hpsv3"] == pytest.approx(16.6, rel=0.01)
    assert planned.resident_gigabytes == pytest.approx(sum(sizes.values()))
    assert planned.in_turns_gigabytes == sizes["reward hpsv3"]
    assert planned.offloaded_gigabytes == max(sizes.values())
    wide = plan(rewards=rewards, dtype="float32")
    assert wide.resident_gigabytes == pytest.approx(2 * planned.resident_gigabytes)


def test_a_model_of_the_paper_is_planned_for_its_machine_and_others_for_none():
    from calibri.planning.throughput import machine_here

    if machine_here() is None:
        assert plan().machine is None
        assert plan().procedures[0].hours == []
    assert plan(machine="A100").machine == "A100"


def test_measuring_first_is_said_where_it_happens():
    def said(**search):
        notes = plan(prompts={"train": "shapes"}, search=search).notes
        return any("search.probe" in note for note in notes)

    assert not said()
    assert said(generations=200)
    assert said(probe=True)
    assert not said(generations=200, probe=False)
    assert not said(generations=200, method="reference")


def test_an_unknown_reward_is_said_to_be_left_out():
    assert any("qalign" in note for note in plan(rewards={"objective": "qalign"}).notes)
    assert not any("left out" in note for note in plan().notes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"machine": "abacus"}, "abacus"), ({"tflops": 0.0}, "above 0"), ({"tflops": -1.0}, "above")],
)
def test_a_machine_that_is_not_known_is_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        plan(**arguments)


def test_a_plan_survives_json():
    planned = plan(machine="h200")
    assert Plan.model_validate_json(planned.model_dump_json()) == planned
